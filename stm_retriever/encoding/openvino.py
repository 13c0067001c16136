"""OpenVINO as the engine: reads the same ONNX file, in float32 or, if asked for, with bfloat16 products."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from stm_retriever.encoding.engines import OUTPUT, Ids, Vectors, as_vectors, check_graph, parallel_runs
from stm_retriever.errors import ConfigError, ModelFolderError, ProviderError, require
from stm_retriever.onnx_session import Device, check_onnx_file, check_threads, usable_cpus

_TELEMETRY = "openvino_telemetry"


class OpenVinoEngine:
    """OpenVINO on the CPU.

    Args:
        onnx_path: The file.
        device: ``"cpu"`` or ``"auto"``; no other device is served by it.
        threads: CPU threads; None for all that this process may use.
        size: Bytes of the file and its weights.
        bf16: Multiply in bfloat16 (cosine to float32 about 0.99998), on CPUs with instructions for it.

    Raises:
        ConfigError: If a GPU is asked for.
        ProviderError: If bfloat16 is asked for and the CPU has no instructions for it.
        ModelFolderError: If the file cannot be read.
        MissingExtraError: If OpenVINO is not installed.
    """

    on_gpu = False

    def __init__(
        self, onnx_path: Path, *, device: Device, threads: int | None, size: int, bf16: bool
    ) -> None:
        if device == "cuda":
            raise ConfigError(
                "engine='openvino' runs on the CPU, and device='cuda' was asked for. Pass "
                "engine='onnxruntime' for a GPU, or device='cpu'."
            )
        check_threads(threads)
        check_onnx_file(onnx_path)
        self._path = onnx_path
        self._threads = threads or usable_cpus()
        self.parallel = parallel_runs(threads, size, on_gpu=False)
        self._core = _import_quietly().Core()
        self._hint = "bf16" if bf16 else "f32"
        if bf16:
            self._check_bf16()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._whole = self._compile(streams=1)
        self._streams: Any = None
        check_graph(
            {item.get_any_name() for item in self._whole.inputs},
            [item.get_any_name() for item in self._whole.outputs],
            onnx_path,
        )

    def run(self, input_ids: Ids, attention_mask: Ids, *, beside_others: bool) -> Vectors:
        """See :class:`stm_retriever.encoding.engines.Engine`."""
        request = self._request(beside_others and self.parallel > 1)
        request.infer({"input_ids": input_ids, "attention_mask": attention_mask})
        return as_vectors(request.get_tensor(OUTPUT).data)

    def _request(self, beside_others: bool) -> Any:
        """A thread's own request: one request cannot serve two at once."""
        name = "beside" if beside_others else "alone"
        request = getattr(self._local, name, None)
        if request is None:
            request = (self._for_streams() if beside_others else self._whole).create_infer_request()
            setattr(self._local, name, request)
        return request

    def _for_streams(self) -> Any:
        with self._lock:
            if self._streams is None:
                self._streams = self._compile(streams=self.parallel)
            return self._streams

    def _compile(self, *, streams: int) -> Any:
        options = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
        }
        try:
            return self._core.compile_model(str(self._path), "CPU", options)
        except RuntimeError as error:
            raise ModelFolderError(
                f"OpenVINO cannot load {str(self._path)!r}: {error!s:.500}. The file is damaged, or it uses "
                "an operator that OpenVINO does not have (8-bit weights, for instance). Take "
                "variant='fp32' or engine='onnxruntime', or copy the model folder again."
            ) from error

    def _check_bf16(self) -> None:
        found = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in found:
            raise ProviderError(
                "engine='openvino-bf16' was asked for, but this CPU has no bfloat16 instructions (it has "
                f"{', '.join(found)}), so it would silently run in another precision. Pass engine='openvino'."
            )


def _import_quietly() -> ModuleType:
    """Import OpenVINO without its telemetry, which would report the import over the network."""
    if "openvino" in sys.modules or _TELEMETRY in sys.modules:
        return require("openvino", extra="openvino", purpose="engine='openvino'")
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # importing it fails, and a stub takes its place
    try:
        return require("openvino", extra="openvino", purpose="engine='openvino'")
    finally:
        del sys.modules[_TELEMETRY]
