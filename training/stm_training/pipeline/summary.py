"""What a run tells at the end: its table, its JSON figures, its report, and the card's entries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm_training.data.reading import read_corpus
from stm_training.evaluate.compare import Comparison, compare, contradiction
from stm_training.evaluate.pairs import PairComparison, compare_these
from stm_training.evaluate.versions import installed_versions
from stm_training.merge.recipe import READS
from stm_training.pipeline.collections import document_id, read_split
from stm_training.pipeline.corpus import INFO, PASSAGES
from stm_training.pipeline.evaluation import BM25_NAME, NDCG, SCORES
from stm_training.pipeline.experts import RECORD, ExpertPlan
from stm_training.pipeline.merging import candidates, fusion_curve
from stm_training.pipeline.pairs import PAIRS_INFO
from stm_training.pipeline.scoring import QueryMetrics
from stm_training.pipeline.settings import base_name
from stm_training.pipeline.stages import Stage, content_digest
from stm_training.pipeline.systems import ALL_DATA, BASE, MERGED, Choice
from stm_training.pipeline.use import SPEED, USE
from stm_training.recipe import Recipe
from stm_training.report.html import write_report
from stm_training.report.sections import negative_scores, query_changes, variants_of
from stm_training.report.summary import (
    DataSummary,
    ExpertSummary,
    GuardSummary,
    LeakageSummary,
    MergeSummary,
    ParitySummary,
    ProvenOn,
    QueryChanges,
    RunSummary,
    SetSummary,
    SkippedLine,
    SpeedSummary,
    SynthesisSummary,
)
from stm_training.report.table import print_table

if TYPE_CHECKING:
    from rich.console import Console

FIGURES, COMPARISONS = "figures.json", "comparisons.json"


def weights_digest(folder: Path) -> str:
    """Hash of a base's weights and tokenizer, so that another model never reuses a stage."""
    parts = [
        content_digest(path)
        for pattern in ("*.safetensors", "config.json", "tokenizer.json")
        for path in sorted(folder.rglob(pattern))
        if "onnx" not in path.parts
    ]
    return ":".join(parts)


def proven_on(pairs_folder: Path) -> ProvenOn:
    """What the development and test queries are."""
    info = _read(pairs_folder / PAIRS_INFO)
    return "user queries" if info["proven_on"] == "user queries" else "synthetic queries only"


def data_card(recipe: Recipe, pairs_folder: Path) -> list[dict[str, Any]]:
    """Training data as the model card names it."""
    info = _read(pairs_folder / PAIRS_INFO)
    entries = [{"name": Path(recipe.corpus).name, "kind": "corpus"}]
    for source, kinds in info["sources"].items():
        entries.append({"name": source, "kind": "training pairs", "pairs": kinds})
    return entries


def card_metrics(recipe: Recipe, choice: Choice, evaluation: Path, proven: ProvenOn) -> dict[str, Any]:
    """Figures of what ships and of its base, for manifest and card."""
    comparison = _comparison(recipe, _read(evaluation / SCORES))
    figures = {name: comparison.systems[name].figures() for name in dict.fromkeys((BASE, choice.shipped))}
    return {
        "test": figures,
        "test_queries": comparison.queries,
        "proven_on": proven,
        "chosen_on_dev_queries": choice.decision.dev_queries,
        "reason": choice.decision.reason,
    }


def _comparison(recipe: Recipe, document: Mapping[str, Any]) -> Comparison:
    return compare(document["scores"], BASE, seed=recipe.seed, samples=recipe.evaluate.bootstrap_samples)


def summarise(
    recipe: Recipe,
    choice: Choice,
    plans: Sequence[ExpertPlan],
    stages: Mapping[str, Stage],
    seconds: Mapping[str, float],
    proven: ProvenOn,
) -> RunSummary:
    """Collect what the stages found."""
    evaluation = _read(stages["evaluate"].path / SCORES)
    comparison = _comparison(recipe, evaluation)
    against = contradiction(comparison, choice.shipped)
    corpus = _read(stages["corpus"].path / INFO)
    pairs = _read(stages["pairs"].path / PAIRS_INFO)
    parity = _read(stages["retriever"].path / "onnx" / "parity.json")
    return RunSummary(
        name=recipe.name,
        verdict=_verdict(choice, comparison, proven),
        shipped=choice.shipped,
        proven_on=proven,
        systems=comparison.systems,
        comparisons=_comparisons(recipe, choice, evaluation["scores"]),
        contradiction=None if against is None else against.message,
        selection=choice.decision,
        seconds=dict(seconds),
        versions=installed_versions(),
        seed=recipe.seed,
        base_model=base_name(recipe),
        data=_data(recipe, corpus, pairs, comparison, choice, evaluation),
        experts=tuple(_expert(plan, stages) for plan in plans),
        merge=_merge(choice),
        candidates=candidates(stages["merge"].path),
        fusion=fusion_curve(stages["merge"].path),
        parity=_parity(parity),
        negatives=negative_scores((pairs.get("refinement") or {}).get("mining")),
        variants=variants_of(stages["retriever"].path),
        speed=SpeedSummary.model_validate(_read(stages["use"].path / SPEED)),
        query_changes=_query_changes(recipe, choice, evaluation, stages),
        synthesis=SynthesisSummary(**pairs["synthesis"]) if pairs["synthesis"] else None,
        leakage=LeakageSummary(**pairs["leakage"]),
        guards=tuple(GuardSummary(name=name, scores=scores) for name, scores in evaluation["guards"].items()),
        sets=_sets(recipe, evaluation["sets"]),
        served_ndcg10=_read(stages["use"].path / USE)["served"][NDCG],
        skipped_rows=tuple(SkippedLine(**row) for row in corpus["skipped"]),
        notice=recipe.notice,
        recipe_yaml=_as_yaml(recipe),
    )


