"""Score histograms of mined negatives, beside those of the positives and of what was turned down."""

from __future__ import annotations

from stm_training.report.drawing import ACCENT, SOFT, WARM, inline_svg, new_axes
from stm_training.report.summary import NegativeScores

_SERIES = (("positives", WARM), ("kept", ACCENT), ("rejected", SOFT))


def negatives_svg(scores: NegativeScores) -> str | None:
    """Draw the distributions, each as shares of itself: what was turned down is a hundred times as much.

    Args:
        scores: Counts between common edges.

    Returns:
        An ``<svg>`` element; None where nothing was mined.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    if not sum(scores.kept):
        return None
    figure, axes = new_axes(6.4, 3.0)
    told = []
    for name, colour in _SERIES:
        counts: tuple[int, ...] = getattr(scores, name)
        total = sum(counts)
        if total:
            axes.stairs(
                [count / total for count in counts],
                scores.edges,
                color=colour,
                lw=1.6,
                fill=name == "kept",
                alpha=0.55 if name == "kept" else 1.0,
                label=f"{name} ({total:,})",
            )
            told.append(f"{total} {name}")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"score by {scores.model}", fontsize=9, color=SOFT, parse_math=False)
    legend = axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    for text in legend.get_texts():
        text.set_color(SOFT)
    return inline_svg(figure, "negatives", f"Scores of mined negatives: {', '.join(told)}")
