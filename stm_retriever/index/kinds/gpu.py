"""A copy of an index on one or several graphics cards, for searching; the index on the CPU stays the truth.

Saving, adding and deleting go to the CPU index, and the copy follows. What a card cannot do - searches among
given labels, very large k - the CPU index answers.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from stm_retriever.errors import ConfigError, ProviderError, require
from stm_retriever.index.kinds.approximate import ApproximateIndex
from stm_retriever.index.kinds.flat import FlatIndex
from stm_retriever.index.kinds.protocol import Labels, VectorIndex, Vectors
from stm_retriever.index.kinds.rows import RowLabels

Mode = Literal["replicate", "shard"]
_MOST = 2048  # neighbours that FAISS finds on a card in one search
_WHEELS = (
    "faiss-gpu (CUDA 12, from Meta), faiss-gpu-cu12 (CUDA 12, by others) or faiss-gpu-cuvs (CUDA 13, with "
    "CAGRA); all for Linux on x86-64"
)
_CUDA_WHEELS = ("nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime")
_FAISS_WHEELS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs")


def to_gpu(index: VectorIndex, devices: Sequence[int] | None = None, mode: Mode = "replicate") -> GpuIndex:
    """Copy an index to graphics cards.

    A graph (kind hnsw) becomes a CAGRA graph where FAISS carries that, else its vectors are compared one by
    one, which a card does fast and without error.

    Args:
        index: On the CPU; from then on it is changed through the result only.
        devices: Numbers of the cards; None for all.
        mode: ``"replicate"``: each card holds everything, and queries are spread; ``"shard"``: each holds a
            part, and every query goes to all.

    Raises:
        ProviderError: If FAISS has no GPU support, there is no such card, or the kind does not exist there.
        ConfigError: If ``mode`` is neither, or ``devices`` is empty.
    """
    if mode not in ("replicate", "shard"):
        raise ConfigError(f"mode={mode!r}; take 'replicate' (everything on each card) or 'shard' (a part).")
    faiss = require("faiss", extra="gpu", purpose="the vector index on a GPU")
    chosen = _devices(faiss, devices)
    return GpuIndex(cast("FlatIndex | ApproximateIndex", index), chosen, mode)


class GpuIndex:
    """An index on the CPU and its copy on cards. GPU searches take turns: FAISS's are not thread-safe."""

    def __init__(self, index: FlatIndex | ApproximateIndex, devices: Sequence[int], mode: Mode) -> None:
        """Copy the index now, so that what cannot work fails here."""
        self._faiss: Any = require("faiss", extra="gpu", purpose="the vector index on a GPU")
        self._cpu = index
        self._devices = list(devices)
        self._mode = mode
        self._lock = threading.Lock()
        self._resources = [self._faiss.StandardGpuResources() for _ in self._devices]
        self._copy: Any = None
        if len(index):
            with self._lock:
                self._refresh()

    def __len__(self) -> int:
        """Return how many vectors it holds."""
        return len(self._cpu)

    @property
    def cpu(self) -> FlatIndex | ApproximateIndex:
        """The index on the CPU."""
        return self._cpu

    @property
    def faiss_index(self) -> Any:
        """The FAISS index on the CPU."""
        return self._cpu.faiss_index

    @property
    def labels(self) -> RowLabels:
        """Which label lies in which row; not to be changed."""
        return self._cpu.labels

    @property
    def keeps_vectors(self) -> bool:
        """Whether the CPU index holds the vectors as they were added."""
        return self._cpu.keeps_vectors

    @property
    def candidates_factor(self) -> int:
        """How many times k candidates to ask for."""
        return self._cpu.candidates_factor

    @property
    def stale(self) -> str | None:
        """Why a rebuild would help, or None."""
        return self._cpu.stale

    @property
    def lists(self) -> int:
        """How many inverted lists there are; 0 for other kinds."""
        return getattr(self._cpu, "lists", 0)

    @property
    def parameters(self) -> dict[str, int | float]:
        """The search parameters, as they are set."""
        return dict(getattr(self._cpu, "parameters", {}))

    def set_parameters(self, values: Mapping[str, int | float]) -> None:
        """Set search parameters, on the cards too."""
        if isinstance(self._cpu, ApproximateIndex):
            with self._lock:
                self._cpu.set_parameters(values)
                self._copy = None

    def live_labels(self) -> Labels:
        """Return the labels of all vectors, sorted."""
        return self._cpu.live_labels()

    def add(self, labels: Labels, vectors: Vectors) -> None:
        """Add vectors under new labels; the copy is made anew at the next search."""
        with self._lock:
            self._copy = None
            self._cpu.add(labels, vectors)

    def remove(self, labels: Labels) -> None:
        """Remove labels."""
        with self._lock:
            if isinstance(self._cpu, FlatIndex):
                self._copy = None  # its rows have moved; in other kinds they stay, without a label
            self._cpu.remove(labels)

    def search(self, queries: Vectors, k: int, *, allowed: Labels | None = None) -> list[Labels]:
        """Return the nearest labels, found on the cards where they can."""
        k = min(k, len(self))
        spare = self._cpu.labels.dead  # removed rows that the copy still finds
        if allowed is not None or k == 0 or k + spare > _MOST:
            return self._cpu.search(queries, k, allowed=allowed)
        with self._lock:
            copy = self._copy if self._copy is not None else self._refresh()
            rows = np.asarray(copy.search(np.ascontiguousarray(queries, np.float32), k + spare)[1])
            found = [self._cpu.labels.by_row[row[row >= 0]] for row in rows]
        return [labels[labels >= 0][:k] for labels in found] if spare else found

    def reconstruct(self, labels: Labels) -> Vectors | None:
        """Return the vectors as they were added, from the CPU, or None."""
        return self._cpu.reconstruct(labels)

    def save(self, path: Path) -> None:
        """Write the CPU index to a file."""
        self._cpu.save(path)

    def _refresh(self) -> Any:
        """Copy the CPU index to the cards; inside the lock."""
        try:
            self._copy = self._copied()
        except RuntimeError as error:
            raise ProviderError(
                f"The index, a {type(self._cpu.faiss_index).__name__}, cannot be copied to GPU "
                f"{', '.join(map(str, self._devices))}: {_last_line(error)}. Take the kind flat, hnsw or "
                "ivf, more or larger cards, or device='cpu'."
            ) from error
        return self._copy

    def _copied(self) -> Any:
        faiss, source = self._faiss, self._cpu.faiss_index
        if isinstance(source, faiss.IndexHNSW):
            source = faiss.downcast_index(source.storage)
            if hasattr(faiss, "GpuIndexCagra") and len(self._devices) == 1:
                return self._cagra(source)
        if len(self._devices) == 1:
            return faiss.index_cpu_to_gpu(self._resources[0], self._devices[0], source)
        options = faiss.GpuMultipleClonerOptions()
        options.shard = self._mode == "shard"
        return faiss.index_cpu_to_gpu_multiple_py(self._resources, source, options, self._devices)

    def _cagra(self, source: Any) -> Any:
        faiss = self._faiss
        settings = faiss.GpuIndexCagraConfig()
        settings.device = self._devices[0]
        graph = faiss.GpuIndexCagra(self._resources[0], source.d, faiss.METRIC_INNER_PRODUCT, settings)
        vectors = faiss.rev_swig_ptr(source.get_xb(), source.ntotal * source.d)
        graph.train(vectors.reshape(source.ntotal, source.d))
        return graph


