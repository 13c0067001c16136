"""``stm-train demo``: the whole path on the collection that comes with the package."""

from __future__ import annotations

import argparse
from importlib.resources import as_file, files
from pathlib import Path
from typing import TypeAlias

from stm_training.commands.run import EXIT_CODES, add_run_options, require_training
from stm_training.demo.base_model import HUB_NAME, find_base
from stm_training.recipe import load_recipe

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "demo",
        help="the whole path on a small health handbook; offline, a few minutes on two cores",
        description="Train a retriever for a health handbook written for this project, from completions of a "
        "language model that were recorded with it, and compare it with its base on held-out lay queries. "
        "Not medical advice. " + EXIT_CODES,
    )
    parser.add_argument("--base", help=f"folder of {HUB_NAME}, where it is not cached or installed")
    parser.add_argument("--download", action="store_true", help="allow a download of the base from the hub")
    parser.add_argument("--seed", type=int, default=0, help="seed of every sample and shuffle (default: 0)")
    add_run_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo's recipe."""
    require_training()
    base = find_base(arguments.base, download=arguments.download)
    from stm_training.pipeline.run import run_recipe

    folder = Path(arguments.run_folder or "runs/demo")
    json_path = Path(arguments.json) if arguments.json else None
    with as_file(files("stm_training.demo")) as demo:
        overrides = {"seed": arguments.seed, "base": {"source": str(base), "name": HUB_NAME}}
        recipe = load_recipe(demo / "recipe.yaml", overrides=overrides)
        return run_recipe(recipe, folder, json_path=json_path, quiet=arguments.quiet)
