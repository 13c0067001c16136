"""``stm-train run``: everything that a recipe says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from stm_retriever.errors import require
from stm_training.recipe import load_recipe

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EXIT_CODES = (
    "Exit status: 0 done; 2 an error you can mend; 3 the test queries contradict the choice; 130 Ctrl-C."
)


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "run",
        help="do everything that a recipe says, and resume where it was stopped",
        description="Synthesize, train, merge, choose on development queries, export, index, and report. "
        "Started again, it goes on where it stopped and repeats no finished stage. " + EXIT_CODES,
    )
    parser.add_argument("recipe", help="YAML file; write one with stm-train init")
    add_run_options(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the stages, what is read, and about what it takes, and stop; nothing is written",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options that ``run`` and ``demo`` share."""
    parser.add_argument("--run-folder", help="where results go (default: runs/<name>)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def require_training() -> None:
    """Say which extra is missing before anything is done."""
    for module in ("torch", "transformers", "peft", "onnxscript", "rich"):
        require(module, extra="train", purpose="training a retriever")


def run(arguments: argparse.Namespace) -> int:
    """Run the recipe."""
    recipe = load_recipe(arguments.recipe)
    require_training()
    folder = Path(arguments.run_folder or Path("runs") / recipe.name)
    if arguments.dry_run:
        from stm_training.pipeline.planning import plan_run

        print("\n".join(plan_run(recipe, folder).lines()))
        return 0
    from stm_training.pipeline.run import run_recipe  # after the recipe is checked: this imports torch

    json_path = Path(arguments.json) if arguments.json else None
    return run_recipe(recipe, folder, json_path=json_path, quiet=arguments.quiet)
