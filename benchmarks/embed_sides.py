"""The sides of benchmarks/embed_speed.py, and the processes that they encode in."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import is_made, python_of

_WORKER = Path(__file__).resolve().parent / "embed_peers" / "worker.py"
REFERENCE = "sentence-transformers"


@dataclass(frozen=True)
class Side:
    """One way to encode: ours in a variant and engine, or a peer.

    Attributes:
        name: For tables.
        loader: Of embed_peers/worker.py.
        variant: Of ours: the ONNX file.
        engine: Of ours.
    """

    name: str
    loader: str
    variant: str = "fp32"
    engine: str = "onnxruntime"

    @property
    def is_ours(self) -> bool:
        """Whether it is ours."""
        return self.loader == "ours"

    @property
    def is_exact(self) -> bool:
        """Whether its vectors must be the float32 model's."""
        return self.variant == "fp32"

    @property
    def python(self) -> Path:
        """The interpreter that it runs in."""
        return Path(sys.executable) if self.is_ours else python_of(self.loader)


OURS = (
    Side("fp32", "ours"),
    Side("w8", "ours", variant="w8"),
    Side("int8", "ours", variant="int8"),
    Side("openvino", "ours", engine="openvino"),
    Side("openvino-bf16", "ours", engine="openvino-bf16"),
)
PEERS = tuple(
    Side(name, name)
    for name in (
        REFERENCE,
        "langchain-huggingface",
        "llama-index-embeddings-huggingface",
        "fastembed",
    )
)


def sides_for(model: str) -> tuple[list[Side], dict[str, str]]:
    """Those that can run a model here, and why others cannot."""
    chosen, left_out = [], {}
    for side in (*OURS, *PEERS):
        reason = _why_not(side, model)
        if reason:
            left_out[side.name] = reason
        else:
            chosen.append(side)
    return chosen, left_out


def _why_not(side: Side, model: str) -> str | None:
    if side.engine.startswith("openvino"):
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed"
        if side.engine == "openvino-bf16" and not _multiplies_bf16():
            return "this CPU has no bfloat16 instructions"
    if side.loader == "fastembed" and model != "minilm":
        return "fastembed cannot take the last token's vector"
    if not side.is_ours and not is_made(side.loader):
        return "its environment is not made (make bench-env)"
    return None


def _multiplies_bf16() -> bool:
    from stm_retriever.cpu_features import cpu_features

    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_features()))


@dataclass
class Process:
    """A side at work, in a process that encodes only when it is let. A context manager.

    Attributes:
        side: Which one.
        task: What embed_peers/worker.py reads.
        folder: For the task and for what the process says to standard error; made here.
    """

    side: Side
    task: Mapping[str, Any]
    folder: Path
    document_seconds: dict[str, float] = field(default_factory=dict)
    query_seconds: list[float] = field(default_factory=list)

    def __enter__(self) -> Process:
        self.folder.mkdir(parents=True)
        file = self.folder / "task.json"
        task = {**self.task, "loader": self.side.loader, "variant": self.side.variant}
        file.write_text(json.dumps({**task, "engine": self.side.engine}), encoding="utf-8")
        self._errors = (self.folder / "errors.txt").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [str(self.side.python), str(_WORKER), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **_ENVIRONMENT, "OMP_NUM_THREADS": str(self.task["threads"])},
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def hear(self) -> dict[str, Any]:
        """Wait for an answer.

        Raises:
            SystemExit: If the process ends instead; with what it said.
        """
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._errors.flush()
            tail = Path(self._errors.name).read_text(encoding="utf-8")[-3000:]
            raise SystemExit(f"{self.side.name} ended:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and wait for the answer."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        return self.hear()

    def documents(self, name: str, texts: Sequence[str], save: Path | None = None) -> None:
        """Encode documents of a set and keep the time."""
        seconds = self.ask(do="documents", texts=list(texts), save=None if save is None else str(save))
        self.document_seconds[name] = self.document_seconds.get(name, 0.0) + float(seconds["seconds"])

    def queries(self, texts: Sequence[str]) -> None:
        """Encode queries one by one and keep each one's time."""
        self.query_seconds += self.ask(do="queries", texts=list(texts))["seconds"]


_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TQDM_DISABLE": "1",
}
