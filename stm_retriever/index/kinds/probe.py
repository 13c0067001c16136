"""Try a snapshot out in a process of its own: ``python -m stm_retriever.index.kinds.probe FILE KIND LENGTH``.

Ends with 0 if the file opens, its inner references stay inside it, and searches come back with labels that
it holds. Anything else, a crash too, means that the file is not to be used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stm_retriever.errors import require
from stm_retriever.index.kinds.building import load_index
from stm_retriever.index.kinds.knobs import parts_of
from stm_retriever.index.kinds.protocol import VectorIndex

_SPARE_BYTES = 16 << 30  # address space beside the file; threads' stacks are counted too
_QUERIES = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Try one file out."""
    file, kind, dimension = sys.argv[1:] if arguments is None else arguments
    path = Path(file)
    _limit_memory(path.stat().st_size)
    try_index(path, kind, int(dimension))
    return 0


def try_index(path: Path, kind: str, dimension: int) -> None:
    """Open a file and search it in every way that the index folder does.

    Raises:
        ValueError: If the file contradicts itself, or answers with labels that it does not hold.
        RuntimeError: If FAISS cannot read it.
    """
    index = load_index(kind, dimension, path)
    check_structure(index.faiss_index)  # type: ignore[attr-defined]
    labels = index.labels.by_row  # type: ignore[attr-defined]
    live = np.unique(labels[labels >= 0])
    if (labels < -1).any() or len(live) != len(index):
        raise ValueError("labels are negative or come twice")
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((_QUERIES, dimension), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    some = live[rng.random(len(live)) < 0.5]
    for k in (1, 10, 100):
        for allowed in (None, some, some[:100]):
            found = index.search(queries, k, allowed=allowed)
            if not np.isin(np.concatenate(found), live if allowed is None else allowed).all():
                raise ValueError("a search found labels that are not there")
    _check_stored(index, live[:: max(1, len(live) // 10_000)])


def check_structure(index: Any) -> None:
    """Check that the numbers inside a FAISS index that point to vectors point to vectors it has.

    Raises:
        ValueError: If one does not.
    """
    faiss = require("faiss", extra="cpu", purpose="the vector index")
    for part in parts_of(faiss, index):
        if part.ntotal != index.ntotal:
            raise ValueError(f"a part holds {part.ntotal} vectors, the whole {index.ntotal}")
        if isinstance(part, faiss.IndexHNSW):
            _check_graph(faiss, part)
        elif isinstance(part, faiss.IndexIVF):
            _check_lists(faiss, part)
        elif isinstance(part, faiss.IndexFlatCodes) and part.codes.size() < part.ntotal * part.code_size:
            raise ValueError(f"holds {part.codes.size()} bytes of codes for {part.ntotal} vectors")


def _check_graph(faiss: Any, index: Any) -> None:
    graph, count = index.hnsw, index.ntotal
    check_structure(faiss.downcast_index(index.storage))
    if index.storage.ntotal != count or index.storage.d != index.d:
        raise ValueError(f"a graph of {count} nodes over {index.storage.ntotal} vectors")
    offsets = faiss.vector_to_array(graph.offsets)
    levels = faiss.vector_to_array(graph.levels)
    size = graph.neighbors.size()
    neighbours = faiss.rev_swig_ptr(graph.neighbors.data(), size) if size else np.empty(0, np.int32)
    per_level = faiss.vector_to_array(graph.cum_nneighbor_per_level)
    if len(offsets) != count + 1 or len(levels) != count or offsets[-1] != size or offsets[0] != 0:
        raise ValueError("the graph has other sizes than its vectors")
    if (levels < 1).any() or (levels >= len(per_level)).any() or (np.diff(per_level) < 0).any():
        raise ValueError("the graph has a node of no level")
    if (np.diff(offsets.astype(np.int64)) != per_level[levels]).any():
        raise ValueError("the graph has a node with another number of links than its level has")
    if size and (neighbours.min() < -1 or neighbours.max() >= count):
        raise ValueError("the graph has a link to a node that is not there")
    top = int(graph.max_level)
    if count and not (0 <= graph.entry_point < count and levels[graph.entry_point] == top + 1):
        raise ValueError("the graph starts at a node that is not there")
    _check_links(neighbours, offsets, levels, per_level)


def _check_links(neighbours: Any, offsets: Any, levels: Any, per_level: Any) -> None:
    """A link above the ground must lead to a node of that level: FAISS goes on from there."""
    for level in range(1, int(levels.max(initial=0))):
        nodes = np.flatnonzero(levels > level)
        width = int(per_level[level + 1] - per_level[level])
        places = offsets[nodes].astype(np.int64)[:, None] + int(per_level[level]) + np.arange(width)
        linked = neighbours[places.ravel()]
        if (levels[linked[linked >= 0]] <= level).any():
            raise ValueError("the graph has a link to a node of a lower level")


def _check_lists(faiss: Any, index: Any) -> None:
    count, lists = index.ntotal, index.invlists
    if lists.nlist != index.nlist or index.quantizer.ntotal != index.nlist or index.quantizer.d != index.d:
        raise ValueError(f"{index.nlist} lists, but {index.quantizer.ntotal} centres")
    check_structure(faiss.downcast_index(index.quantizer))
    seen = np.zeros(count, np.bool_)
    for number in range(index.nlist):
        size = lists.list_size(number)
        if size:
            rows = faiss.rev_swig_ptr(lists.get_ids(number), size)
            if rows.min() < 0 or rows.max() >= count:
                raise ValueError("a list names a vector that is not there")
            seen[rows] = True
    if not seen.all() or lists.compute_ntotal() != count:
        raise ValueError("the lists do not hold every vector once")
    if not index.direct_map.no():
        places = faiss.vector_to_array(index.direct_map.array).astype(np.uint64)
        number, offset = (places >> np.uint64(32)).astype(np.int64), places & np.uint64(0xFFFFFFFF)
        sizes = np.array([lists.list_size(one) for one in range(index.nlist)], np.uint64)
        if len(places) != count or (number >= index.nlist).any() or (offset >= sizes[number]).any():
            raise ValueError("the map from vectors to lists leads out of them")


def _check_stored(index: VectorIndex, labels: Any) -> None:
    vectors = index.reconstruct(labels)
    if vectors is not None and not np.isfinite(vectors).all():
        raise ValueError("holds vectors that are not finite")


def _limit_memory(size: int) -> None:
    """A length field may claim anything; the system's memory is not to be taken for it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit = _SPARE_BYTES + 4 * size
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if most < 0 else min(limit, most), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except Exception as error:  # one line for the parent, whatever it is
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        raise SystemExit(1) from None
