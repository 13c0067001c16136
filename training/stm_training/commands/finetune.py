"""``stm-train finetune``: train a model on pairs, watched on development queries."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stm_retriever.errors import ConfigError, require
from stm_training.commands.options import add_on_error
from stm_training.commands.settings_options import add_settings, read_settings
from stm_training.finetune.settings import (
    FEWEST_STEPS_BETWEEN_CHECKPOINTS,
    TrainSettings,
    usual_save_steps,
)

if TYPE_CHECKING:
    from rich.console import Console

    from stm_training.data.records import Pair, SkippedRow
    from stm_training.finetune.backbone import BackboneSpec
    from stm_training.pipeline.collections import Problem
    from stm_training.pipeline.finetuning import Finetuning

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Train a LoRA adapter (or all weights) of a text model with a contrastive loss on pairs of query and passage.

With --dev, the model is scored on development queries before, during and after the training; the weights that
were best there are kept, and never some that lose too much on a --guard. The folder gets adapter/ (PEFT's
format), history.json, curves.html, finetune.json with the figures, and tensorboard/.
The same command goes on where it was stopped. Under torchrun or accelerate launch a batch is divided among
the processes.
"""
_EXAMPLES = """\
examples:
  stm-train finetune --base minilm --pairs pairs.jsonl --out expert
  stm-train finetune --base minilm --pairs pairs.jsonl --dev my-collection --guard news=other-collection \\
      --steps 300 --patience 3 --out expert --export my-retriever
  torchrun --nproc-per-node 4 -m stm_training.cli finetune --base my-decoder --pairs pairs.jsonl --out expert

A pair is a row {"query": "...", "positive": "...", "negatives": ["..."]} of a JSONL file.
"""
_ANCHOR_TEXTS = 2000


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "finetune",
        help="train a model on pairs, and watch it on development queries",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--base",
        required=True,
        metavar="MODEL",
        help="folder with config.json and model.safetensors, or hub name",
    )
    parser.add_argument(
        "--pairs",
        required=True,
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="training pairs; several files are one after the other",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="what the training leaves")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="remove another training's result at OUT")
    parser.add_argument("--quiet", action="store_true", help="no progress, no batch; the summary stays")
    add_on_error(parser)
    _add_base(parser)
    _add_watching(parser)
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="also write what was trained as a retriever folder"
    )
    defaults = {
        "eval_steps": "with --dev a tenth of all steps",
        "save_steps": f"a tenth of all steps, at least {FEWEST_STEPS_BETWEEN_CHECKPOINTS}",
    }
    add_settings(parser.add_argument_group("training"), TrainSettings, defaults=defaults)


