"""An evaluation for the browser: means, differences with intervals, wins and losses query by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stm_training.data.whole_files import write_whole_text
from stm_training.evaluate.evaluation import Evaluation
from stm_training.evaluate.pairs import PairComparison, differences
from stm_training.evaluate.tables import heading
from stm_training.report.drawing import ACCENT, BAD, GOOD, INK, SOFT, inline_svg, new_axes
from stm_training.report.environment import page_environment

_PURPOSE = "the comparison's page"
_LONGEST_NAME = 44


def comparison_section(found: Evaluation, *, level: int = 2) -> str:
    """An evaluation as a ``<section>`` to be put into a page as it is, with the classes of the run's report.

    Args:
        found: The figures.
        level: Of its heading.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    html: str = _environment().get_template("comparison.html.j2").render(_context(found), level=level)
    return html


def write_comparison(
    path: Path, found: Evaluation, *, title: str, lines: Sequence[str] = (), versions: Mapping[str, str] = {}
) -> None:
    """Write an evaluation as one self-contained page that loads nothing.

    Args:
        path: The file; written whole or not at all.
        found: The figures.
        title: What was evaluated.
        lines: What to know about it, a sentence each.
        versions: Shown at the end.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    template = _environment().get_template("comparison_page.html.j2")
    page = template.render(_context(found), level=2, title=title, lines=lines, versions=versions)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole_text(path, page)


def verdict(found: Evaluation) -> str:
    """What the figures say, in a sentence."""
    pairs = [pair for pair, _ in found.changes]
    if not pairs:
        (name,) = found.means
        measure, mean = next(iter(found.means[name].items()))
        return f"{name}: {heading(measure)} {mean:.4f}."
    best = max(pairs, key=lambda pair: pair.difference)
    lo, hi = (100 * end for end in best.ci95)
    span = f"{100 * best.difference:+.2f} {heading(best.measure)} points ({lo:+.2f} to {hi:+.2f})"
    if best.ci95[0] > 0 and best.p_holm <= 0.05:
        return f"{best.system} is better than {best.reference}: {span}."
    if all(pair.ci95[1] < 0 for pair in pairs):
        return f"Nothing is better than {best.reference}; the next is {best.system}: {span}."
    return f"These queries cannot tell {best.system} and {best.reference} apart: {span}."


def pairs_svg(pairs: Sequence[PairComparison]) -> str:
    """Differences with their intervals, in points, one row per comparison.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    figure, axes = new_axes(6.8, 0.55 * len(pairs) + 0.7)
    several = len({pair.reference for pair in pairs}) > 1
    for row, pair in enumerate(pairs):
        lo, mid, hi = (100 * value for value in (pair.ci95[0], pair.difference, pair.ci95[1]))
        axes.plot([lo, hi], [row, row], color=ACCENT, linewidth=2.5, solid_capstyle="round")
        axes.plot([mid], [row], "o", color=ACCENT, markersize=7)
        axes.annotate(
            f"{mid:+.2f}",
            (mid, row),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )
    axes.axvline(0.0, color=SOFT, linewidth=1.0, linestyle=(0, (4, 3)))
    names = [f"{pair.system} - {pair.reference}" if several else pair.system for pair in pairs]
    axes.set_yticks(range(len(pairs)), [_short(name) for name in names])
    axes.set_ylim(len(pairs) - 0.5, -0.7)
    measure = heading(pairs[0].measure) if len({pair.measure for pair in pairs}) == 1 else ""
    axes.set_xlabel(
        f"{measure} points".strip() + ("" if several else f" against {_short(pairs[0].reference)}")
    )
    label = "; ".join(
        f"{pair.system} against {pair.reference}: {100 * pair.difference:+.2f} points" for pair in pairs
    )
    return _drawn(figure, "pairs", f"Differences with 95 % intervals. {label}")


def waterfall_svg(diffs: Mapping[str, float], pair: PairComparison, *, number: int = 0) -> str:
    """Every query's difference in points, the largest gain first; queries that tie are left out.

    Args:
        diffs: Query id -> difference of scores.
        pair: The comparison that they belong to.
        number: Of the chart on its page.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    values = sorted((100 * diff for diff in diffs.values() if diff), reverse=True)
    figure, axes = new_axes(6.8, 1.9)
    # One area, not hundreds of bars: the page stays small however many queries there are.
    edges = [position for row in range(len(values)) for position in (row, row + 1)]
    heights = [value for value in values for _ in (0, 1)]
    axes.fill_between(edges, heights, where=[h > 0 for h in heights], color=GOOD, alpha=0.8, linewidth=0)
    axes.fill_between(edges, heights, where=[h < 0 for h in heights], color=BAD, alpha=0.8, linewidth=0)
    axes.axhline(0.0, color=SOFT, linewidth=1.0)
    axes.set_xlim(0, max(1, len(values)))
    axes.set_xlabel(
        f"{len(values)} of {pair.queries} queries that differ: {pair.wins} won, {pair.losses} lost"
    )
    axes.set_ylabel("points")
    label = (
        f"{heading(pair.measure)} per query of {pair.system} against {pair.reference}: "
        f"{pair.wins} won, {pair.losses} lost, {pair.ties} tied"
    )
    return _drawn(figure, f"waterfall{number}", label)


def _context(found: Evaluation) -> dict[str, Any]:
    shown = [
        {
            "pair": pair,
            "changes": changes,
            "chart": waterfall_svg(
                differences(found.scores, pair.reference, pair.system, pair.measure), pair, number=number
            )
            if pair.wins + pair.losses
            else None,
        }
        for number, (pair, changes) in enumerate(found.changes)
    ]
    return {
        "found": found,
        "verdict": verdict(found),
        "reference": next(iter(found.means)),
        "measures": list(next(iter(found.means.values()))),
        "forest": pairs_svg([pair for pair, _ in found.changes]) if found.changes else None,
        "one_reference": len({pair.reference for pair in found.pairs}) == 1,
        "shown": shown,
    }


def _environment() -> Any:
    environment = page_environment(_PURPOSE)
    environment.filters["rank"] = lambda rank: "–" if rank is None else str(rank)
    return environment


def _drawn(figure: Any, name: str, label: str) -> str:
    for text in figure.findobj(match=lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)  # a name may hold a dollar sign
    return inline_svg(figure, name, label)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[-(_LONGEST_NAME - 1) :]
