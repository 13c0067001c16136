"""How fast each ONNX file of the retriever folder answers here: measured once, in seconds, for the report.

Nothing that a run decides or hashes depends on these figures; comparisons of speed live in the benchmarks.
"""

from __future__ import annotations

import logging
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stm_retriever import Embedder
from stm_retriever.errors import ArtifactMismatchError
from stm_retriever.folder import read_manifest
from stm_retriever.onnx_session import usable_cpus
from stm_training.report.summary import SpeedSummary, VariantSpeed

logger = logging.getLogger(__name__)

QUERIES, DOCUMENTS = 20, 64
_BATCH = 16
_SECONDS = (
    2.0  # after so long no further query or batch is begun, so that a large model does not take minutes
)


def measure_speed(folder: Path, queries: Sequence[str], documents: Sequence[str]) -> SpeedSummary:
    """Time queries one by one, and documents in batches, with every variant of a retriever folder.

    Args:
        folder: The retriever folder.
        queries: Of these up to 20 are taken, from all over the list.
        documents: Of these up to 64.

    Returns:
        The figures, with the CPU and the threads. A variant that does not give its own vectors on this CPU is
        left out, with a line in the log.
    """
    queries, documents = _spread(queries, QUERIES), _spread(documents, DOCUMENTS)
    found: dict[str, VariantSpeed] = {}
    for name in read_manifest(folder).variants if queries and documents else ():
        try:
            embedder = Embedder.load(folder, variant=name)
        except ArtifactMismatchError as error:
            logger.warning("%s was not timed: %s", name, error)
            continue
        seconds = timed(embedder.encode_query, [[query] for query in queries])
        batches = [documents[start : start + _BATCH] for start in range(0, len(documents), _BATCH)]
        taken = timed(embedder.encode_document, batches, warm_up=documents[:1])
        counted = sum(len(batch) for batch in batches[: len(taken)])
        found[name] = VariantSpeed(
            query_ms=1000 * statistics.median(seconds),
            documents_per_s=counted / sum(taken),
            queries=len(seconds),
            documents=counted,
        )
    return SpeedSummary(cpu=cpu_name(), threads=usable_cpus(), variants=found)


def timed(
    encode: Callable[[list[str]], object],
    calls: Sequence[Sequence[str]],
    *,
    warm_up: Sequence[str] | None = None,
    limit: float = _SECONDS,
) -> list[float]:
    """Seconds of each call, the warm-up not counted.

    Args:
        encode: What is timed.
        calls: The texts of each call; at least one.
        warm_up: Texts of the call before; None: those of the first.
        limit: No further call is begun once all together took so many seconds.
    """
    encode(list(calls[0] if warm_up is None else warm_up))
    found: list[float] = []
    for texts in calls:
        if found and sum(found) >= limit:
            break
        started = time.perf_counter()
        encode(list(texts))
        found.append(time.perf_counter() - started)
    return found


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor as the kernel calls it; its architecture where there is no such list."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown CPU"


def _spread(texts: Sequence[str], count: int) -> list[str]:
    """So many texts at even distances, in their order: the first ones alone are often alike."""
    if len(texts) <= count:
        return list(texts)
    return [texts[number * len(texts) // count] for number in range(count)]
