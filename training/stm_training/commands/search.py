"""``stm-train search``: a question to an index folder."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TypeAlias

from stm_retriever import Hit, Retriever

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "search",
        help="ask an index folder a question",
        description="Print the passages of an index folder that are nearest to a question, best first. "
        "The score is the cosine similarity: higher is better.",
    )
    parser.add_argument("index", help="index folder, made by stm-train index or run")
    parser.add_argument("query", help="the question")
    parser.add_argument("-k", type=int, default=5, help="number of hits (default: 5)")
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
        hits = retriever.search(arguments.query, k=arguments.k, group_by_parent=arguments.group_by_parent)
    for rank, hit in enumerate(hits, start=1):
        print(_as_json(hit) if arguments.json else _as_text(rank, hit))
    if not hits and not arguments.json:
        print("The index is empty. Fill it: stm-train index DOCUMENTS --model FOLDER --out INDEX")
    return 0


def _as_json(hit: Hit) -> str:
    row = {"id": hit.id, "score": hit.score, "text": hit.text, "metadata": dict(hit.metadata)}
    return json.dumps(row, ensure_ascii=False)


def _as_text(rank: int, hit: Hit) -> str:
    body = textwrap.shorten(hit.text, width=300, placeholder=" ...")
    return f"{rank:2d}. {hit.score:.4f}  {hit.id}\n" + textwrap.indent(textwrap.fill(body, 96), "    ")
