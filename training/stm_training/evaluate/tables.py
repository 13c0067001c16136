"""The figures of an evaluation as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stm_training.evaluate.pairs import PairComparison
from stm_training.evaluate.query_changes import Changes, DocumentRanks, QueryChange

if TYPE_CHECKING:
    from stm_training.evaluate.evaluation import Evaluation

_HEADINGS = {
    "ndcg": "nDCG",
    "recall": "recall",
    "mrr": "MRR",
    "map": "MAP",
    "precision": "P",
    "judged": "judged",
}


def heading(measure: str) -> str:
    """``ndcg@10`` as people write it: ``nDCG@10``."""
    kind, at, cut = measure.partition("@")
    return _HEADINGS.get(kind, kind) + at + cut


def means_table(means: Mapping[str, Mapping[str, float]]) -> str:
    """System -> measure -> mean, one row per system."""
    measures = list(next(iter(means.values()), {}))
    rows = [("model", *(heading(measure) for measure in measures))]
    rows += [(name, *(f"{found[measure]:.4f}" for measure in measures)) for name, found in means.items()]
    return _aligned(rows)


def pairs_table(pairs: Sequence[PairComparison]) -> str:
    """One row per comparison, differences in points (0-100), with a line that explains the columns."""
    several = len({pair.reference for pair in pairs}) > 1
    measures = list(dict.fromkeys(pair.measure for pair in pairs))
    rows: list[tuple[str, ...]] = [
        ("model", "against", "difference", "95 % interval", "p", "p (Holm)", "effect", "won/lost/tied")
    ]
    for pair in pairs:
        lo, hi = pair.ci95
        name = pair.system if len(measures) == 1 else f"{pair.system}, {heading(pair.measure)}"
        effect = "-" if pair.effect_size is None else f"{pair.effect_size:+.2f}"
        rows.append(
            (
                name,
                pair.reference,
                f"{100 * pair.difference:+.2f}",
                f"{100 * lo:+.2f} to {100 * hi:+.2f}",
                p_text(pair.p_permutation),
                p_text(pair.p_holm),
                effect,
                f"{pair.wins}/{pair.losses}/{pair.ties}",
            )
        )
    if not several:
        rows = [(row[0], *row[2:]) for row in rows]
    against = "" if several else f" against {pairs[0].reference}"
    what = heading(measures[0]) if len(measures) == 1 else "All"
    note = (
        f"{what} differences are points (0-100){against}; paired bootstrap interval; p of a paired "
        f"permutation test,\nand corrected for {len(pairs)} comparison(s); effect: mean difference over its "
        "standard deviation (0.2 is small)."
    )
    return f"{_aligned(rows)}\n\n{note}"


def changes_text(pair: PairComparison, changes: Changes) -> str:
    """The queries that changed most, to read."""
    lines = [f"{pair.system} against {pair.reference}, {heading(pair.measure)} per query"]
    for title, found in (("largest gains", changes.gains), ("largest losses", changes.losses)):
        lines.append(f"\n  {title}:" if found else f"\n  {title}: none")
        for change in found:
            lines += _change_lines(change)
    return "\n".join(lines)


def evaluation_text(found: Evaluation) -> str:
    """The figures as plain text: means, comparisons, and the queries that changed most."""
    reference = next(iter(found.means))
    several = len(found.means) > 1
    labels = {name: f"{name} (reference)" if several and name == reference else name for name in found.means}
    parts = [means_table({labels[name]: means for name, means in found.means.items()})]
    parts += [
        f"note: {name} returned nothing for {count} queries; they score 0."
        for name, count in found.unanswered.items()
    ]
    if found.pairs:
        parts.append(pairs_table(found.pairs))
    parts += [
        changes_text(pair, changes) for pair, changes in found.changes if changes.gains or changes.losses
    ]
    return "\n\n".join(parts)


def _change_lines(change: QueryChange) -> list[str]:
    lines = [f"    {change.before:.2f} -> {change.after:.2f}  {change.query}: {_short(change.text, 200)}"]
    for document in change.relevant:
        lines.append(f"        relevant, rank {_ranks(document)}: {document.id}: {document.title}")
    top = change.top_after
    if top is not None and top.grade <= 0:
        lines.append(f"        now first, not relevant: {top.id}: {top.title}")
    return lines


def _ranks(document: DocumentRanks) -> str:
    before, after = ("none" if rank is None else str(rank) for rank in (document.before, document.after))
    return f"{before} -> {after}"


def p_text(value: float) -> str:
    """A p-value to four places, or that it is below 0.001."""
    return f"{value:.4f}" if value >= 0.001 else "<0.001"


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
