"""The parity gate of the smaller ONNX files: distance to fp32, steadiness in a batch, loss of nDCG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stm_retriever.folder import Manifest
from stm_retriever.onnx_session import open_session
from stm_training.export.parity import (
    LONGEST_CHECKED,
    ParityCase,
    Side,
    Vectors,
    compare,
    random_rows,
    run_graph,
)
from stm_training.export.variant_kinds import VariantKind

_BATCHES = ((1, 1), (1, 3), (3, 33), (5, 130))


@dataclass(frozen=True)
class DevChange:
    """What a variant answers on development queries, against fp32.

    Attributes:
        name: Of the collection.
        queries: How many.
        fp32: nDCG@10 of the fp32 file, 0 to 1.
        variant: nDCG@10 of the variant.
    """

    name: str
    queries: int
    fp32: float
    variant: float

    @property
    def points(self) -> float:
        """The change in points (hundredths); negative is a loss."""
        return 100 * (self.variant - self.fp32)


@dataclass
class VariantReport:
    """What the gate saw of one variant.

    Attributes:
        kind: Which, with its limits.
        size: Bytes of its files.
        cases: Its vectors against those of the same ids alone in the fp32 file.
        spread: How far a coordinate moved between a padded batch (on the right) and the text alone; None
            where the runtime never batches.
        dev: The change on each development set; empty where there is none.
    """

    kind: VariantKind
    size: int
    longest_checked: int
    cases: list[ParityCase] = field(default_factory=list)
    spread: float | None = None
    dev: list[DevChange] = field(default_factory=list)

    @property
    def max_abs_diff(self) -> float:
        """Largest difference in a coordinate over all cases."""
        return max(case.max_abs_diff for case in self.cases)

    @property
    def min_cosine(self) -> float:
        """Smallest cosine over all cases."""
        return float(np.min([case.min_cosine for case in self.cases]))

    def misses(self) -> list[str]:
        """What is over a limit, with the numbers; empty if the variant may be written."""
        kind, found = self.kind, []
        # "not >=" so that NaN is a miss too
        if not self.min_cosine >= kind.min_cosine:
            worst = min(self.cases, key=lambda case: np.nan_to_num(case.min_cosine, nan=-np.inf))
            found.append(
                f"a cosine of {self.min_cosine:.4f} to fp32 at batch {worst.batch} x length {worst.length}, "
                f"padding {worst.padding} (limit {kind.min_cosine:g}, missed by "
                f"{kind.min_cosine - self.min_cosine:.4f})"
            )
        if kind.max_spread is not None and self.spread is not None and not self.spread <= kind.max_spread:
            found.append(
                f"vectors that move by {self.spread:.2g} with their batch (limit {kind.max_spread:g})"
            )
        found += [
            f"{-change.points:.2f} points of nDCG@10 lost on {change.name!r}, {100 * change.fp32:.2f} to "
            f"{100 * change.variant:.2f} over {change.queries} queries (limit {kind.max_loss:g}, missed by "
            f"{-change.points - kind.max_loss:.2f})"
            for change in self.dev
            if not -change.points <= kind.max_loss
        ]
        return found

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers as ``onnx/parity.json`` holds them."""
        return {
            "reference": "fp32",
            "limits": {
                "min_cosine": self.kind.min_cosine,
                "ndcg10_loss_points": self.kind.max_loss,
                "batch_spread": self.kind.max_spread,
            },
            "max_abs_diff": self.max_abs_diff,
            "min_cosine": self.min_cosine,
            "longest_checked": self.longest_checked,
            "batch_spread": self.spread,
            "bytes": self.size,
            "dev": [{**asdict(change), "points": change.points} for change in self.dev],
            "cases": [asdict(case) for case in self.cases],
        }


def compare_variant(
    kind: VariantKind,
    files: Sequence[Path],
    fp32: Sequence[Path],
    manifest: Manifest,
    *,
    vocabulary: int,
    longest: int = LONGEST_CHECKED,
    seed: int = 0,
) -> VariantReport:
    """Runs a variant beside the fp32 file on random ids: batch 1, length 1, both paddings, maximum length.

    Args:
        kind: Which variant.
        files: Its files, the graph first.
        fp32: The files of fp32, the graph first.
        manifest: For the padding id and the maximum length.
        vocabulary: Number of token ids.
        longest: Cap of the longest input tried.
        seed: Of the ids.

    Returns:
        The numbers, without the development queries; nothing is judged yet.
    """
    session, reference = (open_session(paths[0], device="cpu") for paths in (files, fp32))
    pad = manifest.pad_token_id
    longest = min(longest, manifest.max_length)
    size = sum(path.stat().st_size for path in files)
    report = VariantReport(kind, size, longest_checked=longest)
    rows_of = random_rows(vocabulary, pad, seed)
    for batch, length in (*_BATCHES, (1, longest), (2, longest)):
        rows = rows_of(batch, min(length, longest))
        wanted = np.concatenate([run_graph(reference, [row], "none", pad) for row in rows])
        alone = np.concatenate([run_graph(session, [row], "none", pad) for row in rows])
        for side, found in _paddings(kind, session, rows, alone, pad):
            report.cases.append(compare(f"{kind.name} against fp32", rows, side, found, wanted))
            if side == "right":
                report.spread = max(report.spread or 0.0, float(np.abs(found - alone).max()))
    return report


def _paddings(
    kind: VariantKind, session: Any, rows: list[Any], alone: Vectors, pad: int
) -> Iterator[tuple[Side, Vectors]]:
    """The ways in which the runtime or another program may run these rows, and the vectors that they give."""
    yield "none", alone
    if len(rows) > 1 and kind.max_spread is not None:
        sides: tuple[Side, ...] = ("right", "left")
        for side in sides:
            yield side, run_graph(session, rows, side, pad)
