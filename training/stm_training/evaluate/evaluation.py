"""Everything that one evaluation finds: means, comparisons, the queries that changed, and the files of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm_training.data.records import Collection
from stm_training.evaluate.bootstrap import DEFAULT, Method
from stm_training.evaluate.compare import NDCG, RECALL, compare
from stm_training.evaluate.measures import DEFAULT_MEASURES, measure_run, parse_measure
from stm_training.evaluate.metrics import mean
from stm_training.evaluate.pairs import PairComparison, compare_pairs, differences
from stm_training.evaluate.query_changes import Changes, largest_changes
from stm_training.evaluate.systems import Ranked
from stm_training.evaluate.trec_files import file_names, write_qrels, write_run
from stm_training.evaluate.versions import installed_versions

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What is computed.

    Attributes:
        measures: What is shown of every system.
        tested: What systems are compared on; the first also says which queries changed most.
        judged_only: See :func:`stm_training.evaluate.measures.measure_run`.
        all_pairs: Compare every system with every later one, not only with the first.
        changes: How many of the largest gains and losses per comparison.
        seed: Seeds bootstrap and permutations.
        samples: Bootstrap samples, and random permutations.
        interval: See :func:`stm_training.evaluate.bootstrap.interval`.
    """

    measures: Sequence[str] = DEFAULT_MEASURES
    tested: Sequence[str] = (NDCG,)
    judged_only: bool = False
    all_pairs: bool = False
    changes: int = 5
    seed: int = 0
    samples: int = 10_000
    interval: Method = DEFAULT


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found.

    Attributes:
        scores: System -> measure -> query -> score; the first system is the reference.
        means: System -> measure -> mean over the judged queries; only the measures asked for.
        pairs: Every comparison.
        changes: The queries that changed most, for each of ``pairs`` on the first tested measure.
        unanswered: System -> judged queries without any result, which score 0; systems without such are
            left out.
    """

    scores: dict[str, dict[str, dict[str, float]]]
    means: dict[str, dict[str, float]]
    pairs: list[PairComparison]
    changes: list[tuple[PairComparison, Changes]]
    unanswered: dict[str, int]


def evaluate(
    ranked: Mapping[str, Ranked], collection: Collection, settings: Settings | None = None
) -> Evaluation:
    """Score and compare systems.

    Args:
        ranked: System -> what it returned; the first is the reference.
        collection: What was searched.
        settings: What is computed.

    Raises:
        ConfigError: If a measure is none.
        DataError: If a run cannot be scored.
    """
    settings = Settings() if settings is None else settings
    shown, tested = (
        list(dict.fromkeys(parse_measure(name).name for name in names))
        for names in (settings.measures, settings.tested)
    )
    # nDCG and recall at 10 are in every JSON file of ours, asked for or not.
    needed = list(dict.fromkeys([*shown, *tested, NDCG, RECALL]))
    scores = {
        name: measure_run(one.run, collection.qrels, needed, judged_only=settings.judged_only)
        for name, one in ranked.items()
    }
    pairs = compare_pairs(
        scores,
        tested,
        all_pairs=settings.all_pairs,
        seed=settings.seed,
        samples=settings.samples,
        method=settings.interval,
    )
    changes = [
        (
            pair,
            largest_changes(
                differences(scores, pair.reference, pair.system, pair.measure),
                scores[pair.reference][pair.measure],
                collection,
                (ranked[pair.reference].run, ranked[pair.system].run),
                count=settings.changes,
            ),
        )
        for pair in pairs
        if pair.measure == tested[0]
    ]
    empty = {name: sum(not one.run.get(query) for query in collection.qrels) for name, one in ranked.items()}
    return Evaluation(
        scores,
        {name: {measure: mean(found[measure]) for measure in shown} for name, found in scores.items()},
        pairs,
        changes,
        {name: count for name, count in empty.items() if count},
    )


def save_runs(folder: Path, ranked: Mapping[str, Ranked], collection: Collection) -> dict[str, Path]:
    """Write every system's results and the judgements as TREC files.

    Args:
        folder: Made where missing; ``qrels.txt`` and a ``.run`` file per system go there.
        ranked: System -> what it returned.
        collection: Holds the judgements.

    Returns:
        System -> its file.
    """
    names = file_names(ranked)
    files = {system: folder / f"{names[system]}.run" for system in ranked}
    for system, file in files.items():
        write_run(file, ranked[system].run, tag=names[system])
    write_qrels(folder / "qrels.txt", collection.qrels)
    return files


def as_document(
    found: Evaluation,
    ranked: Mapping[str, Ranked],
    collection: Collection,
    settings: Settings,
    context: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON file: see ``stm-train evaluate --help`` for its keys.

    Args:
        found: The figures.
        ranked: System -> what it is.
        collection: What was searched.
        settings: How it was computed.
        context: What the caller adds: where the data lies, and the like.
    """
    reference = next(iter(ranked))
    table = compare(
        found.scores,
        base=reference,
        seed=settings.seed,
        samples=settings.samples,
        method=settings.interval,
    )
    return {
        "schema_version": SCHEMA_VERSION,
        **table.figures(),
        "reference": reference,
        "measures": found.means,
        "comparisons": [pair.figures() | _changes_of(pair, found) for pair in found.pairs],
        "per_query": found.scores,
        "models": {name: one.about for name, one in ranked.items()},
        "queries": table.queries,
        "documents": len(collection.corpus),
        "unanswered": found.unanswered,
        "judged_only": settings.judged_only,
        "interval": settings.interval,
        "samples": settings.samples,
        "seed": settings.seed,
        "skipped_rows": len(collection.skipped),
        **context,
        "versions": installed_versions(),
    }


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write the JSON file, making its folder where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _changes_of(pair: PairComparison, found: Evaluation) -> dict[str, Any]:
    changes = next((changes for other, changes in found.changes if other is pair), None)
    return {} if changes is None else {"changes": changes.figures()}
