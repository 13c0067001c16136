"""``stm-train evaluate``: score models on a collection, side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, TypeAlias

from stm_retriever.errors import ConfigError
from stm_retriever.folder import Prompts
from stm_training.commands.options import add_on_error
from stm_training.data.reading import read_beir
from stm_training.data.records import Collection
from stm_training.evaluate.bootstrap import DEFAULT, METHODS
from stm_training.evaluate.evaluation import (
    Evaluation,
    Settings,
    as_document,
    evaluate,
    save_runs,
    write_document,
)
from stm_training.evaluate.measures import DEFAULT_MEASURES, parse_measure
from stm_training.evaluate.systems import (
    BM25_NAME,
    HYBRID_PREFIX,
    RUN_PREFIX,
    Ranked,
    RankOptions,
    rank_model,
    self_matches,
)
from stm_training.evaluate.tables import evaluation_text
from stm_training.evaluate.versions import installed_versions

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Score one or more models on a collection that has queries and judgements, by trec_eval's own definitions.

A MODEL is one of
  FOLDER or org/name   a retriever folder (stm-train export), or any transformers or sentence-transformers
                       model with safetensors weights; names are looked up on the Hugging Face hub
  bm25                 BM25 (bm25s, English stop words and stemmer)
  hybrid:MODEL         reciprocal rank fusion of a model with bm25
  run:FILE             results in TREC format that any other system made

The first model is the reference: every other one is compared with it, query by query. The table shows the
mean difference in points with its 95 % interval (paired bootstrap over the queries), the p-value of a paired
permutation test, that p-value corrected for the number of comparisons (Holm), the effect size, and how many
queries were won, lost and tied. An interval that holds 0 means: these queries cannot tell the two apart.
Below it stand the queries that changed most, with the ranks of their relevant documents before and after.
"""
_EXAMPLES = """\
examples:
  stm-train evaluate my-retriever --data my-collection
  stm-train evaluate base-folder my-retriever bm25 --data scifact --json figures.json
  stm-train evaluate bm25 my-retriever hybrid:my-retriever --data scifact --all-pairs --runs runs/scifact

The collection is a folder in BEIR layout:
  corpus.jsonl      {"_id": "d1", "title": "...", "text": "..."} per line
  queries.jsonl     {"_id": "q1", "text": "..."} per line
  qrels/test.tsv    a header, then: query id, document id, grade (tab-separated; above 0 is relevant)

measures (--measures): ndcg@k recall@k precision@k map@k mrr@k success@k judged@k ndcg map mrr rprec bpref
  nDCG takes the grade as gain; for the others a grade above 0 is relevant. A judged query without results
  scores 0.

the JSON file (--json); scores lie between 0 and 1:
  schema_version   1
  systems          {model: {"ndcg@10", "recall@10", "delta", "ci95"}}; delta and ci95 to the reference
  reference        the first model
  measures         {model: {measure: mean over the queries}}
  comparisons      [{"reference", "system", "measure", "queries", "reference_mean", "system_mean",
                   "difference", "ci95": [lo, hi], "p_permutation", "p_bootstrap", "p_holm", "effect_size",
                   "wins", "losses", "ties", "changes": {"gains": [...], "losses": [...]}}]
                   "changes" stands on the first measure of --test alone; each is {"query", "text", "before",
                   "after", "difference", "relevant": [DOCUMENT], "top_before", "top_after": DOCUMENT|null},
                   a DOCUMENT {"id", "title", "grade", "before", "after"} with its ranks from 1, null where it
                   is not among the results
  per_query        {model: {measure: {query id: score}}}
  models           {model: what decided its results: kind, prompts, lengths, fingerprint}
  unanswered       {model: judged queries without any result}
  queries, documents, data, split, depth, exclude_self, judged_only, variant, interval, samples, seed,
  skipped_rows, runs ({model: file}), versions
"""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score models on a collection with judged queries",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help=f"folder, name on the hub, {BM25_NAME!r}, '{HYBRID_PREFIX}MODEL' or '{RUN_PREFIX}FILE'; the "
        "first is the reference",
    )
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FOLDER", help="collection in BEIR layout"
    )
    parser.add_argument("--split", default="test", help="which qrels file to use (default: test)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write a page with charts and the changed queries' texts",
    )
    parser.add_argument(
        "--runs", type=Path, metavar="FOLDER", help="also write every model's results there in TREC format"
    )
    _add_measures(parser)
    _add_statistics(parser)
    _add_models(parser)
    add_on_error(parser)


