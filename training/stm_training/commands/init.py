"""``stm-train init``: a recipe to start from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TypeAlias

from stm_retriever.errors import ConfigError
from stm_training.recipe_text import commented_recipe

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "init",
        help="write a commented recipe for your own documents",
        description="Write a recipe with every key, its meaning and default. Edit it, then: stm-train run.",
    )
    parser.add_argument("path", nargs="?", default="recipe.yaml", help="file to write (default: recipe.yaml)")
    parser.add_argument("--name", default="my-retriever", help="name of the run and of the model")
    parser.add_argument("--corpus", default="documents", help="your documents: folder, JSONL or BEIR folder")
    parser.add_argument(
        "--base",
        default="sentence-transformers/all-MiniLM-L6-v2",
        help="model to start from: folder or hub name",
    )
    parser.add_argument("--queries", help="BEIR folder with labelled queries, if you have any")
    parser.add_argument(
        "--base-url", help="OpenAI-compatible server that writes training queries, if you have one"
    )
    parser.add_argument("--model", help="model name on that server")
    parser.add_argument("--show", action="store_true", help="print the recipe instead of writing it")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(arguments: argparse.Namespace) -> int:
    """Write or print the recipe."""
    text = commented_recipe(_values(arguments))
    if arguments.show:
        print(text, end="")
        return 0
    path = Path(arguments.path)
    if path.exists() and not arguments.force:
        message = f"{path} is there already, and is not replaced. Give another name, or --force."
        raise ConfigError(message)
    path.write_text(text, encoding="utf-8")
    print(f"Wrote {path}. Look it over, then run: stm-train run {path}")
    return 0


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": arguments.name,
        "base": {"source": arguments.base, "download": not Path(arguments.base).exists()},
        "corpus": arguments.corpus,
        "synthesize": {},
        "experts": {
            "questions": {"kinds": ["question", "sentence"]},
            "statements": {"kinds": ["claim", "title", "keywords"]},
        },
    }
    if arguments.base_url:
        values["synthesize"]["llm"] = {"base_url": arguments.base_url, "model": arguments.model or "default"}
    if arguments.queries:
        values["queries"] = {"path": arguments.queries, "train": "train", "test": "test"}
        values["experts"]["labelled"] = {"kinds": ["labelled"]}
    return values
