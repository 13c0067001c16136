"""The one readable table of a run, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stm_retriever.errors import require
from stm_training.evaluate.compare import SystemResult
from stm_training.report.summary import RunSummary

if TYPE_CHECKING:
    from rich.console import Console


def print_table(summary: RunSummary, console: Console) -> None:
    """Print the systems with their intervals, the verdict, and what it rests on.

    Args:
        summary: What the run found.
        console: Where to; its width decides how the table wraps.

    Raises:
        MissingExtraError: If rich is not installed.
    """
    table_module = require("rich.table", extra="train", purpose="the results table")
    text = require("rich.text", extra="train", purpose="the results table").Text
    queries = f"{summary.data.test_queries} test queries" if summary.data else "test queries"
    # Text, not str, throughout: names come from users, and rich would take "[red]" in them for markup.
    table = table_module.Table(
        title=text(f"{summary.name}: {queries} ({summary.proven_on})"), title_justify="left"
    )
    table.add_column("system", no_wrap=True)
    for heading in ("nDCG@10", "recall@10", "vs base, points", "95 % interval"):
        table.add_column(heading, justify="right")
    for name, result in summary.systems.items():
        shipped = name == summary.shipped
        cells = [f"{name} (ships)" if shipped else name, *_figures(result)]
        table.add_row(*(text(cell) for cell in cells), style="bold" if shipped else None)
    console.print(table)
    console.print(text(summary.verdict, style="bold"))
    _print_collections(summary, console)
    if summary.served_ndcg10 is not None:
        console.print(text(f"Served from the index folder: nDCG@10 {summary.served_ndcg10:.4f}"))
    data = summary.data
    if data is not None and data.truncated:
        console.print(text(f"{data.truncated} of {data.passages} passages are longer than the model reads"))
    if summary.skipped_rows:
        console.print(text(f"{len(summary.skipped_rows)} bad rows were skipped; the report lists them"))
    if summary.contradiction:
        console.print(text(summary.contradiction, style="bold red"))
    if summary.proven_on == "synthetic queries only":
        console.print(text("Proven on synthetic queries only: nobody's real queries were available."))
    if summary.notice:
        console.print(text(summary.notice, style="italic"))


def _figures(result: SystemResult) -> tuple[str, str, str, str]:
    figures = (f"{result.ndcg10:.4f}", f"{result.recall10:.4f}")
    if result.delta is None or result.ci95 is None:
        return (*figures, "-", "-")
    lo, hi = result.ci95
    return (*figures, f"{100 * result.delta:+.2f}", f"{100 * lo:+.2f} to {100 * hi:+.2f}")


def _print_collections(summary: RunSummary, console: Console) -> None:
    """What ships against the base, on each collection and each guard."""
    entries = [(one.name, one.scores) for one in summary.sets]
    entries += [(f"Guard {one.name}", one.scores) for one in summary.guards]
    for name, scores in entries:
        before, after = scores["base"], scores[summary.shipped]
        gain = 100 * (after - before)
        line = f"{name}: {after:.4f}, base {before:.4f} ({gain:+.2f} points)"
        console.print(line, markup=False, highlight=False)
