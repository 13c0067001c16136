"""Geometry of the forest plot: differences to the base with their intervals, on one common scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stm_training.evaluate.compare import SystemResult

_ROW = 40
_TOP = 14
_PLOT = 320
_MARGIN = 22
_TICKS_AIMED_AT = 5


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One system; pixel positions of its interval's ends and of its mean."""

    name: str
    label: str
    y: float
    lo: float
    mid: float
    hi: float


@dataclass(frozen=True, slots=True)
class ForestPlot:
    """A whole plot in pixels.

    Attributes:
        width: Of the drawing.
        height: Of the drawing.
        zero: x of no difference.
        bottom: y of the axis.
        rows: One per system that has an interval.
        ticks: x and label, in points (0-100).
    """

    width: int
    height: int
    zero: float
    bottom: float
    rows: tuple[ForestRow, ...]
    ticks: tuple[tuple[float, str], ...]


def forest_plot(systems: Mapping[str, SystemResult]) -> ForestPlot | None:
    """Lay the plot out; None where no system has an interval."""
    spans = [
        (name, 100 * result.delta, 100 * result.ci95[0], 100 * result.ci95[1])
        for name, result in systems.items()
        if result.delta is not None and result.ci95 is not None
    ]
    if not spans:
        return None
    lowest = min(0.0, *(lo for _, _, lo, _ in spans))
    highest = max(0.0, *(hi for _, _, _, hi in spans))
    step = _tick_step(highest - lowest)
    first, last = math.floor(lowest / step), max(math.ceil(highest / step), math.floor(lowest / step) + 1)

    def x(points: float) -> float:
        return round(_MARGIN + _PLOT * (points / step - first) / (last - first), 2)

    rows = tuple(
        ForestRow(
            name, f"{mid:+.2f} ({lo:+.2f} to {hi:+.2f})", _TOP + _ROW * (index + 0.6), x(lo), x(mid), x(hi)
        )
        for index, (name, mid, lo, hi) in enumerate(spans)
    )
    bottom = float(_TOP + _ROW * len(rows))
    ticks = tuple(
        (x(index * step), f"{index * step:+g}" if index else "0") for index in range(first, last + 1)
    )
    return ForestPlot(_PLOT + 2 * _MARGIN, int(bottom) + 26, x(0.0), bottom, rows, ticks)


def _tick_step(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that gives about five ticks."""
    if span <= 0:
        return 1.0
    raw = span / _TICKS_AIMED_AT
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
