"""Search parameters of a FAISS index, however it is put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NAMES = ("nprobe", "efSearch", "k_factor")


def parts_of(faiss: Any, index: Any) -> Iterator[Any]:
    """Yield the index, then what it is wrapped around, from outside to inside."""
    while True:
        yield index
        if isinstance(index, faiss.IndexPreTransform):
            index = faiss.downcast_index(index.index)
        elif isinstance(index, faiss.IndexRefine):
            index = faiss.downcast_index(index.base_index)
        else:
            return


def read_knobs(faiss: Any, index: Any) -> dict[str, int | float]:
    """Return the search parameters that an index has, as they are set."""
    found: dict[str, int | float] = {}
    for part in parts_of(faiss, index):
        if isinstance(part, faiss.IndexRefine):
            found["k_factor"] = float(part.k_factor)
        elif isinstance(part, faiss.IndexIVF):
            found["nprobe"] = int(part.nprobe)
        elif isinstance(part, faiss.IndexHNSW):
            found["efSearch"] = int(part.hnsw.efSearch)
    return found


def turn_knobs(faiss: Any, index: Any, values: Mapping[str, int | float]) -> None:
    """Set search parameters; those that the index does not have are left alone."""
    for part in parts_of(faiss, index):
        if isinstance(part, faiss.IndexRefine) and "k_factor" in values:
            part.k_factor = float(values["k_factor"])
        elif isinstance(part, faiss.IndexIVF) and "nprobe" in values:
            part.nprobe = max(1, min(int(values["nprobe"]), part.nlist))
        elif isinstance(part, faiss.IndexHNSW) and "efSearch" in values:
            part.hnsw.efSearch = max(1, int(values["efSearch"]))


def search_parameters(faiss: Any, index: Any, selector: Any, *, widen: float = 1.0) -> Any:
    """Make the parameters of one search among the rows that a selector lets through.

    Args:
        faiss: The module.
        index: What is searched.
        selector: A FAISS ``IDSelector``, or None for all rows.
        widen: How many times as far as usual the search looks; infinity for everywhere.
    """
    if isinstance(index, faiss.IndexPreTransform):
        inner = search_parameters(faiss, faiss.downcast_index(index.index), selector, widen=widen)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = search_parameters(faiss, faiss.downcast_index(index.base_index), selector, widen=widen)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=int(min(index.nlist, index.nprobe * widen)))
    if isinstance(index, faiss.IndexHNSW):
        reach = int(min(max(index.ntotal, 1), index.hnsw.efSearch * widen))
        return faiss.SearchParametersHNSW(sel=selector, efSearch=reach)
    return faiss.SearchParameters(sel=selector)
