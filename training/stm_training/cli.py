"""The command ``stm-train``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from stm_retriever import __version__
from stm_retriever.errors import StmError
from stm_training.llm.telemetry import telemetry_off

COMMANDS = (
    "init",
    "run",
    "demo",
    "synthesize",
    "mine",
    "prompts",
    "convert",
    "finetune",
    "merge",
    "merge-search",
    "export",
    "evaluate",
    "leakage",
    "mteb",
    "index",
    "encode",
    "search",
    "reindex",
    "compact",
    "upgrade",
    "doctor",
    "clean",
    "push",
)
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

_DESCRIPTION = """\
Turn a language model into your domain's retriever: synthesize queries, train LoRA experts,
merge them with the base, keep what is proven better on held-out queries, and export it to ONNX.

  stm-train demo                     the whole path on a small health handbook (minutes, offline)
  stm-train init recipe.yaml         start a recipe for your own documents
  stm-train run recipe.yaml          do everything that the recipe says; run again to resume
  stm-train index DOCS --model FOLDER --out INDEX     then: stm-train search INDEX "a question"
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="stm-train", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"stm-retriever {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens inside, to stderr")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = importlib.import_module(f"stm_training.commands.{name.replace('-', '_')}")
        command.add_parser(subparsers)
        subparsers.choices[name].set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 when all went well, 2 for an error that the user can mend, 130 after Ctrl-C; commands may
        return others, which their help names.
    """
    arguments = build_parser().parse_args(argv)
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    telemetry_off()
    try:
        return int(arguments.run(arguments))
    except StmError as error:
        print(f"stm-train {arguments.command}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("\nStopped. What is finished is kept; the same command goes on from there.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `stm-train search ... | head`
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
