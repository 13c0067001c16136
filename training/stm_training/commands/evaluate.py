"""``stm-train evaluate``: score models on a collection, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

from stm_retriever.errors import ConfigError
from stm_training.commands.options import add_on_error
from stm_training.data.reading import read_beir
from stm_training.data.records import Collection
from stm_training.evaluate.compare import Comparison, SystemResult, compare
from stm_training.evaluate.metrics import score_run
from stm_training.evaluate.systems import BM25_NAME, run_model, self_matches
from stm_training.evaluate.versions import installed_versions

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Score one or more models on a collection that has queries and judgements.

The first model is the reference: for every other one the table shows the difference in nDCG@10 and its 95 %
interval (paired bootstrap over the queries). An interval that holds 0 means: these queries cannot tell the
two apart.
"""
_EXAMPLES = """\
examples:
  stm-train evaluate my-retriever --data my-collection
  stm-train evaluate base-folder my-retriever bm25 --data scifact --json figures.json

The collection is a folder in BEIR layout:
  corpus.jsonl      {"_id": "d1", "title": "...", "text": "..."} per line
  queries.jsonl     {"_id": "q1", "text": "..."} per line
  qrels/test.tsv    a header, then: query id, document id, grade (tab-separated; above 0 is relevant)
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
        help=f"retriever folder (see stm-train export), its name on the Hugging Face hub, or {BM25_NAME!r}; "
        "the first is the reference",
    )
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FOLDER", help="collection in BEIR layout"
    )
    parser.add_argument("--split", default="test", help="which qrels file to use (default: test)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument(
        "--exclude-self",
        action="store_true",
        help="drop the document with the query's own id from its results, for collections whose queries are "
        "documents of the corpus (ArguAna)",
    )
    parser.add_argument("--variant", default="fp32", help="which ONNX file of the folders (default: fp32)")
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda", "auto"), help="where to encode (default: cpu)"
    )
    parser.add_argument(
        "--download", action="store_true", help="allow a download of models given by hub name"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    add_on_error(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score the models.

    Args:
        arguments: What :func:`add_parser` describes.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: If a model is given twice.
        DataError: If the collection cannot be read.
        ModelFolderError: If a model is not there or has no ONNX file.
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
    scores = {}
    for model in arguments.models:
        print(f"{model}: ranking {len(collection.corpus)} documents ...", file=sys.stderr)
        found = run_model(
            model,
            collection,
            exclude_self=arguments.exclude_self,
            variant=arguments.variant,
            device=arguments.device,
            download=arguments.download,
            show_progress=sys.stderr.isatty(),
        )
        scores[model] = score_run(found, collection.qrels, k=10)
    results = compare(scores, base=arguments.models[0], seed=arguments.seed)
    size = f"{results.queries} queries, {len(collection.corpus)} documents"
    print(f"\n{arguments.data}, split {arguments.split}: {size}\n")
    print(format_table(results))
    if arguments.json is not None:
        _write_json(arguments, results, collection)
    return 0


def format_table(results: Comparison) -> str:
    """The figures as a plain text table; differences in points (0-100)."""
    header = ("model", "nDCG@10", "recall@10", "difference", "95 % interval")
    rows = [header] + [
        (name, f"{result.ndcg10:.4f}", f"{result.recall10:.4f}", *_difference(result))
        for name, result in results.systems.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) if index == 0 else cell.rjust(width) for index, (cell, width) in pairs)
        for pairs in (enumerate(zip(row, widths, strict=True)) for row in rows)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if len(results.systems) == 1:
        return "\n".join(line.rstrip() for line in lines)
    note = f"Differences are nDCG@10 points (0-100) against {results.base}, with a paired bootstrap interval."
    return "\n".join([*(line.rstrip() for line in lines), "", note])


def _difference(result: SystemResult) -> tuple[str, str]:
    if result.delta is None or result.ci95 is None:
        return "reference", ""
    lo, hi = result.ci95
    return f"{100 * result.delta:+.2f}", f"{100 * lo:+.2f} to {100 * hi:+.2f}"


def _hint_at_self_matches(collection: Collection, *, excluded: bool) -> None:
    count = self_matches(collection)
    if count and not excluded:
        print(
            f"note: {count} queries are documents of this corpus (same id, same text) and will find "
            "themselves first. Published figures for such collections leave them out: add --exclude-self.",
            file=sys.stderr,
        )


def _write_json(arguments: argparse.Namespace, results: Comparison, collection: Collection) -> None:
    figures: dict[str, Any] = {
        **results.figures(),
        "reference": results.base,
        "data": str(arguments.data),
        "split": arguments.split,
        "queries": results.queries,
        "documents": len(collection.corpus),
        "exclude_self": arguments.exclude_self,
        "variant": arguments.variant,
        "skipped_rows": len(collection.skipped),
        "seed": arguments.seed,
        "versions": installed_versions(),
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
