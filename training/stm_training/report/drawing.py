"""Matplotlib's charts as SVG inside a page: the page's colours, ids of their own, nothing from elsewhere."""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

from stm_retriever.errors import require

# matplotlib needs real colours; the page's own take their place, with these where it has none. Mid-tones:
# without the report's styles the chart is still readable on white and on black.
INK, SOFT, LINE = "#70757a", "#858b91", "#a9adb2"
ACCENT, GOOD, BAD, WARM = "#178f82", "#3a9a57", "#c8574c", "#c98a1b"
_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", ACCENT: "accent", GOOD: "good", BAD: "bad"}


def new_axes(width: float = 6.4, height: float = 4.6) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes in the report's style.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    # Not pyplot: it picks a window system and keeps every figure.
    figures = require("matplotlib.figure", extra="train", purpose="the report's charts")
    figure = figures.Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(color=LINE, labelcolor=SOFT, labelsize=8)
    return figure, axes


def inline_svg(figure: Any, name: str, description: str) -> str:
    """SVG for a page: no date, no document type, ids of its own, the page's colours, a text for readers."""
    import matplotlib as mpl

    for text in figure.findobj(match=lambda artist: hasattr(artist, "set_fontsize")):
        text.set_fontfamily("sans-serif")
        if hasattr(text, "set_color") and text.get_color() == "black":
            text.set_color(SOFT)
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
