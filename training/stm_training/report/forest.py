"""The forest plot: differences to the base with their intervals, on one common scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from stm_training.evaluate.compare import SystemResult
from stm_training.report.drawing import ACCENT, BAD, INK, LINE, SOFT, inline_svg, new_axes

_ROW, _AROUND = 0.36, 0.75  # inches
_FAR = 3.0  # times the usual size of a difference: such a system would squeeze all others together
_LONGEST_NAME = 28


@dataclass(frozen=True, slots=True)
class Row:
    """One system; differences in points (0-100).

    Attributes:
        name: The system.
        lo: Lower end of its interval.
        mid: Mean difference.
        hi: Upper end.
    """

    name: str
    lo: float
    mid: float
    hi: float

    @property
    def label(self) -> str:
        """The figures in words."""
        return f"{self.mid:+.2f}  ({self.lo:+.2f} to {self.hi:+.2f})"


def rows_of(systems: Mapping[str, SystemResult]) -> list[Row]:
    """The systems that have an interval, in their order."""
    return [
        Row(name, 100 * result.ci95[0], 100 * result.delta, 100 * result.ci95[1])
        for name, result in systems.items()
        if result.delta is not None and result.ci95 is not None
    ]


def limits_of(rows: list[Row]) -> tuple[float, float]:
    """Ends of the scale: around zero and every interval, but for systems that lie far off."""
    usual = median(abs(row.mid) for row in rows)
    near = [row for row in rows if abs(row.mid) <= _FAR * max(usual, 1.0)]
    lowest, highest = min(0.0, *(row.lo for row in near)), max(0.0, *(row.hi for row in near))
    margin = 0.06 * (highest - lowest) or 1.0
    return lowest - margin, highest + margin


def forest_svg(systems: Mapping[str, SystemResult], *, shipped: str = "") -> str | None:
    """Draw the plot.

    A system far from the others (BM25 beside good encoders) gets an arrow at the edge instead of a scale
    that shows nothing else; its figures stand beside it all the same.

    Args:
        systems: Figures on the test queries.
        shipped: Name of the system that ships.

    Returns:
        An ``<svg>`` element; None where no system has an interval.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    rows = rows_of(systems)
    if not rows:
        return None
    figure, axes = new_axes(6.8, _AROUND + _ROW * len(rows))
    low, high = limits_of(rows)
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(0, color=SOFT, lw=1, ls=(0, (3, 3)), zorder=1)
    for place, row in enumerate(rows):
        colour = ACCENT if row.lo > 0 else BAD if row.hi < 0 else INK
        if row.hi < low or row.lo > high:
            edge, marker = (low, "<") if row.hi < low else (high, ">")
            axes.plot([edge], [place], marker=marker, ms=8, color=colour, clip_on=False, zorder=3)
        else:
            axes.plot([max(row.lo, low), min(row.hi, high)], [place, place], color=colour, lw=2.4, zorder=2)
            axes.plot([row.mid], [place], marker="o", ms=7, color=colour, zorder=3)
        axes.annotate(
            row.label,
            (1.04, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=INK,
            annotation_clip=False,
        )
    names = [_short(row.name) + ("  (ships)" if row.name == shipped else "") for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=9, color=INK, parse_math=False)
    axes.tick_params(axis="y", length=0, pad=12)
    axes.tick_params(axis="x", labelsize=9)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.set_xlabel("points of nDCG@10 against the base", fontsize=9, color=SOFT)
    told = "; ".join(f"{row.name}: {row.label}" for row in rows)
    return inline_svg(
        figure, "forest", f"Differences to the base in nDCG@10 points, with 95 % intervals. {told}"
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