def _devices(faiss: Any, devices: Sequence[int] | None) -> list[int]:
    if devices is not None and not len(devices):
        raise ConfigError("devices=[] names no card. Pass their numbers, or None for all.")
    if not hasattr(faiss, "StandardGpuResources"):
        raise ProviderError(
            f"This FAISS ({_installed(_FAISS_WHEELS)}) has no GPU support, so the index cannot be put on a "
            f"card. Uninstall it, then install one of: {_WHEELS}. CUDA seen: {_cuda()}. "
            "Or search on the CPU: device='cpu'."
        )
    there = int(faiss.get_num_gpus())
    wanted = list(range(there)) if devices is None else [int(device) for device in devices]
    missing = [device for device in wanted if not 0 <= device < there]
    if missing or not wanted:
        raise ProviderError(
            f"FAISS ({_installed(_FAISS_WHEELS)}) sees {there} GPUs"
            + (f", and there is no GPU {', '.join(map(str, missing))}" if missing else "")
            + f". CUDA seen: {_cuda()}. See that nvidia-smi lists the card and that the wheel's CUDA fits "
            f"the driver; there are {_WHEELS}. Or search on the CPU: device='cpu'."
        )
    return wanted


def _installed(names: Sequence[str]) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _cuda() -> str:
    driver = Path("/proc/driver/nvidia/version")
    try:
        words = driver.read_text("utf-8").splitlines()[0]
    except (OSError, IndexError):
        words = "no NVIDIA driver"
    runtime = _installed(_CUDA_WHEELS)
    return f"{words}, {runtime or 'no CUDA runtime from PyPI'}"


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:300]
