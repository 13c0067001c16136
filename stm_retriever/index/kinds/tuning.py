"""The least search effort that finds the share of the true nearest vectors that was asked for.

Recall is measured on the user's own vectors: the k nearest that the index finds, against the k that an
exact search finds. Kinds that keep codes count what is among their candidates: exact scores decide there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np

from stm_retriever.errors import ConfigError, DataError
from stm_retriever.index.kinds.protocol import Labels, VectorIndex, Vectors

_TIMED = 50  # single searches behind a median
_EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_FACTORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_FETCH_MS = 0.004  # reading one candidate's vector from the store


class Tunable(Protocol):
    """What an index with search parameters offers beside :class:`VectorIndex`."""

    @property
    def parameters(self) -> dict[str, int | float]:
        """The search parameters, as they are set."""
        ...

    def set_parameters(self, values: Mapping[str, int | float]) -> None:
        """Set search parameters."""
        ...

    @property
    def lists(self) -> int:
        """How many inverted lists there are; 0 for other kinds."""
        ...


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        parameters: The search parameters that are now set, for the manifest.
        recall: What they reach.
        p50_ms: Median time of one search, without reading candidates or texts.
        reached: Whether the recall that was asked for is reached.
        message: The outcome in words.
    """

    parameters: dict[str, int | float] = field(default_factory=dict)
    recall: float = 1.0
    p50_ms: float = 0.0
    reached: bool = True
    message: str = ""


def tune(
    index: VectorIndex, queries: Vectors, exact_top: Sequence[Labels] | Labels, *, recall: float, k: int
) -> Tuned:
    """Set an index's search parameters to the least that reach a recall.

    Args:
        index: Is changed: its nprobe, efSearch, k_factor and candidates_factor, whichever it has.
        queries: float32 (n, dimension), of length 1; what users ask is better than documents.
        exact_top: Per query the labels of its k nearest, from an exact search.
        recall: Mean share of those to be found, above 0, at most 1.
        k: How many per query.

    Raises:
        ConfigError: If ``recall`` or ``k`` are out of range.
        DataError: If there are no queries, or not one list of labels per query.
    """
    _check(queries, exact_top, recall, k)
    truth = [np.asarray(labels, np.int64)[:k] for labels in exact_top]
    if not hasattr(index, "set_parameters"):
        reached = _recall(index.search(queries, k), truth)
        text = f"it compares every vector: recall@{k} is {reached:.3f} without tuning"
        return Tuned({}, reached, _milliseconds(index, queries, k), reached >= recall, text)
    best: Tuned | None = None
    for settings, found in _steps(index, queries, truth, recall, k):
        if best is None or _better(found, best, recall):
            best = Tuned(settings, *found, found[0] >= recall)
    if best is None:  # an index without any parameter
        found_recall = _recall(index.search(queries, k * index.candidates_factor), truth)
        milliseconds = _milliseconds(index, queries, k * index.candidates_factor)
        best = Tuned({}, found_recall, milliseconds, found_recall >= recall)
    cast(Tunable, index).set_parameters(best.parameters)
    names = ", ".join(f"{name}={value:g}" for name, value in best.parameters.items()) or "nothing to tune"
    text = f"recall@{k} is {best.recall:.3f} on {len(queries)} queries, at {best.p50_ms:.2f} ms, with {names}"
    if not best.reached:
        text += (
            f"; {recall:g} is not reached even with the widest search. Take another kind, or rebuild the "
            "index if it has grown much since it was made."
        )
    return Tuned(best.parameters, best.recall, best.p50_ms, best.reached, text)


def _steps(
    index: VectorIndex, queries: Vectors, truth: Sequence[Labels], recall: float, k: int
) -> Iterator[tuple[dict[str, int | float], tuple[float, float]]]:
    """Yield settings with (recall, ms), from the least effort on; no further than the target needs."""
    tunable = cast(Tunable, index)
    efforts = list(_efforts(tunable, k))
    if not efforts:
        return
    for factor in _factors(index, efforts[-1], queries, truth, recall, k):
        for effort in efforts:
            settings = {**effort, **({} if factor is None else {"candidates_factor": factor})}
            tunable.set_parameters(settings)
            wanted = k * (factor or 1)
            value = _recall(index.search(queries, wanted), truth)
            fetching = 0.0 if factor is None else _FETCH_MS * wanted
            yield settings, (value, _milliseconds(index, queries, wanted) + fetching)
            if value >= recall:
                break  # more effort takes longer


def _factors(
    index: VectorIndex,
    widest: Mapping[str, int | float],
    queries: Vectors,
    truth: Sequence[Labels],
    recall: float,
    k: int,
) -> list[int | None]:
    """Factors worth trying: the least that suffices for the widest search, and the two after it."""
    tunable = cast(Tunable, index)
    if "candidates_factor" not in tunable.parameters:
        return [None]
    tunable.set_parameters(widest)
    found = index.search(queries, k * _FACTORS[-1])
    enough = [
        place
        for place, factor in enumerate(_FACTORS)
        if _recall([labels[: k * factor] for labels in found], truth) >= recall
    ]
    return list(_FACTORS[enough[0] : enough[0] + 3]) if enough else [_FACTORS[-1]]


def _efforts(index: Tunable, k: int) -> Iterator[dict[str, int | float]]:
    names = index.parameters
    if "nprobe" in names:
        probes, step = 1, 1
        while probes < index.lists:
            yield {"nprobe": probes}
            step = max(1, probes // 4)
            probes += step
        yield {"nprobe": index.lists}
    elif "efSearch" in names:
        for effort in _EFFORTS:
            if effort >= k:
                yield {"efSearch": effort}
    elif "k_factor" in names:
        for factor in _FACTORS:
            yield {"k_factor": float(factor)}
    elif "candidates_factor" in names:
        yield {}


def _better(found: tuple[float, float], best: Tuned, recall: float) -> bool:
    """Whether it reaches the target where the best did not, else in less time, else more of it."""
    if (found[0] >= recall) != best.reached:
        return found[0] >= recall
    return found[1] < best.p50_ms if best.reached else found[0] > best.recall


def _recall(found: Sequence[Labels], truth: Sequence[Labels]) -> float:
    shares = [
        len(np.intersect1d(labels, true)) / len(true)
        for labels, true in zip(found, truth, strict=True)
        if len(true)
    ]
    return float(np.mean(shares)) if shares else 1.0


def _milliseconds(index: VectorIndex, queries: Vectors, wanted: int) -> float:
    times = []
    for number in range(min(_TIMED, len(queries))):
        started = time.perf_counter()
        index.search(queries[number : number + 1], wanted)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def _check(queries: Vectors, exact_top: Sequence[Labels] | Labels, recall: float, k: int) -> None:
    if not 0 < recall <= 1:
        raise ConfigError(f"recall={recall!r}; a share of the nearest vectors is above 0 and at most 1.")
    if k < 1:
        raise ConfigError(f"k={k!r}; at least one vector is searched for.")
    if len(queries) == 0:
        raise DataError("Recall cannot be measured without queries. Pass some, the more the better.")
    if len(exact_top) != len(queries):
        raise DataError(
            f"There are {len(queries)} queries and {len(exact_top)} lists of their nearest. Pass one each."
        )
