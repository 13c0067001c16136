"""The engines that run an ONNX file, behind one small interface; and what their errors mean."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from stm_retriever.errors import ConfigError, ModelFolderError, ProviderError
from stm_retriever.onnx_session import Device, open_session, usable_cpus

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

EngineName = Literal["onnxruntime", "openvino", "openvino-bf16"]
Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

INPUTS = frozenset({"input_ids", "attention_mask"})
OUTPUT = "sentence_embedding"
# A second session for one-thread runs doubles the weights in memory; and in a large model a single
# multiplication is work enough for all threads.
_LARGE_MODEL_BYTES = 256 * 2**20
_OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "cuda_error_out_of_memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "allocaterawinternal",
)


class Engine(Protocol):
    """Runs the graph."""

    @property
    def on_gpu(self) -> bool:
        """Whether it really runs on a GPU."""

    @property
    def parallel(self) -> int:
        """How many runs side by side, each with one thread, are the fastest; 1 for one run at a time."""

    def run(self, input_ids: Ids, attention_mask: Ids, *, beside_others: bool) -> Vectors:
        """Encode one batch; may be called from several threads at once.

        Args:
            input_ids: int64 (n, length).
            attention_mask: int64 (n, length), 1 for a token.
            beside_others: Take a single thread, since other runs go on at the same time.

        Returns:
            float32 (n, d), as the graph gives them.
        """


def open_engine(
    name: EngineName, onnx_path: Path, *, device: Device, threads: int | None, size: int
) -> Engine:
    """Open an ONNX file.

    Args:
        name: ``"onnxruntime"``, ``"openvino"`` (float32) or ``"openvino-bf16"`` (products in bfloat16).
        onnx_path: The file.
        device: What was asked for.
        threads: CPU threads; None for all that this process may use.
        size: Bytes of the file and its weights.

    Raises:
        ConfigError: If there is no such engine, or it does not run on this device.
        ProviderError: If the device or the CPU's instructions are not there.
        ModelFolderError: If the file is damaged or another tool's.
        MissingExtraError: If the engine is not installed.
    """
    if name not in get_args(EngineName):
        raise ConfigError(f"engine={name!r} is not known. Pass one of {', '.join(get_args(EngineName))}.")
    if name == "onnxruntime":
        return OnnxRuntimeEngine(onnx_path, device=device, threads=threads, size=size)
    from stm_retriever.encoding.openvino import OpenVinoEngine

    return OpenVinoEngine(onnx_path, device=device, threads=threads, size=size, bf16=name == "openvino-bf16")


class OnnxRuntimeEngine:
    """ONNX Runtime, on a CPU or on CUDA."""

    def __init__(self, onnx_path: Path, *, device: Device, threads: int | None, size: int) -> None:
        self._path = onnx_path
        self.session = open_session(onnx_path, device=device, threads=threads)
        check_graph(
            {item.name for item in self.session.get_inputs()},
            [item.name for item in self.session.get_outputs()],
            onnx_path,
        )
        self.on_gpu = "CUDAExecutionProvider" in self.session.get_providers()
        self.parallel = parallel_runs(threads, size, on_gpu=self.on_gpu)
        self._lock = threading.Lock()
        self._one_thread: InferenceSession | None = None

    def run(self, input_ids: Ids, attention_mask: Ids, *, beside_others: bool) -> Vectors:
        """See :class:`Engine`."""
        session = self._for_one_thread() if beside_others and self.parallel > 1 else self.session
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        return np.asarray(session.run([OUTPUT], feed)[0], dtype=np.float32)

    def _for_one_thread(self) -> InferenceSession:
        with self._lock:
            if self._one_thread is None:
                self._one_thread = open_session(self._path, device="cpu", threads=1)
            return self._one_thread


def parallel_runs(threads: int | None, size: int, *, on_gpu: bool) -> int:
    """How many one-thread runs go side by side.

    Measured on two cores with all-MiniLM-L6-v2, each way at its best batch size: runs of one thread each
    wait at no barrier, and two of them are 1.1 (fp32, texts of 170 tokens) to 1.8 times (int8, short ones)
    as fast per text as runs of two threads.
    """
    if on_gpu or size > _LARGE_MODEL_BYTES:
        return 1
    return threads or usable_cpus()


def check_graph(inputs: set[str], outputs: list[str], path: Path) -> None:
    """Raise :class:`ModelFolderError` unless the graph takes and gives what ours do."""
    if inputs != INPUTS or OUTPUT not in outputs:
        raise ModelFolderError(
            f"{str(path)!r}: its ONNX graph takes {sorted(inputs)} and gives {outputs}; needed are "
            f"{sorted(INPUTS)} and {OUTPUT!r}. Another tool wrote it. Make it anew: "
            "stm-train export MODEL --out FOLDER"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an engine's error says that memory ran out; engines have no class of their own for it."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, Exception) and any(words in text for words in _OUT_OF_MEMORY)


def too_large(error: BaseException, tokens: int) -> ProviderError:
    """The error for a single text that does not fit into memory."""
    return ProviderError(
        f"One text of {tokens} tokens alone does not fit into the device's memory: {error!s:.300}. Free "
        "memory, export with a smaller maximum length, take a smaller variant, or pass device='cpu'."
    )


def as_vectors(output: Any) -> Vectors:
    """An engine's output as float32, in memory of its own."""
    return cast(Vectors, np.array(output, dtype=np.float32))
