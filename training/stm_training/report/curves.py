"""Learning curves as one SVG drawing for a report: loss, development score, guards.

The drawing loads nothing, takes the text colour of the page around it (so it is read on light and dark), and
is the same, byte for byte, for the same figures.

It stands in the run's report and, after ``stm-train finetune``, on a page without the report's styles. So it
has no part in :mod:`stm_training.report.drawing`, whose charts take their colours from those styles.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm_retriever.errors import require
from stm_training.data.whole_files import write_whole_text
from stm_training.finetune.history import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#010203"  # stands for the page's text colour until the drawing is done
_LOSS, _DEV = "#3b82c4", "#d9822b"
_GUARDS = ("#3a9d6e", "#9a6dd7", "#d1495b", "#7d8791")
_MOST_POINTS = 400
_WIDTH, _PANEL = 7.2, 2.0  # inches
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "legend.frameon": False,
    "font.size": 9.0,
}
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{name}: learning curves</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }}
</style>
</head>
<body>
<h1>{name}</h1>
{body}
</body>
</html>
"""


def learning_curves(curves: Curves, *, name: str, max_guard_loss: float | None = None) -> str | None:
    """Draw the curves of one training.

    Args:
        curves: The figures.
        name: What was trained, for readers who cannot see the drawing.
        max_guard_loss: Drawn as the line that no guard may fall below, in points (0-100).

    Returns:
        An ``<svg>`` element to be put into a page as it is; ``None`` where there is nothing to draw.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    panels = _panels(curves, max_guard_loss)
    if not panels:
        return None
    require("matplotlib", extra="train", purpose="learning curves")
    from matplotlib import rc_context, style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    drawn = io.StringIO()
    # From matplotlib's own defaults: a person's style sheet shall not change a report.
    with style.context("default"), rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH, _PANEL * len(panels) + 0.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, draw in zip(axes, panels, strict=True):
            draw(axis)
        axes[-1].set_xlabel("step")
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=no_metadata)
    return _inline(drawn.getvalue(), label=_label(curves, name))


def write_curves(path: Path, curves: Curves, *, name: str, max_guard_loss: float | None = None) -> Path:
    """Write the curves as a page of their own; arguments and errors as :func:`learning_curves`."""
    drawing = learning_curves(curves, name=name, max_guard_loss=max_guard_loss)
    body = f"<p>{html.escape(_label(curves, name))}</p>\n{drawing or '<p>Nothing was recorded.</p>'}"
    write_whole_text(path, _PAGE.format(name=html.escape(name), body=body))
    return path


def _panels(curves: Curves, max_guard_loss: float | None) -> list[Callable[[Axes], None]]:
    panels: list[Callable[[Axes], None]] = []
    if curves.steps:
        panels.append(lambda axis: _draw_loss(axis, curves))
    if curves.dev:
        panels.append(lambda axis: _draw_dev(axis, curves))
    if any(curves.guards.values()):
        panels.append(lambda axis: _draw_guards(axis, curves, max_guard_loss))
    return panels


def _draw_loss(axis: Axes, curves: Curves) -> None:
    steps, losses = _thinned(curves.steps, curves.losses)
    axis.plot(steps, losses, color=_LOSS, linewidth=0.8, alpha=0.45)
    axis.plot(steps, _smoothed(losses), color=_LOSS, linewidth=1.8)
    axis.set_ylabel("loss")


def _draw_dev(axis: Axes, curves: Curves) -> None:
    steps, values = zip(*curves.dev, strict=True)
    axis.plot(steps, values, color=_DEV, linewidth=1.8, marker="o", markersize=3.5)
    axis.axhline(values[0], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
    if (kept := _kept(curves)) is not None:
        axis.plot(*kept, "o", markersize=9, markerfacecolor="none", markeredgecolor=_DEV)
        axis.annotate(
            f"kept: {kept[1]:.4f}",
            kept,
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
        )
        axis.margins(y=0.3)
    axis.set_ylabel("dev nDCG@10")


def _draw_guards(axis: Axes, curves: Curves, max_guard_loss: float | None) -> None:
    lines, labels = [], []
    for number, (name, points) in enumerate(curves.guards.items()):
        if not points:
            continue
        changes = [100 * (value - points[0][1]) for _, value in points]
        color = _GUARDS[number % len(_GUARDS)]
        style = "-" if number < len(_GUARDS) else "--"
        lines += axis.plot(
            [step for step, _ in points], changes, style, color=color, linewidth=1.5, marker="o", markersize=3
        )
        labels.append(f"guard {name}")
    axis.axhline(0.0, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
    if max_guard_loss is not None:
        axis.axhline(-max_guard_loss, color=_GUARDS[2], linewidth=0.9, linestyle=(0, (1, 2)))
    axis.set_ylabel("guards, points\nagainst step 0")
    for text in axis.legend(lines, labels, loc="best").get_texts():
        text.set_parse_math(False)  # a name may hold a dollar sign


def _thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over stretches of like length, where there are more steps than a drawing can show."""
    size = -(-len(steps) // _MOST_POINTS)
    groups = [slice(start, start + size) for start in range(0, len(steps), size)]
    return (
        [sum(steps[group]) / len(steps[group]) for group in groups],
        [sum(values[group]) / len(values[group]) for group in groups],
    )


def _smoothed(values: Sequence[float]) -> list[float]:
    """Means over the points around each, a twentieth of all wide; narrower at the ends."""
    reach = len(values) // 40
    return [
        sum(near) / len(near)
        for near in (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    ]


def _kept(curves: Curves) -> tuple[int, float] | None:
    """Step and development score of the weights that were kept."""
    return next((point for point in curves.dev if point[0] == curves.best_step), None)


def _label(curves: Curves, name: str) -> str:
    parts = [f"Learning curves of {name}"]
    if curves.losses:
        parts.append(f"loss {curves.losses[0]:.3f} to {curves.losses[-1]:.3f} in {len(curves.steps)} steps")
    if curves.dev:
        figures = f"dev nDCG@10 {curves.dev[0][1]:.4f} before training"
        kept = _kept(curves)
        parts.append(
            figures if kept is None else f"{figures}, {kept[1]:.4f} at step {kept[0]}, which was kept"
        )
    return "; ".join(parts) + "."


def _inline(drawing: str, *, label: str) -> str:
    """Make a file's drawing an element that disturbs nothing on the page around it."""
    body = drawing[drawing.index("<svg") :]
    # matplotlib's style sheet has a rule for every element of a page it is put into.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", body)
    body = body.replace("xlink:href=", "href=").replace(_INK, "currentColor")
    referred = set(re.findall(r"(?:href=\"|url\()#([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found.group(0) if found.group(1) in referred else "", body)
    box = _attribute(body, "viewBox")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" '
        f'aria-label="{html.escape(label)}" style="width: 100%; max-width: 46rem; height: auto" '
        f'stroke-linejoin="round">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, body, count=1).strip()


def _attribute(body: str, name: str) -> Any:
    found = re.search(rf'{name}="([^"]*)"', body)
    return "" if found is None else found.group(1)
