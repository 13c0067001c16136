"""Kinds that look at a part of the vectors, or at codes of them: any FAISS index behind one interface.

FAISS's rows only ever grow: what is removed keeps its row without a label until the index is rebuilt, since
a graph cannot give up a node, and the other kinds would renumber theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stm_retriever.index.kinds.files import write_rows
from stm_retriever.index.kinds.flat import best_of
from stm_retriever.index.kinds.knobs import parts_of, read_knobs, search_parameters, turn_knobs
from stm_retriever.index.kinds.labelled import LabelledIndex
from stm_retriever.index.kinds.protocol import Labels, Vectors
from stm_retriever.index.kinds.recipes import Recipe, fits

_DEAD_SHARE = 0.3
_GROWN = 4  # times the size that the lists were made for
_FEW = 0.05  # share of matches up to which a graph's vectors are compared one by one
_RARE = 0.2  # share of matches up to which every inverted list is visited


class ApproximateIndex(LabelledIndex):
    """A FAISS index, the labels of its rows, and exact answers where few labels are allowed."""

    def __init__(
        self,
        recipe: Recipe,
        index: Any,
        labels: Labels | None = None,
        *,
        mapped: bool = False,
        parameters: Mapping[str, int | float] | None = None,
        advice: Callable[[int], str | None] | None = None,
    ) -> None:
        """Take a FAISS index that is trained.

        Args:
            recipe: What kind it is.
            index: The FAISS index, of rows 0 to n - 1.
            labels: The labels of its rows.
            mapped: Whether its vectors lie in a mapped file, which is not changed.
            parameters: nprobe, efSearch, k_factor, candidates_factor; others than its own are ignored.
            advice: Gives a reason to rebuild, from the count, beside those that are seen here.
        """
        super().__init__(labels, mapped=mapped)
        self._recipe = recipe
        self._index = index
        self._advice = advice
        self._set_parts()
        self._candidates = 1 if self._exact else recipe.candidates
        self.set_parameters(parameters or {})

    # Changing ----------------------------------------------------------------------------------------------

    def remove(self, labels: Labels) -> None:
        """Remove labels; their rows stay, and are passed over."""
        rows = np.unique(self._labels.find(np.asarray(labels, np.int64)))
        if len(rows):
            self._labels.bury(rows)

    def save(self, path: Path) -> None:
        """Write to a file, the removed rows too."""
        write_rows(self._index, self._labels.by_row, path)

    # Searching ---------------------------------------------------------------------------------------------

    def search(self, queries: Vectors, k: int, *, allowed: Labels | None = None) -> list[Labels]:
        """Return the nearest labels that the index finds."""
        if allowed is not None:
            return self._search_among(queries, k, self._labels.find(allowed))
        k = min(k, len(self._labels))
        if k == 0:
            return [np.empty(0, np.int64) for _ in queries]
        bits = self._labels.live_bits() if self._labels.dead else None
        return self._named(self._search_rows(queries, k, bits, 1.0), queries, k, bits)

    def reconstruct(self, labels: Labels) -> Vectors | None:
        """Return the vectors as they were added, or None if the kind keeps codes.

        Raises:
            KeyError: If a label is not there.
        """
        if not self._exact:
            return None  # asking FAISS for a decoded vector ends the process for some kinds
        rows = self._labels.find(labels)
        if len(rows) != len(labels):
            raise KeyError(f"{len(labels) - len(rows)} of {len(labels)} labels are not in the index")
        return self._vectors_of(rows)

    # Tuning ------------------------------------------------------------------------------------------------

    @property
    def keeps_vectors(self) -> bool:
        """Whether it holds the vectors as they were added, and not only codes of them."""
        return bool(self._exact)

    @property
    def candidates_factor(self) -> int:
        """How many times k candidates to ask for."""
        return self._candidates

    @property
    def parameters(self) -> dict[str, int | float]:
        """The search parameters, as they are set."""
        found = read_knobs(self._faiss, self._index)
        if not self._exact:
            found["candidates_factor"] = self._candidates
        return found

    def set_parameters(self, values: Mapping[str, int | float]) -> None:
        """Set search parameters; those that the kind does not have are ignored."""
        turn_knobs(self._faiss, self._index, values)
        if not self._exact:
            self._candidates = max(1, int(values.get("candidates_factor", self._candidates)))

    @property
    def lists(self) -> int:
        """How many inverted lists there are; 0 for other kinds."""
        return 0 if self._inverted is None else int(self._inverted.nlist)

    @property
    def faiss_index(self) -> Any:
        """The FAISS index itself, for a copy on another device; not to be changed."""
        return self._index

    @property
    def stale(self) -> str | None:
        """Why a rebuild would help, or None."""
        count, dead = self._labels.count, self._labels.dead
        if dead > _DEAD_SHARE * count:
            return f"{dead} of {count} vectors are of deleted documents and still passed over in every search"
        if self.lists and count > _GROWN * fits(self.lists):
            return f"it holds {count} vectors in {self.lists} lists, which were made for {fits(self.lists)}"
        return None if self._advice is None else self._advice(len(self))

    # -------------------------------------------------------------------------------------------------------

    def _set_parts(self) -> None:
        innermost = list(parts_of(self._faiss, self._index))[-1]
        self._exact = type(self._index) in (self._faiss.IndexHNSWFlat, self._faiss.IndexIVFFlat)
        self._inverted = innermost if isinstance(innermost, self._faiss.IndexIVF) else None
        self._graph = innermost if isinstance(innermost, self._faiss.IndexHNSW) else None
        self._storage: Any = None if self._graph is None else self._faiss.downcast_index(self._graph.storage)
        # FAISS scans codes in registers many at a time, but one by one as soon as there is a selector.
        self._scans_fast = isinstance(innermost, self._faiss.IndexIVFFastScan)
        if self._exact and self._inverted is not None and self._inverted.direct_map.no():
            self._inverted.make_direct_map()

    def _search_rows(
        self, queries: Vectors, k: int, bits: npt.NDArray[np.uint8] | None, widen: float
    ) -> npt.NDArray[np.int64]:
        if bits is None and widen == 1.0:
            found: npt.NDArray[np.int64] = self._index.search(queries, k)[1]
            return found
        if bits is not None and widen == 1.0 and self._scans_fast:
            return self._sift(queries, k, bits, rounds=2)
        selector = None if bits is None else self._faiss.IDSelectorBitmap(bits)
        try:
            chosen = search_parameters(self._faiss, self._index, selector, widen=widen)
            found = self._index.search(queries, k, params=chosen)[1]
        except RuntimeError as error:
            if bits is None or "params" not in str(error):
                raise
            found = self._sift(queries, k, bits, rounds=64)
        return found

    def _search_among(self, queries: Vectors, k: int, rows: Labels) -> list[Labels]:
        k = min(k, len(rows))
        if k == 0:
            return [np.empty(0, np.int64) for _ in queries]
        share = len(rows) / self._labels.count
        if share <= _FEW or len(rows) <= 1000:
            few = self._vectors_of(rows)
            if few is not None:
                return best_of(queries, few, np.arange(len(rows)), self._labels.by_row[rows], k)
        widen = 1 / share if self._graph is not None else (math.inf if share <= _RARE else 1.0)
        bits = self._labels.bits_of(rows)
        return self._named(self._search_rows(queries, k, bits, widen), queries, k, bits)

    def _named(
        self, rows: npt.NDArray[np.int64], queries: Vectors, k: int, bits: npt.NDArray[np.uint8] | None
    ) -> list[Labels]:
        """Turn rows into labels; where fewer than k were found, look everywhere."""
        if rows.min(initial=0) >= 0:
            return list(self._labels.by_row[rows])
        short = np.flatnonzero((rows < 0).any(axis=1))
        rows[short] = self._search_everywhere(queries[short], k, bits)
        return [self._labels.by_row[row[row >= 0]] for row in rows]

    def _search_everywhere(
        self, queries: Vectors, k: int, bits: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.int64]:
        if self._graph is not None and self._graph is self._index:
            selector = None if bits is None else self._faiss.IDSelectorBitmap(bits)
            chosen = self._faiss.SearchParameters(sel=selector)
            found: npt.NDArray[np.int64] = self._storage.search(queries, k, params=chosen)[1]
            return found
        return self._search_rows(queries, k, bits, math.inf)

    def _sift(
        self, queries: Vectors, k: int, bits: npt.NDArray[np.uint8], rounds: int
    ) -> npt.NDArray[np.int64]:
        """Search without a selector: ask for more, and drop what is not allowed; -1 for what is missing.

        Args:
            queries: float32 (n, dimension).
            k: How many per query.
            bits: Which rows are allowed.
            rounds: How often to ask, for four times as many each time.
        """
        count = self._labels.count
        allowed = np.unpackbits(bits, bitorder="little")[:count].astype(np.bool_)
        wanted = min(count, 2 * k * math.ceil(count / max(1, int(allowed.sum()))))
        while True:
            rows = self._index.search(queries, wanted)[1]
            good = (rows >= 0) & allowed[rows]
            rounds -= 1
            if rounds == 0 or wanted == count or int(good.sum(axis=1).min(initial=k)) >= k:
                break
            wanted = min(count, 4 * wanted)
        kept = np.full((len(queries), k), -1, np.int64)
        for place, (row, is_good) in enumerate(zip(rows, good, strict=True)):
            found = row[is_good][:k]
            kept[place, : len(found)] = found
        return kept

    def _vectors_of(self, rows: Labels) -> Vectors | None:
        """Vectors of some rows for exact inner products, or None if that is no cheaper than a search."""
        stored = self._stored()
        if stored is not None:
            return stored[rows]
        if self._exact:
            found: Vectors = self._index.reconstruct_batch(rows)
            return found
        return self._signs(rows) if isinstance(self._index, self._faiss.IndexLSH) else None

    def _stored(self) -> Vectors | None:
        """All vectors by row as a view, where they lie side by side as they were added."""
        if self._graph is None or not self._exact:
            return None
        return self._view_of(self._storage)

    def _signs(self, rows: Labels) -> Vectors:
        """Decode rows of a 1-bit index to -1 and 1, which multiply with a query as it is."""
        width = self._index.code_size
        codes = self._faiss.rev_swig_ptr(self._index.codes.data(), self._labels.count * width)
        bits = np.unpackbits(codes.reshape(-1, width)[rows], axis=1, bitorder="little")[:, : self._index.d]
        return bits.astype(np.float32) * 2 - 1

    def _own(self) -> None:
        """Copy a mapped file, and set the copy as this one was."""
        if self._mapped:
            settings = self.parameters
            super()._own()
            self._set_parts()
            self.set_parameters(settings)
