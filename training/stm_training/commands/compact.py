"""``stm-train compact``: rebuild, shrink or tune an index, or change its kind; nothing is encoded again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from stm_retriever.errors import ConfigError
from stm_retriever.index.folder import IndexFolder

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "compact",
        help="rebuild and shrink an index, change its kind, or tune its search",
        description="Rebuild the vector index where that helps (many deletions, much growth), give disk "
        "space back and delete what a re-encoding has left. Readers go on meanwhile.",
    )
    parser.add_argument("index", help="index folder")
    parser.add_argument("--kind", help="build another kind of vector index from the stored vectors")
    parser.add_argument(
        "--recall",
        type=float,
        help="set the search parameters so that this share of the true top 10 is found",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compact the index."""
    if arguments.recall is not None and not 0 < arguments.recall <= 1:
        raise ConfigError(f"--recall is {arguments.recall}; it is a share above 0 and at most 1.")
    path = Path(arguments.index)
    before = _size(path)
    folder = IndexFolder(path)
    try:
        if arguments.kind is not None:
            folder.change_kind(arguments.kind)
        folder.compact()
        if arguments.recall is not None:
            print(folder.tune(recall=arguments.recall).message)
        kind, count = folder.manifest.kind, folder.count()
    finally:
        folder.close()
    print(f"{count} documents, kind {kind!r}; {before / 1e6:.1f} MB before, {_size(path) / 1e6:.1f} MB now.")
    return 0


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file()) if path.is_dir() else 0