def _add_measures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--measures",
        type=_names,
        default=DEFAULT_MEASURES,
        metavar="A,B",
        help=f"measures to show, separated by commas (default: {', '.join(DEFAULT_MEASURES)})",
    )
    group.add_argument(
        "--depth", type=_at_least_1, default=100, help="documents ranked per query (default: 100)"
    )
    group.add_argument(
        "--exclude-self",
        action="store_true",
        help="drop the document with the query's own id from its results, for collections whose queries are "
        "documents of the corpus (ArguAna)",
    )
    group.add_argument(
        "--judged-only",
        action="store_true",
        help="leave documents that nobody judged out of the results before scoring; shows judged@10 too",
    )


def _add_statistics(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how models are compared")
    group.add_argument(
        "--all-pairs",
        action="store_true",
        help="compare every model with every later one, not the first alone",
    )
    group.add_argument(
        "--test",
        type=_names,
        default=("ndcg@10",),
        metavar="A,B",
        help="measures to compare on, all in one Holm correction (default: ndcg@10)",
    )
    group.add_argument(
        "--changes",
        type=_at_least_0,
        default=5,
        metavar="N",
        help="show the N queries with the largest gain and loss (default: 5)",
    )
    group.add_argument(
        "--interval", choices=METHODS, default=DEFAULT, help=f"bootstrap interval (default: {DEFAULT})"
    )
    group.add_argument(
        "--samples",
        type=_at_least_1,
        default=10_000,
        help="bootstrap samples and permutations (default: 10000)",
    )
    group.add_argument("--seed", type=int, default=0, help="seed of both (default: 0)")


def _add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how models are run")
    group.add_argument(
        "--variant", default="fp32", help="which ONNX file of retriever folders (default: fp32)"
    )
    group.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda", "auto"), help="where to encode (default: cpu)"
    )
    group.add_argument("--download", action="store_true", help="allow a download of models given by hub name")
    group.add_argument(
        "--query-prompt",
        metavar="TEXT",
        help="put before queries, for models that are no retriever folders and do not store their prompts",
    )
    group.add_argument("--document-prompt", metavar="TEXT", help="likewise before documents")


def run(arguments: argparse.Namespace) -> int:
    """Score the models.

    Args:
        arguments: What :func:`add_parser` describes.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: If a model is given twice, or is no model's name.
        DataError: If the collection or a run file cannot be read.
        ModelFolderError: If a model is not there or cannot be run.
    """
    repeated = sorted({model for model in arguments.models if arguments.models.count(model) > 1})
    if repeated:
        raise ConfigError(f"{', '.join(repeated)} is given more than once; give each model once.")
    collection = read_beir(
        arguments.data, arguments.split, on_error=arguments.on_error, allow_title_only=True
    )
    for row in collection.skipped:
        print(f"skipped {row}")
    _hint_at_self_matches(collection, excluded=arguments.exclude_self)
    _hint_at_depth(arguments)
    ranked = _rank(arguments, collection)
    settings = _settings(arguments)
    found = evaluate(ranked, collection, settings)
    size = f"{len(collection.qrels)} queries, {len(collection.corpus)} documents"
    print(f"\n{arguments.data}, split {arguments.split}: {size}\n")
    print(evaluation_text(found))
    _write_files(arguments, ranked, collection, settings, found)
    return 0


