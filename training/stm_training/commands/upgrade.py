"""``stm-train upgrade``: an index folder of an older version becomes one of this version."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from stm_retriever.index.upgrade import upgrade

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "upgrade",
        help="bring an index folder of an older version up to date",
        description="Rewrite the documents of an index folder that an older stm-retriever made. Nothing is "
        "encoded again. Until it is done the folder stays as it is; meanwhile it needs twice its space.",
    )
    parser.add_argument("index", help="index folder")


def run(arguments: argparse.Namespace) -> int:
    """Upgrade the folder."""
    if upgrade(Path(arguments.index)):
        print(f"{arguments.index} is up to date now.")
    else:
        print(f"{arguments.index} was up to date already.")
    return 0
