"""A synthesis in figures: what became of every document, and what it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stm_retriever.atomic_write import write_bytes_atomically
from stm_training.synthesize.result import Outcome, SynthesisResult


def synthesis_report(result: SynthesisResult) -> dict[str, Any]:
    """The report as JSON: counts, drops by filter with examples, and one entry per document.

    A document is ``done`` if all its tasks were answered, else ``failed``, with each reason; ``dropped``
    names the filters that took texts of it. Nothing but the examples holds any text.
    """
    failed = [outcome for outcome in result.outcomes if outcome.failures]
    return {
        "documents_done": len(result.outcomes) - len(failed),
        "documents_failed": len(failed),
        "counts": result.counts,
        "cost": result.cost,
        "stopped_by": result.limit,
        "sources": result.sources,
        "notes": result.notes,
        "dropped": {
            name: {"count": one.count, "examples": [list(example) for example in one.examples]}
            for name, one in result.dropped.items()
        },
        "documents": {outcome.document_id: _entry(outcome) for outcome in result.outcomes},
    }


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_bytes_atomically(path, raw.encode("utf-8", "surrogatepass"))


def _entry(outcome: Outcome) -> dict[str, Any]:
    entry: dict[str, Any] = {"status": outcome.status, "pairs": outcome.pairs}
    if outcome.failures:
        entry["failures"] = [
            {"task": one.task, "reason": one.reason, "asked": one.asked} for one in outcome.failures
        ]
    if outcome.dropped:
        entry["dropped"] = list(outcome.dropped)
    return entry
