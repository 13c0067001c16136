"""``stm-train search``: a question to an index folder."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any, TypeAlias

from stm_retriever import ConfigError, Hit, Retriever

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "search",
        help="ask an index folder a question",
        description="Print the passages of an index folder that fit a question best, best first. The score "
        "is the cosine similarity, or with another mode or a reranker theirs: higher is better.",
    )
    parser.add_argument("index", help="index folder, made by stm-train index or run")
    parser.add_argument("query", help="the question")
    parser.add_argument("-k", "--k", type=int, default=5, help="number of hits (default: 5)")
    parser.add_argument(
        "--mode",
        choices=("dense", "lexical", "hybrid"),
        default="dense",
        help="by vector, by words (BM25), or by both (default: dense)",
    )
    parser.add_argument(
        "--where", metavar="JSON", help='metadata filter, for instance \'{"year": {"$gte": 2020}}\''
    )
    parser.add_argument("--min-score", type=float, help="only hits with at least this score")
    parser.add_argument("--rerank", metavar="FOLDER", help="ONNX folder of a cross-encoder that reranks")
    parser.add_argument("--group-by-parent", action="store_true", help="at most one passage per document")
    parser.add_argument("--model", help="retriever folder, where it is not the one the index names")
    parser.add_argument("--json", action="store_true", help="one JSON object per hit")


def run(arguments: argparse.Namespace) -> int:
    """Search and print."""
    embedder = None
    if arguments.model:
        from stm_retriever import Embedder

        embedder = Embedder.load(arguments.model)
    with Retriever.open(arguments.index, embedder=embedder, read_only=True) as retriever:
        hits = retriever.search(
            arguments.query,
            k=arguments.k,
            where=_filter(arguments.where),
            mode=arguments.mode,
            rerank=_reranker(arguments.rerank),
            min_score=arguments.min_score,
            group_by_parent=arguments.group_by_parent,
        )
        empty = not hits and not len(retriever)
    for rank, hit in enumerate(hits, start=1):
        print(_as_json(hit) if arguments.json else _as_text(rank, hit))
    if empty and not arguments.json:
        print("The index is empty. Fill it: stm-train index DOCUMENTS --model FOLDER --out INDEX")
    elif not hits and not arguments.json:
        print("Nothing fits. Loosen --where or --min-score, or take another --mode.")
    return 0


def _filter(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        where = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"--where {text!r:.80} is no JSON ({error}). Write for instance: "
            '--where \'{"year": {"$gte": 2020}}\''
        ) from error
    if not isinstance(where, dict):
        raise ConfigError(
            f"--where {text!r:.80} is a {type(where).__name__}, not an object. Write for instance: "
            "--where '{\"year\": 2020}'"
        )
    return where


def _reranker(folder: str | None) -> Any:
    if folder is None:
        return None
    from stm_retriever.rerank import CrossEncoder

    return CrossEncoder.load(folder)


def _as_json(hit: Hit) -> str:
    row = {"id": hit.id, "score": hit.score, "text": hit.text, "metadata": dict(hit.metadata)}
    return json.dumps(row, ensure_ascii=False)


def _as_text(rank: int, hit: Hit) -> str:
    body = textwrap.shorten(hit.text, width=300, placeholder=" ...")
    return f"{rank:2d}. {hit.score:.4f}  {hit.id}\n" + textwrap.indent(textwrap.fill(body, 96), "    ")
