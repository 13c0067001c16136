"""From what a run recorded to the records of its report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm_retriever.folder import read_manifest
from stm_training.report.summary import (
    LeakageSummary,
    LeakExample,
    NegativeScores,
    QueryChanges,
    QueryExample,
    VariantSummary,
)

if TYPE_CHECKING:
    from stm_training.leakage.report import LeakageReport

_SAME = 1e-9  # closer scores are equal but for summation
_TEXT = 160  # characters of a text that is shown
_EXAMPLES = 5


def query_changes(
    before: Mapping[str, float],
    after: Mapping[str, float],
    queries: Mapping[str, str],
    relevant: Mapping[str, Sequence[str]],
    *,
    count: int = _EXAMPLES,
) -> QueryChanges:
    """Compare what ships with the base, query by query.

    Args:
        before: Query id -> nDCG@10 of the base.
        after: Query id -> nDCG@10 of what ships, of the same queries.
        queries: Query id -> text.
        relevant: Query id -> texts of its relevant documents.
        count: Largest gains, and largest losses, to show.

    Returns:
        Wins, losses and ties, and the examples; equal differences in the order of the ids.

    Raises:
        KeyError: If ``after`` lacks a query of ``before``.
    """
    changes = {name: after[name] - score for name, score in sorted(before.items())}
    wins = [name for name, change in changes.items() if change > _SAME]
    losses = [name for name, change in changes.items() if change < -_SAME]

    def example(name: str) -> QueryExample:
        texts = tuple(_short(text) for text in relevant.get(name, ())[:2])
        return QueryExample(
            query=_short(queries.get(name, name)), before=before[name], after=after[name], relevant=texts
        )

    return QueryChanges(
        wins=len(wins),
        losses=len(losses),
        ties=len(changes) - len(wins) - len(losses),
        gains=tuple(map(example, sorted(wins, key=lambda name: -changes[name])[:count])),
        drops=tuple(map(example, sorted(losses, key=lambda name: changes[name])[:count])),
    )


def negative_scores(mining: Mapping[str, Any] | None) -> NegativeScores | None:
    """The histogram of a mining's report (``MiningReport.to_json``); None without one."""
    if not mining or "histogram" not in mining:
        return None
    return NegativeScores(model=mining["model"], **mining["histogram"])


def variants_of(folder: Path) -> tuple[VariantSummary, ...]:
    """Size and closeness of every ONNX file of a retriever folder.

    Args:
        folder: The retriever folder.

    Raises:
        ModelFolderError: If it is no retriever folder.
    """
    parity_file = folder / "onnx" / "parity.json"
    parity = json.loads(parity_file.read_text(encoding="utf-8")) if parity_file.is_file() else {}
    found = []
    for name, variant in read_manifest(folder).variants.items():
        files = [folder / file for file in (variant.file, *variant.external_data)]
        report = parity.get(name, {})
        dev = [one["points"] for one in report.get("dev") or ()]
        found.append(
            VariantSummary(
                name=name,
                size=sum(file.stat().st_size for file in files if file.is_file()),
                min_cosine=report.get("min_cosine"),
                dev_points=statistics.fmean(dev) if dev else None,
            )
        )
    return tuple(found)


def with_near_duplicates(summary: LeakageSummary, report: LeakageReport) -> LeakageSummary:
    """Add what a search for near duplicates found.

    Args:
        summary: Exact and normalised duplicates of queries.
        report: Of training against the development and test sets.
    """
    queries = [one for one in report.overlaps if one.train_role == one.test_role == "query"]
    documents = [one for one in report.overlaps if one.train_role == one.test_role == "document"]
    shown = [example for one in report.overlaps for example in one.examples if example.kind == "near"]
    return summary.model_copy(
        update={
            "near": sum(one.near for one in queries),
            "near_documents": sum(one.exact + one.normalised + one.near for one in documents),
            "threshold": report.threshold,
            "examples": tuple(
                LeakExample(test=_short(one.test), train=_short(one.train), similarity=one.jaccard)
                for one in shown[:_EXAMPLES]
            ),
        }
    )


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _TEXT else plain[: _TEXT - 1].rstrip() + "…"
