"""``stm-train leakage``: what training and the test sets share."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stm_training.commands.options import add_on_error

if TYPE_CHECKING:
    from stm_training.leakage.report import Example, LeakageReport, Overlap

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EXIT_LEAKS = 1
_WIDTH = 100
_DESCRIPTION = """\
Look for queries and documents that training and the test sets share: the same, the same but for case,
punctuation and spacing, or nearly the same (Jaccard similarity of their words for two queries, of their word
3-shingles for all else).

A test query that is a training query is a leak: its score proves nothing. Documents in common and near
duplicates are shown and are no leak by themselves: one corpus may serve training and test. Read the examples.
Exit status: 0 without leaks, 1 with some (unless their test set is allowed by name).
"""
_EXAMPLES = """\
examples:
  stm-train leakage pairs.jsonl --test scifact nfcorpus
  stm-train leakage runs/mine/pairs/pairs.jsonl medquad --test scifact --json leakage.json
  stm-train leakage pairs.jsonl --test scifact --allow scifact/test

TRAIN is a JSONL file of pairs, or a folder in BEIR layout (queries of its train split and their documents).
"""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "leakage",
        help="find test queries and documents among those trained on",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("training", nargs="+", type=Path, metavar="TRAIN", help="pairs file or BEIR folder")
    parser.add_argument(
        "--test", nargs="+", type=Path, required=True, metavar="FOLDER", help="test sets in BEIR layout"
    )
    parser.add_argument("--split", default="test", help="split of the test sets (default: test)")
    parser.add_argument(
        "--train-split", default="train", help="split of BEIR folders trained on (default: train)"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.8,
        help="Jaccard similarity of near duplicates (default: 0.8; of documents far below some are missed)",
    )
    parser.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="NAME",
        help="test sets whose leaks are no error, by the name that the table gives them",
    )
    parser.add_argument("--queries-only", action="store_true", help="leave documents out; faster")
    parser.add_argument("--examples", type=int, default=3, help="how many to print of each (default: 3)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write counts and examples to this file"
    )
    add_on_error(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare; 0 without leaks, 1 with some.

    Raises:
        DataError: If a file or folder cannot be read.
        ConfigError: For a threshold out of range, or an allowed name that no test set has.
    """
    from stm_training.leakage.search import find_overlaps
    from stm_training.leakage.sets import read_test, read_training

    training = [
        read_training(path, split=arguments.train_split, on_error=arguments.on_error)
        for path in arguments.training
    ]
    tests = [read_test(path, split=arguments.split, on_error=arguments.on_error) for path in arguments.test]
    report = find_overlaps(
        training,
        tests,
        threshold=arguments.threshold,
        allowed=arguments.allow,
        documents=not arguments.queries_only,
        examples=max(0, arguments.examples),
    )
    print(format_report(report))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report.figures(), indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    if report.leaks:
        names = ", ".join(dict.fromkeys(one.test for one in report.leaks))
        print(
            f"LEAK: test queries of {names} were trained on, so their score would prove nothing. Take those "
            f"rows out of training, or allow the set by name: --allow {names.replace(', ', ' ')}",
            file=sys.stderr,
        )
        return EXIT_LEAKS
    return 0


def format_report(report: LeakageReport) -> str:
    """The counts as a table, then the examples."""
    header = ("training", "test", "of", "same", "normalised", "near")
    rows = [header]
    for one in report.overlaps:
        sides = (f"{one.train} {_many(one.train_role)}", f"{one.test} {_many(one.test_role)}")
        rows.append((*sides, str(one.test_texts), str(one.exact), str(one.normalised), str(one.near)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for one in report.overlaps:
        lines += _shown(one)
    return "\n".join(lines)


def _many(role: str) -> str:
    return "queries" if role == "query" else "documents"


def _shown(overlap: Overlap) -> list[str]:
    if not overlap.examples:
        return []
    title = f"{overlap.test} {_many(overlap.test_role)} in {overlap.train} {_many(overlap.train_role)}:"
    return ["", title, *(line for example in overlap.examples for line in _two_lines(example))]


def _two_lines(example: Example) -> list[str]:
    likeness = example.kind if example.kind != "near" else f"near, {example.jaccard:.2f}"
    return [
        f"  {likeness}: {example.test_id}: {_short(example.test)}",
        f"  {' ' * len(likeness)}  {example.train_id}: {_short(example.train)}",
    ]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."
