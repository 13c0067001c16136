"""What each kind of index is made of: its FAISS type by size, training, candidates, search parameters.

Figures behind the choices: recall@10 on 8,000 passages of MedQuAD and Evidence Inference under
all-MiniLM-L6-v2, 1,000 questions; times on 200,000 vectors of 384 dimensions, one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stm_retriever.errors import ConfigError
from stm_retriever.index.kinds.knobs import parts_of, turn_knobs

FACTORY = "factory:"
KINDS = ("flat", "hnsw", "ivf", "ivf-pq", "sq8", "rabitq", "binary")
FLAT_NUMBERS = 50_000 * 384  # numbers that a flat search reads in some 4 ms on one thread
HNSW_BYTES = 8 << 30  # memory that the graph and its vectors may take where nobody chose
_HNSW_LINKS = 32
_REACH = 64  # efSearch where nobody tuned it
_PER_LIST = 39  # training vectors per inverted list; FAISS warns below
_ROUNDS = 10  # of k-means
_LISTED = 1_000_000  # training vectors at most


@dataclass(frozen=True)
class Recipe:
    """How to make one kind of index.

    Attributes:
        name: The kind.
        make: ``(faiss, dimension, lists)`` to an empty FAISS index.
        least: Vectors that it needs to be trained; 0 if it needs none.
        per_list: Training vectors per inverted list that are used at most; 0 where there are no lists.
        candidates: How many times k candidates, for exact scores to choose from, reach a recall@10 of 0.95.
    """

    name: str
    make: Callable[[Any, int, int], Any]
    least: int = 0
    per_list: int = 0
    candidates: int = 1

    def training_size(self, expected: int) -> int:
        """Return how many vectors to train on, for an index that will hold so many."""
        if self.least == 0:
            return 0
        if self.per_list == 0:
            return min(expected, 50_000)
        return min(expected, _LISTED, max(self.least, lists_for(expected) * self.per_list))


def lists_for(count: int, training: int | None = None) -> int:
    """Return how many inverted lists suit an index of that size, trained on so many vectors."""
    trainable = (count if training is None else training) // _PER_LIST
    return max(4, min(round(2 * math.sqrt(count)), trainable, 65_536))


def fits(lists: int) -> int:
    """Return the size that so many lists are right for."""
    return max(lists * lists // 4, lists * _PER_LIST)


def probes_for(lists: int) -> int:
    """Return how many lists a search visits where nobody tuned it.

    The share falls with the square root: 47 of 178 lists find 0.97 of the ten nearest.
    """
    return min(lists, math.ceil(3.5 * math.sqrt(lists)))


def check_kind(kind: str) -> None:
    """Raise :class:`ConfigError` unless there is such a kind of index."""
    if kind in KINDS or kind == "auto":
        return
    if kind.startswith(FACTORY) and kind.removeprefix(FACTORY).strip():
        if "idmap" in kind.lower():
            raise ConfigError(
                f"kind={kind!r} maps ids itself, which the index folder does already. Leave IDMap out."
            )
        return
    raise ConfigError(
        f"kind={kind!r} is no kind of index. Take one of: auto, {', '.join(sorted(KINDS))}, or a FAISS "
        f"factory string such as '{FACTORY}HNSW32,SQ8'."
    )


def resolve_kind(kind: str, *, count: int, dimension: int) -> tuple[str, str]:
    """Say which kind to build.

    Args:
        kind: A kind, or ``"auto"``: by size.
        count: How many vectors there will be.
        dimension: Of each.

    Returns:
        The kind, and why, in words.

    Raises:
        ConfigError: If there is no such kind.
    """
    check_kind(kind)
    if kind != "auto":
        return kind, "asked for"
    if count * dimension <= FLAT_NUMBERS:
        return "flat", f"{count} vectors of {dimension} dimensions are compared one by one in milliseconds"
    needed = count * (4 * dimension + 2 * 4 * _HNSW_LINKS)
    words = f"{count} vectors of {dimension} dimensions are too many to compare with every query"
    if needed <= HNSW_BYTES:
        return "hnsw", f"{words}, and a graph over them takes {needed / (1 << 30):.1f} GiB"
    return "ivf-pq", f"{words}, and a graph over them would take {needed / (1 << 30):.1f} GiB of memory"


def recipe_of(kind: str) -> Recipe:
    """Return the recipe of a kind other than flat and auto."""
    if kind.startswith(FACTORY):
        return _factory(kind)
    return _RECIPES[kind]


def train(index: Any, vectors: Any) -> None:
    """Train a FAISS index on a bounded sample, in a bounded number of rounds."""
    for part in (index, getattr(index, "pq", None)):
        clustering = getattr(part, "cp", None)
        if clustering is not None:
            clustering.niter = _ROUNDS
            clustering.min_points_per_centroid = (
                1  # FAISS prints a warning otherwise, which nobody can act on
            )
            clustering.max_points_per_centroid = max(64, _PER_LIST)
    index.train(vectors)


def _hnsw(faiss: Any, dimension: int, lists: int) -> Any:
    index = faiss.IndexHNSWFlat(dimension, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    index.hnsw.efSearch = _REACH
    return index


def _listed(rest: Callable[[int], str]) -> Callable[[Any, int, int], Any]:
    def make(faiss: Any, dimension: int, lists: int) -> Any:
        description = f"IVF{lists},{rest(dimension)}"
        index = faiss.index_factory(dimension, description, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = probes_for(lists)
        return index

    return make


def _half(dimension: int) -> str:
    # Two dimensions in four bits, scanned in registers: trained in a second, where eight bits take minutes.
    return f"PQ{dimension // 2 if dimension % 2 == 0 else dimension}x4fs"


def _binary(faiss: Any, dimension: int, lists: int) -> Any:
    return faiss.IndexLSH(dimension, dimension, False, False)  # the sign of each number


def _sq8(faiss: Any, dimension: int, lists: int) -> Any:
    return faiss.index_factory(dimension, "SQ8", faiss.METRIC_INNER_PRODUCT)


def _factory(kind: str) -> Recipe:
    description = kind.removeprefix(FACTORY).strip()

    def make(faiss: Any, dimension: int, lists: int) -> Any:
        try:
            index = faiss.index_factory(dimension, description, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            cause = str(error).rpartition("Error: ")[2].strip() or str(error)
            raise ConfigError(
                f"kind={kind!r}: FAISS makes no index of {dimension} dimensions from that ({cause:.200}). "
                "See 'The index factory' in FAISS's documentation, or take a plain kind: " + ", ".join(KINDS)
            ) from error
        _widen(faiss, index)
        return index

    lossless = description.endswith(",Flat") or description.endswith("Refine(Flat)")
    return Recipe(kind, make, least=1000, candidates=1 if lossless else 8)


def _widen(faiss: Any, index: Any) -> None:
    """FAISS's own defaults, one list or 16 nodes, find half of the nearest."""
    probes = probes_for(next((part.nlist for part in parts_of(faiss, index) if hasattr(part, "nlist")), 1))
    turn_knobs(faiss, index, {"nprobe": probes, "efSearch": _REACH})


_RECIPES = {
    "hnsw": Recipe("hnsw", _hnsw),
    "ivf": Recipe("ivf", _listed(lambda _: "Flat"), least=1000, per_list=64),
    "ivf-pq": Recipe("ivf-pq", _listed(_half), least=2000, per_list=64, candidates=6),
    "sq8": Recipe("sq8", _sq8, least=256, candidates=2),
    "rabitq": Recipe("rabitq", _listed(lambda _: "RaBitQ"), least=1000, per_list=64, candidates=8),
    "binary": Recipe("binary", _binary, candidates=16),
}
