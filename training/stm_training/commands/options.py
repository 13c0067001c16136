"""Options that several commands have, so that they mean and say the same everywhere."""

from __future__ import annotations

from argparse import ArgumentParser, _ArgumentGroup


def add_on_error(parser: ArgumentParser | _ArgumentGroup) -> None:
    """What a bad row does."""
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="skip: leave bad rows out and list them",
    )
