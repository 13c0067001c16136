"""``stm-train clean``: frees the disk that a run no longer needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Remove what a run no longer needs. By default: scratch files, checkpoints, and what a killed run left half
written; no finished stage is touched. With --keep, every stage is removed but those that are named:
`--keep retriever,index,report` leaves what is served and its report. Removed stages are made again by the
next `stm-train run`. The journal of the LLM's completions is never removed: it was paid for.
Files and folders that no run wrote are left alone, and are listed. Links are never followed.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "clean",
        help="free the disk that a run no longer needs",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", help="run folder, for instance runs/my-retriever")
    parser.add_argument(
        "--keep", metavar="STAGES", help="remove every stage but these, for instance retriever,index,report"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go; nothing is removed")


def run(arguments: argparse.Namespace) -> int:
    """Clean the folder; 0, or 1 where something is in use and stays."""
    from stm_training.pipeline.cleaning import carry_out, plan_cleaning
    from stm_training.pipeline.estimates import in_units

    keep = None
    if arguments.keep is not None:
        keep = tuple(name.strip() for name in arguments.keep.split(",") if name.strip())
    plan = plan_cleaning(Path(arguments.folder), keep)
    verb = "would remove" if arguments.dry_run else "removed"
    failed = [] if arguments.dry_run else carry_out(plan)
    for item in plan.items:
        if item.path not in failed:
            print(f"{verb} {item.path} ({in_units(item.size)}): {item.what}")
    for path in failed:
        print(f"in use, left: {path}. Close the program that has it open, then clean again.")
    for path in plan.foreign:
        print(f"left, no run wrote it: {path}")
    freed = sum(item.size for item in plan.items if item.path not in failed)
    print(f"{'Would free' if arguments.dry_run else 'Freed'} {in_units(freed)}.")
    return 1 if failed else 0
