"""Charts of the merging: domain against general quality, and the lambda curve, as SVG to put into a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stm_training.report.drawing import ACCENT, GOOD, INK, LINE, SOFT, WARM, inline_svg, new_axes

if TYPE_CHECKING:
    from stm_training.merge.fusion import FusionCurve

Kind = Literal["base", "expert", "all_data", "merge"]

_MARKERS: dict[Kind, tuple[str, str, str]] = {
    "base": ("s", INK, "base"),
    "expert": ("^", WARM, "experts"),
    "all_data": ("D", INK, "all data at once"),
    "merge": ("o", ACCENT, "merges"),
}
_MOST_NAMED = 12  # names beyond this many would cover each other


@dataclass(frozen=True)
class ChartPoint:
    """One system on development queries; scores between 0 and 1.

    Attributes:
        name: Shown beside the point, except for merges.
        kind: What it is.
        domain: Mean over development sets.
        general: Mean over guards.
        worst_guard_loss: Largest loss on one guard to the base, in points (0-100).
    """

    name: str
    kind: Kind
    domain: float
    general: float
    worst_guard_loss: float = 0.0


def pareto_svg(
    points: Sequence[ChartPoint],
    *,
    max_guard_loss: float,
    chosen: str | None = None,
    front: Iterable[str] = (),
) -> str | None:
    """Domain against general quality, in points against the base.

    Filled points may ship by ``max_guard_loss``, hollow ones may not. The shaded region is where the mean
    over guards allows it; with several guards one of them alone may still forbid a point there.

    Args:
        points: All systems, one of them the base.
        max_guard_loss: In points (0-100).
        chosen: Name of what was chosen.
        front: Names on the Pareto set, joined by a line.

    Returns:
        An ``<svg>`` element that needs nothing from elsewhere, the same for the same arguments; None
        without a base.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    base = next((point for point in points if point.kind == "base"), None)
    if base is None:
        return None
    figure, axes = new_axes()
    axes.axvline(-max_guard_loss, color=GOOD, lw=1, ls="--")
    axes.axhline(0, color=LINE, lw=0.8)
    for kind, (marker, colour, label) in _MARKERS.items():
        mine = [point for point in points if point.kind == kind]
        for allowed in (True, False):
            some = [point for point in mine if (point.worst_guard_loss <= max_guard_loss + 1e-7) is allowed]
            if some:
                axes.scatter(
                    [100 * (point.general - base.general) for point in some],
                    [100 * (point.domain - base.domain) for point in some],
                    s=34,
                    marker=marker,
                    facecolors=colour if allowed else "none",
                    edgecolors=colour,
                    label=label if allowed else f"{label}, not allowed",
                    zorder=3,
                )
    _draw_front(axes, points, base, set(front))
    _name_points(axes, points, base, chosen)
    _draw_region(axes, points, base, max_guard_loss)
    axes.set_xlabel("general: mean of the guards, points of nDCG@10 against the base")
    axes.set_ylabel("domain: mean of dev, points against the base")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    best = next((point for point in points if point.name == chosen), None)
    told = f"{len(points)} systems" + ("" if best is None else f", chosen: {best.name}")
    return inline_svg(figure, "pareto", f"Domain against general quality on development queries; {told}")


def lambda_svg(curve: FusionCurve, *, max_guard_loss: float | None = None) -> str:
    """Quality against the tuned model's share in fused vectors; see ``merge.fusion.lambda_curve``.

    Args:
        curve: The curve.
        max_guard_loss: In points (0-100): draws how far the others may fall; None: not drawn.

    Returns:
        An ``<svg>`` element.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    figure, axes = new_axes()
    base = curve.points[0]
    shares = [point.share for point in curve.points]
    domain = [100 * (point.domain - base.domain) for point in curve.points]
    axes.plot(shares, domain, color=ACCENT, marker="o", ms=4, label="in the domain")
    if base.general is not None:
        general = [100 * ((point.general or 0.0) - base.general) for point in curve.points]
        axes.plot(shares, general, color=WARM, marker="^", ms=4, label="outside of it (mean)")
        worst = [-point.worst_loss for point in curve.points]
        axes.plot(shares, worst, color=WARM, lw=1, ls=":", label="outside of it (worst)")
        if max_guard_loss is not None:
            axes.axhline(-max_guard_loss, color=GOOD, lw=1, ls="--", label="allowed by the guards")
    axes.axhline(0, color=LINE, lw=0.8)
    axes.axvline(curve.default, color=SOFT, lw=1, ls="--", label=f"default ({curve.default:g})")
    axes.set_xlabel("lambda: share of the tuned model in the vector")
    axes.set_ylabel("points of nDCG@10 against the base")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    return inline_svg(figure, "lambda", f"Fused vectors by lambda from 0 to 1. {curve.cost.statement}")


def _draw_front(axes: Any, points: Sequence[ChartPoint], base: ChartPoint, names: set[str]) -> None:
    front = sorted((point for point in points if point.name in names), key=lambda point: point.general)
    if len(front) > 1:
        axes.step(
            [100 * (point.general - base.general) for point in front],
            [100 * (point.domain - base.domain) for point in front],
            where="pre",  # between two points, what the right one surely reaches
            color=ACCENT,
            lw=1.2,
            label="Pareto set",
        )


def _name_points(axes: Any, points: Sequence[ChartPoint], base: ChartPoint, chosen: str | None) -> None:
    named = [point for point in points if point.kind != "merge"][:_MOST_NAMED]
    for point in points:
        x, y = 100 * (point.general - base.general), 100 * (point.domain - base.domain)
        if point.name == chosen:
            axes.scatter([x], [y], s=150, facecolors="none", edgecolors=INK, lw=1.6, label="chosen", zorder=4)
        elif point in named:
            axes.annotate(
                _short(point.name),
                (x, y),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=8,
                color=INK,
                parse_math=False,
            )


def _short(name: str) -> str:
    plain = name.removeprefix("expert:")
    return plain if len(plain) <= 24 else plain[:23] + "…"


def _draw_region(axes: Any, points: Sequence[ChartPoint], base: ChartPoint, max_guard_loss: float) -> None:
    """Shade what the guards allow, up to the end of the axis."""
    xs = [100 * (point.general - base.general) for point in points] + [-max_guard_loss, 0.0]
    margin = 0.08 * (max(xs) - min(xs)) or 0.5
    axes.set_xlim(min(xs) - margin, max(xs) + margin)
    region = {"color": GOOD, "alpha": 0.12, "lw": 0, "label": "allowed by the guards"}
    axes.axvspan(-max_guard_loss, max(xs) + margin, **region)