def _add_base(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the base")
    group.add_argument("--revision", help="branch, tag or commit of a hub name")
    group.add_argument("--download", action="store_true", help="fetch a hub name that is not cached")
    group.add_argument(
        "--pooling", choices=("auto", "cls", "mean", "last"), default="auto", help="as in stm-train export"
    )
    group.add_argument(
        "--attention",
        choices=("auto", "causal", "bidirectional"),
        default="auto",
        help="as in stm-train export",
    )
    group.add_argument("--max-length", type=int, metavar="N", help="most tokens per text")
    group.add_argument("--query-prompt", metavar="TEXT", help="text before each query ('' for none)")
    group.add_argument("--document-prompt", metavar="TEXT", help="text before each document ('' for none)")


def _add_watching(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("development queries, guards, anchor")
    group.add_argument("--dev", type=Path, metavar="FOLDER", help="collection in BEIR layout to score on")
    group.add_argument(
        "--dev-split", default="dev", metavar="NAME", help="its qrels file (default: dev); never test"
    )
    group.add_argument("--exclude-self", action="store_true", help="as in stm-train evaluate, for --dev")
    group.add_argument(
        "--guard",
        action="append",
        default=[],
        metavar="NAME=FOLDER[:SPLIT]",
        help="collection of another domain that must not get worse; half of the queries of its split "
        "(default: test) are used, the other half stays for tests; repeat it for each",
    )
    group.add_argument(
        "--max-guard-loss",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="weights that lose more on a guard are never kept; nDCG@10 points, 0-100 (default: 0.5)",
    )
    group.add_argument(
        "--documents", type=int, metavar="N", help="rank judged documents and a sample up to N"
    )
    group.add_argument(
        "--anchor",
        type=Path,
        metavar="FILE",
        help="general texts (folder, JSONL or BEIR folder) whose vectors shall stay, with --anchor-weight",
    )
    group.add_argument(
        "--anchor-texts",
        type=int,
        default=_ANCHOR_TEXTS,
        metavar="N",
        help=f"how many of them, drawn by the seed (default: {_ANCHOR_TEXTS})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train.

    Args:
        arguments: What :func:`add_parser` describes.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: If the options do not fit together, or OUT holds something else.
        DataError: If a file cannot be read.
        TrainingError: If training cannot go on.
        MissingExtraError: If the training packages are not installed.
    """
    _check(arguments)
    for package in ("torch", "transformers", "peft", "accelerate", "tensorboardX", "matplotlib", "rich"):
        require(package, extra="train", purpose="stm-train finetune")
    from stm_training.pipeline.console import RunConsole
    from stm_training.pipeline.finetuning import export_trained, finetune
    from stm_training.pipeline.watching import is_first_process
    from stm_training.report.training import next_steps, training_summary

    if arguments.export is not None:
        from stm_training.export.folder_writer import check_target

        require("onnxscript", extra="train", purpose="--export")
        check_target(arguments.export, overwrite=arguments.overwrite)
    job = _job(arguments)
    first = is_first_process()
    try:
        console = RunConsole(quiet=arguments.quiet, console=_console(silent=arguments.quiet or not first))
        figures = finetune(job, console, overwrite=arguments.overwrite)
    finally:
        _leave_processes()
    if not first:
        return 0
    print(training_summary(figures, arguments.out))
    if arguments.export is not None:
        export_trained(
            job, figures, arguments.export, overwrite=arguments.overwrite, tell=_say(arguments.quiet)
        )
    target = (arguments.export, arguments.dev) if arguments.export is not None else None
    print(next_steps(figures, arguments.out, base=arguments.base, exported=target))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.dev_split == "test":
        raise ConfigError(
            "--dev-split test: weights chosen on test queries make their score worthless. Choose on a dev "
            "split (qrels/dev.tsv), and use test once, with stm-train evaluate."
        )
    if arguments.dev is None:
        for name in ("guard", "eval_steps", "patience"):
            if getattr(arguments, name):
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{option} needs development queries to choose by. Name them with --dev.")
    weight = arguments.anchor_weight or 0.0
    if (weight > 0) != (arguments.anchor is not None):
        raise ConfigError(
            "--anchor names the general texts and --anchor-weight how much they count; one is of no use "
            "without the other. Give both, for instance --anchor FOLDER --anchor-weight 0.1, or neither."
        )
    for name in ("documents", "anchor_texts"):
        if (count := getattr(arguments, name)) is not None and count < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {count}: at least 1 is needed.")


def _job(arguments: argparse.Namespace) -> Finetuning:
    from stm_training.pipeline.finetuning import Finetuning

    skipped: list[SkippedRow] = []
    guards = [_guard(text, arguments) for text in arguments.guard]
    pairs = _pairs(arguments, skipped)
    dev = _dev(arguments, skipped)
    anchor_texts = _anchor(arguments, skipped)
    say = _say(arguments.quiet)
    for row in skipped:
        say(f"skipped {row}")
    if dev is not None:
        _tell_leaks(pairs, dev)
    return Finetuning(
        spec=_spec(arguments),
        pairs=pairs,
        settings=_settings(arguments, len(pairs)),
        out=arguments.out,
        seed=arguments.seed,
        dev=dev,
        guards=guards,
        max_guard_loss=arguments.max_guard_loss,
        anchor_texts=anchor_texts,
    )


def _settings(arguments: argparse.Namespace, pairs: int) -> TrainSettings:
    given = read_settings(arguments, TrainSettings)
    steps = given.steps or max(1, given.epochs * pairs // given.batch_size)
    defaults = {"save_steps": usual_save_steps(steps)}
    if arguments.dev is not None:
        defaults["eval_steps"] = max(1, steps // 10)
    return read_settings(arguments, TrainSettings, defaults)


def _spec(arguments: argparse.Namespace) -> BackboneSpec:
    from stm_retriever.folder import Prompts
    from stm_training.finetune.backbone import BackboneSpec
    from stm_training.finetune.source import read_settings as read_source
    from stm_training.finetune.source import resolve_source

    prompts = None
    if arguments.query_prompt is not None or arguments.document_prompt is not None:
        path = resolve_source(
            arguments.base, revision=arguments.revision, local_files_only=not arguments.download
        )
        stored = read_source(path).prompts or Prompts()
        given = {"query": arguments.query_prompt, "document": arguments.document_prompt}
        prompts = stored.model_copy(update={role: text for role, text in given.items() if text is not None})
    return BackboneSpec(
        arguments.base,
        revision=arguments.revision,
        local_files_only=not arguments.download,
        pooling=arguments.pooling,
        attention=arguments.attention,
        max_length=arguments.max_length,
        prompts=prompts,
    )


def _pairs(arguments: argparse.Namespace, skipped: list[SkippedRow]) -> Sequence[Pair]:
    from stm_training.data.pair_file import PairFile
    from stm_training.data.reading import read_pairs

    if len(arguments.pairs) == 1:
        return PairFile(arguments.pairs[0], arguments.on_error, skipped=skipped)
    return [
        pair for file in arguments.pairs for pair in read_pairs(file, arguments.on_error, skipped=skipped)
    ]


def _dev(arguments: argparse.Namespace, skipped: list[SkippedRow]) -> Problem | None:
    if arguments.dev is None:
        return None
    from stm_training.data.reading import read_beir
    from stm_training.pipeline.collections import Problem, judged_and_sample

    found = read_beir(
        arguments.dev,
        arguments.dev_split,
        on_error=arguments.on_error,
        skipped=skipped,
        allow_title_only=True,
    )
    passages = list(found.corpus.values())
    if arguments.documents is not None:
        passages = judged_and_sample(passages, found.qrels, arguments.documents, seed=arguments.seed)
    return Problem(
        f"{found.name}/{arguments.dev_split}",
        passages,
        found.queries,
        found.qrels,
        exclude_self=arguments.exclude_self,
    )


def _guard(text: str, arguments: argparse.Namespace) -> Problem:
    from stm_training.pipeline.collections import guard_problem
    from stm_training.recipe import GuardSection

    parts = re.fullmatch(r"([\w.-]+)=(.+?)(?::([\w.-]+))?", text)
    if parts is None:
        raise ConfigError(
            f"--guard {text}: give it a name and a folder, and its split if it is not test, as in "
            f"--guard news=collections/news:dev"
        )
    name, path, split = parts.groups()
    section = GuardSection(path=path, split=split or "test")
    return guard_problem(name, section, "dev", seed=arguments.seed, max_documents=arguments.documents)


def _anchor(arguments: argparse.Namespace, skipped: list[SkippedRow]) -> list[str]:
    if arguments.anchor is None:
        return []
    import random

    from stm_training.data.reading import read_corpus

    passages = read_corpus(arguments.anchor, arguments.on_error, skipped=skipped, allow_title_only=True)
    texts = list(dict.fromkeys(passage.content for passage in passages))
    count = min(arguments.anchor_texts, len(texts))
    return random.Random(f"anchor/{arguments.seed}").sample(texts, count)


def _tell_leaks(pairs: Sequence[Pair], dev: Problem) -> None:
    from stm_training.data.leakage import find_leaks
    from stm_training.pipeline.watching import is_first_process

    leaks = find_leaks((pair.query for pair in pairs), dev.queries)
    if leaks and is_first_process():
        example = f"{leaks[0].held_out_id!r}"
        print(
            f"warning: {len(leaks)} of {len(dev.queries)} development queries are training queries too (for "
            f"instance {example}), so the development score flatters the model. Take them out of the pairs.",
            file=sys.stderr,
        )


def _console(*, silent: bool) -> Console:
    from rich.console import Console

    return Console(stderr=True, quiet=silent)


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr))


def _leave_processes() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