def _rank(arguments: argparse.Namespace, collection: Collection) -> dict[str, Ranked]:
    options = RankOptions(
        depth=arguments.depth,
        exclude_self=arguments.exclude_self,
        variant=arguments.variant,
        device=arguments.device,
        download=arguments.download,
        prompts=_prompts(arguments),
        show_progress=sys.stderr.isatty(),
    )
    known: dict[str, Ranked] = {}
    ranked = {}
    for model in arguments.models:
        print(f"{model}: ranking {len(collection.corpus)} documents ...", file=sys.stderr)
        ranked[model] = rank_model(model, collection, options, known=known)
    return ranked


def _prompts(arguments: argparse.Namespace) -> Prompts | None:
    if arguments.query_prompt is None and arguments.document_prompt is None:
        return None
    return Prompts(query=arguments.query_prompt or "", document=arguments.document_prompt or "")


def _settings(arguments: argparse.Namespace) -> Settings:
    measures = tuple(arguments.measures)
    if arguments.judged_only and "judged@10" not in measures:
        measures = (*measures, "judged@10")
    return Settings(
        measures=measures,
        tested=arguments.test,
        judged_only=arguments.judged_only,
        all_pairs=arguments.all_pairs,
        changes=arguments.changes,
        seed=arguments.seed,
        samples=arguments.samples,
        interval=arguments.interval,
    )


def _write_files(
    arguments: argparse.Namespace,
    ranked: dict[str, Ranked],
    collection: Collection,
    settings: Settings,
    found: Evaluation,
) -> None:
    context: dict[str, Any] = {
        "data": str(arguments.data),
        "split": arguments.split,
        "depth": arguments.depth,
        "exclude_self": arguments.exclude_self,
        "variant": arguments.variant,
    }
    if arguments.runs is not None:
        files = save_runs(arguments.runs, ranked, collection)
        context["runs"] = {model: str(file) for model, file in files.items()}
        print(f"\nResults and judgements in TREC format: {arguments.runs}")
    if arguments.html is not None:
        _write_page(arguments, collection, settings, found)
        print(f"\nTo look at: {arguments.html}")
    if arguments.json is not None:
        write_document(arguments.json, as_document(found, ranked, collection, settings, context))


def _write_page(
    arguments: argparse.Namespace, collection: Collection, settings: Settings, found: Evaluation
) -> None:
    from stm_training.report.comparison import write_comparison

    notes = [f"{len(collection.qrels)} queries against {len(collection.corpus)} documents."]
    if arguments.exclude_self:
        notes.append("The document with the query's own id is left out.")
    if settings.judged_only:
        notes.append("Documents that nobody judged are left out.")
    if collection.skipped:
        notes.append(f"{len(collection.skipped)} bad rows were skipped.")
    title = f"{arguments.data.name or arguments.data}, split {arguments.split}"
    write_comparison(arguments.html, found, title=title, lines=notes, versions=installed_versions())


def _hint_at_depth(arguments: argparse.Namespace) -> None:
    """A cut behind the last ranked document asks for documents that nobody looked for."""
    deep = [
        name
        for name in dict.fromkeys((*arguments.measures, *arguments.test))
        if (parse_measure(name).cut or 0) > arguments.depth
    ]
    if deep:
        print(
            f"note: {', '.join(deep)} see only the first {arguments.depth} documents; give a larger --depth.",
            file=sys.stderr,
        )


def _hint_at_self_matches(collection: Collection, *, excluded: bool) -> None:
    count = self_matches(collection)
    if count and not excluded:
        print(
            f"note: {count} queries are documents of this corpus (same id, same text) and will find "
            "themselves first. Published figures for such collections leave them out: add --exclude-self.",
            file=sys.stderr,
        )


def _names(text: str) -> tuple[str, ...]:
    """Measures separated by commas, checked before anything is encoded."""
    try:
        found = tuple(parse_measure(name).name for name in text.split(","))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return tuple(dict.fromkeys(found))


def _at_least_1(text: str) -> int:
    return _whole_number(text, 1)


def _at_least_0(text: str) -> int:
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)