def _comparisons(
    recipe: Recipe, choice: Choice, scores: Mapping[str, QueryMetrics]
) -> tuple[PairComparison, ...]:
    """What ships against the base, all data at once and BM25, and the merge against all data at once."""
    ships = choice.shipped
    wanted = [(BASE, ships), (ALL_DATA, ships), (ALL_DATA, MERGED), (BM25_NAME, ships)]
    pairs = [
        (reference, system)
        for reference, system in dict.fromkeys(wanted)
        if reference != system and {reference, system} <= scores.keys()
    ]
    samples = recipe.evaluate.bootstrap_samples
    return tuple(compare_these(scores, pairs, [NDCG], seed=recipe.seed, samples=samples))


def _query_changes(
    recipe: Recipe, choice: Choice, evaluation: Mapping[str, Any], stages: Mapping[str, Stage]
) -> QueryChanges | None:
    """Test queries that were won and lost; not where several collections are scored as one."""
    if recipe.domains or choice.shipped == BASE:
        return None
    queries, qrels = read_split(stages["pairs"].path, "test")
    first: dict[str, str] = {}
    for passage in read_corpus(stages["corpus"].path / PASSAGES, allow_title_only=True):
        first.setdefault(document_id(passage), passage.content)
    relevant = {
        query: [first[name] for name, grade in row.items() if grade > 0 and name in first]
        for query, row in qrels.items()
    }
    scores = evaluation["scores"]
    return query_changes(scores[BASE][NDCG], scores[choice.shipped][NDCG], queries, relevant)


def _sets(recipe: Recipe, found: Mapping[str, Mapping[str, float]]) -> tuple[SetSummary, ...]:
    """The collections one by one; the run's own is named as its corpus."""
    own = {"test": Path(recipe.corpus).name}
    if len(found) < 2:
        return ()
    return tuple(SetSummary(name=own.get(name, name), scores=dict(scores)) for name, scores in found.items())


def _data(
    recipe: Recipe,
    corpus: Mapping[str, Any],
    pairs: Mapping[str, Any],
    comparison: Comparison,
    choice: Choice,
    evaluation: Mapping[str, Any],
) -> DataSummary:
    return DataSummary(
        corpus=Path(recipe.corpus).name,
        documents=corpus["documents"],
        passages=corpus["passages"],
        truncated=corpus["truncated"],
        train_pairs=pairs["kinds"],
        dev_queries=choice.decision.dev_queries,
        test_queries=comparison.queries,
        guards={name: pairs_dev for name, pairs_dev in evaluation["guard_queries"].items()},
    )


def _expert(plan: ExpertPlan, stages: Mapping[str, Stage]) -> ExpertSummary:
    record = _read(stages[f"expert-{plan.name}"].path / RECORD)
    losses = record["losses"]
    return ExpertSummary(
        name=plan.system,
        kinds=tuple(plan.kinds()),
        pairs=len(plan.pairs),
        steps=len(losses),
        batch_size=plan.train.batch_size,
        first_loss=losses[0],
        last_loss=losses[-1],
        seconds=record["seconds"],
        best_step=record["best_step"],
        history=tuple(_charted(entry) for entry in record["history"]),
    )


def _charted(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the history without the scores of single queries."""
    return {name: value for name, value in entry.items() if name != "queries"}


def _parity(document: Mapping[str, Any]) -> ParitySummary:
    figures = document["fp32"]
    return ParitySummary(
        rows=sum(case["batch"] for case in figures["cases"]),
        max_abs_diff=figures["max_abs_diff"],
        min_cosine=figures["min_cosine"],
        tolerance=figures["limit"],
    )


def _merge(choice: Choice) -> MergeSummary:
    merge = choice.merge
    density = merge["density"] if "density" in READS[merge["method"]] else None
    return MergeSummary(
        method=merge["method"], weights=merge["weights"], density=density, trials=choice.trials
    )


def _verdict(choice: Choice, comparison: Comparison, proven: ProvenOn) -> str:
    """One sentence: what ships, and what the test queries say."""
    where = f"{comparison.queries} test queries" + ("" if proven == "user queries" else " (synthetic only)")
    if choice.shipped == BASE:
        return f"The untouched base ships. {choice.decision.reason}"
    result = comparison.systems[choice.shipped]
    if result.delta is None or result.ci95 is None:
        return f"{choice.shipped} ships."
    lo, hi = (100 * end for end in result.ci95)
    sure = "better than" if lo > 0 else "worse than" if hi < 0 else "not distinguishable from"
    best = f" ({choice.merge['method']})" if choice.system == MERGED else ""
    return (
        f"{choice.shipped}{best} ships: on {where} it is {sure} the base, "
        f"{100 * result.delta:+.2f} nDCG@10 points (95 % interval {lo:+.2f} to {hi:+.2f})."
    )


def _as_yaml(recipe: Recipe) -> str:
    import yaml

    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def write_outputs(summary: RunSummary, out: Path) -> None:
    """Write the report, the figures, and the systems against each other."""
    write_report(summary, out / "report.html")
    pairs = {"comparisons": [pair.figures() for pair in summary.comparisons]}
    for name, document in ((FIGURES, summary.figures()), (COMPARISONS, pairs)):
        (out / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def show(summary: RunSummary, console: Console) -> None:
    """Print the table."""
    console.print()
    print_table(summary, console)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
