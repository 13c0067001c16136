"""``stm-train doctor``: what is wrong with a folder, and what mends it."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EXIT_PROBLEMS = 1
_MARKS = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}
_DESCRIPTION = """\
Check a retriever folder or an index folder, and the packages that would run it.

Looks at the manifest, the hash of every file, the recorded tokens and vectors, the prompts, the end-of-text
token, the versions, and packages that overwrite each other. Changes nothing and needs no torch.
Exit status: 0 when all is well (warnings included), 1 when something is wrong.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="check a retriever or index folder, and say what mends it",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", help="retriever folder or index folder")
    parser.add_argument("--quiet", action="store_true", help="print warnings and problems only")


def run(arguments: argparse.Namespace) -> int:
    """Check the folder; 0 if it is fine, 1 if not."""
    from stm_training.export.doctor import diagnose

    findings = diagnose(arguments.folder)
    for finding in findings:
        if finding.level == "ok" and arguments.quiet:
            continue
        print(f"{_MARKS[finding.level]}{finding.what}")
        if finding.remedy:
            print(f"          -> {finding.remedy}")
    problems = sum(finding.level == "problem" for finding in findings)
    print(f"{problems} problem(s) in {arguments.folder}." if problems else f"{arguments.folder} is fine.")
    return EXIT_PROBLEMS if problems else 0
