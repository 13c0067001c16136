"""Rough products in bfloat16 to find candidates, exact fp32 scores of those: the same ranking, sooner.

CPUs with bfloat16 instructions multiply such matrices twice as fast as fp32, and the product of queries and
corpus is most of what mining takes. How far a rough score may be off follows from the vectors' own rounding
errors, so no candidate is lost.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

import numpy as np

from stm_training.mining.nearest import (
    Block,
    DenseScorer,
    Floats,
    Ints,
    Top,
    best_of,
    lower_bounds,
    where_at_least,
)
from stm_training.mining.vectors import LENGTH_TOLERANCE

if TYPE_CHECKING:
    import torch

_WORTH_IT = 10**9  # multiplications; below, fp32 takes milliseconds
_DEEPEST_SHARE = 0.05  # of the corpus; where more is wanted, too many scores would be made twice
_ROUNDING = 2.0**-8  # largest relative error of a number rounded to bfloat16
_LONGEST = np.float32(1 + LENGTH_TOLERANCE)  # vector
_SUM_ERROR = 1e-4  # of fp32 sums of some thousand products of unit vectors
_EXCLUDED = -(2**15)  # as an int16 below every bfloat16


def dense_scorer(queries: Floats, documents: Floats, columns: int, max_rank: int | None) -> DenseScorer:
    """The faster scorer of those that can run here; they rank alike, but for the rounding of fp32.

    Torch is used where it is loaded already, as it is wherever a model is trained; it is never imported for
    this, which would take longer than is gained.

    Args:
        queries: (n, d) float32, of unit length.
        documents: (m or more, d) float32, of unit length.
        columns: m.
        max_rank: How deep rankings go.
    """
    large = len(queries) * columns * queries.shape[1] >= _WORTH_IT
    shallow = max_rank is not None and max_rank <= _DEEPEST_SHARE * columns
    if large and shallow and "torch" in sys.modules:
        import torch

        from stm_training.finetune.precision import multiplies_bf16

        if multiplies_bf16(torch.device("cpu")):
            return Bfloat16Scorer(queries, documents, columns)
    return DenseScorer(queries, documents, columns)


class Bfloat16Scorer(DenseScorer):
    """As :class:`DenseScorer`, by way of rough scores; needs torch."""

    def __init__(self, queries: Floats, documents: Floats, columns: int) -> None:
        super().__init__(queries, documents, columns)
        import torch

        self._torch = torch
        self._exact = torch.from_numpy(queries), torch.from_numpy(documents)
        self._rough = self._exact[0].bfloat16(), self._exact[1].bfloat16()
        self._product = torch.empty(0, dtype=torch.bfloat16)
        query_errors, document_errors = (
            _rounding_errors(exact, rough) for exact, rough in zip(self._exact, self._rough, strict=True)
        )
        # |q.d - q'.d'| <= |q - q'| |d| + |q'| |d - d'|, by Cauchy and Schwarz.
        self._errors: Floats = (
            query_errors * _LONGEST
            + (query_errors + _LONGEST) * document_errors.max(initial=0)
            + np.float32(_SUM_ERROR)
        )

    def top(self, block: Block, k: int) -> Top:
        """See :class:`stm_training.mining.nearest.Scorer`."""
        rough = self._rough_scores(block)
        rough[block.rows, block.columns] = _EXCLUDED
        k = min(k, rough.shape[1])
        bounds = _as_floats(lower_bounds(rough, k))
        error = self._errors[block.start : block.stop]
        # k rough scores reach the bound, so k exact ones reach what it stands for at least; and this is the
        # least rough score of an exact one as good as those.
        at_least = bounds * np.float32(1 - 1.01 * _ROUNDING) - error
        least = (at_least - error) * np.float32(1 - _ROUNDING)
        if not (least > 0).all():  # the bits of negative numbers have another order
            return super().top(block, k)
        row, column = where_at_least(rough, _as_bits(least))
        excluded = self.pairs(block.rows + block.start, block.columns + block.first)
        scores = self._many_pairs(row + block.start, column + block.first)
        return Top(*best_of(row, column, scores, len(rough), k), excluded)

    def _many_pairs(self, rows: Ints, columns: Ints) -> Floats:
        """As ``pairs`` for at least one pair, rows in rising order; copies no vectors."""
        torch, (queries, documents) = self._torch, self._exact
        first, last = int(rows[0]), int(rows[-1]) + 1
        starts = np.searchsorted(rows, np.arange(first, last + 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "sparse CSR is in beta"
            wanted = torch.sparse_csr_tensor(
                torch.from_numpy(starts),
                torch.from_numpy(np.ascontiguousarray(columns)),
                torch.zeros(len(rows)),
                size=(last - first, len(documents)),
            )
            found = torch.sparse.sampled_addmm(wanted, queries[first:last], documents.T, beta=0.0)
        scores: Floats = found.values().numpy()
        return scores

    def _rough_scores(self, block: Block) -> np.ndarray[tuple[int, int], np.dtype[np.int16]]:
        """Bits of rough scores as int16: in the order of the scores, where these are positive."""
        torch, (queries, documents) = self._torch, self._rough
        shape = (block.stop - block.start, block.last - block.first)
        if self._product.numel() < shape[0] * shape[1]:
            self._product = torch.empty(shape[0] * shape[1], dtype=torch.bfloat16)
        product = self._product[: shape[0] * shape[1]].view(*shape)
        torch.mm(queries[block.start : block.stop], documents[block.first : block.last].T, out=product)
        bits: np.ndarray[tuple[int, int], np.dtype[np.int16]] = product.view(torch.int16).numpy()
        return bits


def _rounding_errors(exact: torch.Tensor, rough: torch.Tensor) -> Floats:
    """(n,) distance of every vector from its rounded form."""
    step = 1024  # rows that stay in the cache
    errors = [
        rough[start : start + step].float().sub_(exact[start : start + step]).norm(dim=1).numpy()
        for start in range(0, len(exact), step)
    ]
    return np.concatenate(errors) if errors else np.empty(0, dtype=np.float32)


def _as_floats(bits: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> Floats:
    return (bits.astype(np.int32) << 16).view(np.float32)


def _as_bits(positive: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """Positive numbers as bfloat16, rounded down."""
    return (np.ascontiguousarray(positive, dtype=np.float32).view(np.int32) >> 16).astype(np.int16)
