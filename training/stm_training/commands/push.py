"""``stm-train push``: a retriever folder to the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Upload a retriever folder to the Hugging Face hub. The card is validated first, and every file is looked at:
secrets, pickles, links and files that are too large stop the command before anything is sent. The folder
appears by one commit; a stopped upload goes on with the same command. Needs a token that may write
(`hf auth login`, or HF_TOKEN). Index folders hold your documents, and are not pushed.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "push",
        help="upload a retriever folder to the Hugging Face hub",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", help="retriever folder")
    parser.add_argument("name", metavar="ORG/NAME", help="repository; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch; made if it is not there (default: main)")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument(
        "--dry-run", action="store_true", help="check card and files, and stop; nothing is sent"
    )


def run(arguments: argparse.Namespace) -> int:
    """Upload the folder."""
    from stm_training.hub.checks import check_folder
    from stm_training.hub.push import push_folder

    folder = Path(arguments.folder)
    if arguments.dry_run:
        files = check_folder(folder)
        print("\n".join(file.as_posix() for file in files))
        print(f"{len(files)} files would be uploaded to {arguments.name}; card and files look well.")
        return 0
    done = push_folder(
        folder,
        arguments.name,
        private=arguments.private,
        revision=arguments.revision,
        message=arguments.message,
        tell=print,
    )
    print(f"{done.files} files ({done.size} bytes) are at {done.url}, commit {done.commit}.")
    return 0
