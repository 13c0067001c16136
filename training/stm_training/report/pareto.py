"""Charts of the merging: domain against general quality, and the lambda curve, as SVG to put into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from stm_retriever.errors import require

if TYPE_CHECKING:
    from stm_training.merge.fusion import FusionCurve

Kind = Literal["base", "expert", "all_data", "merge"]

# matplotlib needs real colours; the page's own take their place, with these where it has none. Mid-tones:
# without the report's styles the chart is still readable on white and on black.
_INK, _SOFT, _LINE = "#70757a", "#858b91", "#a9adb2"
_ACCENT, _GOOD, _WARM = "#178f82", "#3a9a57", "#c98a1b"
_VARIABLES = {_INK: "ink", _SOFT: "soft", _LINE: "line", _ACCENT: "accent", _GOOD: "good"}
_MARKERS: dict[Kind, tuple[str, str, str]] = {
    "base": ("s", _INK, "base"),
    "expert": ("^", _WARM, "experts"),
    "all_data": ("D", _INK, "all data at once"),
    "merge": ("o", _ACCENT, "merges"),
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
    figure, axes = _figure()
    axes.axvline(-max_guard_loss, color=_GOOD, lw=1, ls="--")
    axes.axhline(0, color=_LINE, lw=0.8)
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
    return _finish(figure, "pareto", f"Domain against general quality on development queries; {told}")


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
    figure, axes = _figure()
    base = curve.points[0]
    shares = [point.share for point in curve.points]
    domain = [100 * (point.domain - base.domain) for point in curve.points]
    axes.plot(shares, domain, color=_ACCENT, marker="o", ms=4, label="in the domain")
    if base.general is not None:
        general = [100 * ((point.general or 0.0) - base.general) for point in curve.points]
        axes.plot(shares, general, color=_WARM, marker="^", ms=4, label="outside of it (mean)")
        worst = [-point.worst_loss for point in curve.points]
        axes.plot(shares, worst, color=_WARM, lw=1, ls=":", label="outside of it (worst)")
        if max_guard_loss is not None:
            axes.axhline(-max_guard_loss, color=_GOOD, lw=1, ls="--", label="allowed by the guards")
    axes.axhline(0, color=_LINE, lw=0.8)
    axes.axvline(curve.default, color=_SOFT, lw=1, ls="--", label=f"default ({curve.default:g})")
    axes.set_xlabel("lambda: share of the tuned model in the vector")
    axes.set_ylabel("points of nDCG@10 against the base")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    return _finish(figure, "lambda", f"Fused vectors by lambda from 0 to 1. {curve.cost.statement}")


def _figure() -> tuple[Any, Any]:
    # Not pyplot: it picks a window system and keeps every figure.
    figures = require("matplotlib.figure", extra="train", purpose="the report's charts")
    figure = figures.Figure(figsize=(6.4, 4.6))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    axes.tick_params(color=_LINE, labelcolor=_SOFT, labelsize=8)
    return figure, axes


def _draw_front(axes: Any, points: Sequence[ChartPoint], base: ChartPoint, names: set[str]) -> None:
    front = sorted((point for point in points if point.name in names), key=lambda point: point.general)
    if len(front) > 1:
        axes.step(
            [100 * (point.general - base.general) for point in front],
            [100 * (point.domain - base.domain) for point in front],
            where="pre",  # between two points, what the right one surely reaches
            color=_ACCENT,
            lw=1.2,
            label="Pareto set",
        )


def _name_points(axes: Any, points: Sequence[ChartPoint], base: ChartPoint, chosen: str | None) -> None:
    named = [point for point in points if point.kind != "merge"][:_MOST_NAMED]
    for point in points:
        x, y = 100 * (point.general - base.general), 100 * (point.domain - base.domain)
        if point.name == chosen:
            axes.scatter(
                [x], [y], s=150, facecolors="none", edgecolors=_INK, lw=1.6, label="chosen", zorder=4
            )
        elif point in named:
            axes.annotate(
                _short(point.name),
                (x, y),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=8,
                color=_INK,
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
    region = {"color": _GOOD, "alpha": 0.12, "lw": 0, "label": "allowed by the guards"}
    axes.axvspan(-max_guard_loss, max(xs) + margin, **region)


def _finish(figure: Any, name: str, description: str) -> str:
    """SVG for a page: no date, no document type, ids of its own, the page's colours, a text for readers."""
    import matplotlib as mpl

    for text in figure.findobj(match=lambda artist: hasattr(artist, "set_fontsize")):
        text.set_fontfamily("sans-serif")
        if hasattr(text, "set_color") and text.get_color() == "black":
            text.set_color(_SOFT)
    target = io.StringIO()
    settings: dict[Any, Any] = {"svg.hashsalt": f"stm-{name}", "svg.fonttype": "none"}
    with mpl.rc_context(settings):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(target, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = _own_ids(svg, f"{name}-")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    svg = re.sub(r"font-family: [^;]*;", "font-family: system-ui, sans-serif;", svg)
    svg = svg.replace("*{stroke", f".stm-{name} *{{stroke")  # or it would style the whole page
    opening = f'<svg class="stm-{name}" role="img" aria-label="{escape(description, quote=True)}" '
    return svg.replace("<svg ", opening, 1).strip() + "\n"


def _own_ids(svg: str, prefix: str) -> str:
    """Two charts of one page must not share ids."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(xlink:href|href)="#', rf'\1="#{prefix}', svg)
    return re.sub(r"url\(#", f"url(#{prefix}", svg)
