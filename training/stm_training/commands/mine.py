"""``stm-train mine``: hard negatives for training pairs, out of the corpus."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from stm_retriever.errors import ConfigError
from stm_training.commands.options import add_on_error
from stm_training.data.reading import read_corpus, read_pairs
from stm_training.data.records import Pair, Passage, SkippedRow
from stm_training.data.writing import write_pairs
from stm_training.evaluate.systems import BM25_NAME
from stm_training.mining.settings import MineSection

if TYPE_CHECKING:
    from stm_training.mining.report import MiningReport

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Give training pairs hard negatives: documents of the corpus that look relevant to the query and are not.

The corpus is ranked for every query; its positives, their duplicates and other passages of the same document
are left out; ranks and scores decide what is near enough to teach something, and not so near that it may be
relevant itself. Read the samples in the report: how many of the negatives would answer their query?
"""
_EXAMPLES = """\
examples:
  stm-train mine pairs.jsonl --corpus docs --model my-retriever --out mined.jsonl
  stm-train mine pairs.jsonl --corpus docs --model my-retriever --preset margin --out mined.jsonl
  stm-train mine pairs.jsonl --corpus docs --model bm25 --preset ranks --out mined.jsonl

presets (--preset); options that are given as well override them:
  band    scores below those of three positives in four, the 5 nearest skipped; fits every model
  refine  scores from 0.5 to 0.7, the 5 nearest skipped (REFINE); for BGE and models of like scale
  margin  below 95 % of the positive's score, drawn among the 10 nearest of those (NV-Retriever)
  ranks   drawn among the ranks 11 to 100, whatever the scores

A pair is a row {"query": "...", "positive": "...", "negatives": [], "positive_id": "d1"}. The positive_id
(the document's id in the corpus) is optional; with it, other passages of that document are left out.
"""
_ALL = "all"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "mine",
        help="find hard negatives for training pairs in a corpus",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pairs", type=Path, metavar="PAIRS.jsonl", help="training pairs, one per line")
    parser.add_argument(
        "--corpus",
        required=True,
        type=Path,
        metavar="DOCS",
        help="folder of .txt/.md/.html files, JSONL file, or BEIR folder; of a run: runs/NAME/corpus/"
        "passages.jsonl, which holds the passages that its pairs were written for",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help=f"retriever folder (see stm-train export), its name on the hub, or {BM25_NAME!r}",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="MINED.jsonl", help="pairs to write")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="report as JSON, and beside it as .txt to be read (default: MINED.report.json)",
    )
    _add_rules(parser)
    parser.add_argument(
        "--with-bm25", action="store_true", help="let BM25 find candidates too; the model judges them"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw (default: 0)")
    parser.add_argument("--variant", default="fp32", help="which ONNX file of the model (default: fp32)")
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda", "auto"), help="where to encode (default: cpu)"
    )
    parser.add_argument(
        "--download", action="store_true", help="allow a download of a model given by hub name"
    )
    add_on_error(parser)


def run(arguments: argparse.Namespace) -> int:
    """Mine.

    Args:
        arguments: What :func:`add_parser` describes.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: If the options do not fit together.
        DataError: If a file cannot be read, or nothing can be mined by these rules.
        ModelFolderError: If the model is not there.
    """
    settings = _settings(arguments)
    if arguments.out.resolve() == arguments.pairs.resolve():
        raise ConfigError(f"--out is {arguments.out}, the pairs themselves; name another file.")
    skipped: list[SkippedRow] = []
    pairs = read_pairs(arguments.pairs, arguments.on_error, skipped=skipped)
    passages = read_corpus(arguments.corpus, arguments.on_error, skipped=skipped, allow_title_only=True)
    for row in skipped:
        print(f"skipped {row}")
    mined, report = _mine(arguments, settings, pairs, passages)
    write_pairs(arguments.out, mined)
    where = arguments.report or arguments.out.with_suffix(".report.json")
    _write_report(where, report)
    print(report.summary())
    print(
        f"\nWrote {len(mined)} pairs to {arguments.out}; samples to read are in {where.with_suffix('.txt')}."
    )
    return 0


def _add_rules(parser: argparse.ArgumentParser) -> None:
    rules = parser.add_argument_group("rules")
    rules.add_argument(
        "--preset", choices=("band", "refine", "margin", "ranks"), default="band", help="see below"
    )
    rules.add_argument(
        "--negatives", dest="num_negatives", type=int, metavar="N", help="negatives per query (default: 1)"
    )
    rules.add_argument(
        "--skip-top",
        type=int,
        metavar="R",
        help="leave out the R nearest: many are relevant, only unlabelled",
    )
    rules.add_argument(
        "--max-rank",
        metavar="R",
        help=f"last rank that is considered (default: 100), or {_ALL!r} for the whole corpus",
    )
    rules.add_argument(
        "--band", nargs=2, type=_edge, metavar=("LOW", "HIGH"), help="scores of negatives; 'none': no bound"
    )
    rules.add_argument(
        "--band-quantiles",
        nargs=2,
        type=_edge,
        metavar=("LOW", "HIGH"),
        help="the same as quantiles (0 to 1) of the positives' scores",
    )
    rules.add_argument(
        "--positive-share", type=float, metavar="S", help="score below this share of the positive's (0.95)"
    )
    rules.add_argument(
        "--absolute-margin", type=float, metavar="M", help="score below the positive's minus this (0.05)"
    )
    rules.add_argument("--pool", type=int, metavar="M", help="draw among the M nearest that pass")
    rules.add_argument(
        "--mix",
        choices=("keep", "add", "replace"),
        help="pairs that have negatives already: keep those and mine for the others only, add the mined ones "
        "behind them (default), or replace them",
    )


def _edge(text: str) -> float | None:
    return None if text == "none" else float(text)


def _settings(arguments: argparse.Namespace) -> MineSection:
    given: dict[str, Any] = {"preset": arguments.preset}
    for name in ("num_negatives", "skip_top", "positive_share", "absolute_margin", "pool", "mix"):
        if getattr(arguments, name) is not None:
            given[name] = getattr(arguments, name)
    for name in ("band", "band_quantiles"):
        if getattr(arguments, name) is not None:
            given[name] = tuple(getattr(arguments, name))
    if arguments.max_rank is not None:
        given["max_rank"] = None if arguments.max_rank == _ALL else arguments.max_rank
    if arguments.model == BM25_NAME:
        if arguments.with_bm25:
            raise ConfigError("--with-bm25 adds BM25 to a model, but --model is bm25 already; leave one out.")
        given["miner"] = "bm25"
    elif arguments.with_bm25:
        given["miner"] = "both"
    try:
        return MineSection.model_validate(given)
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, problem['loc'])) or 'rules'}: "
            + problem["msg"].removeprefix("Value error, ")
            for problem in error.errors()
        )
        raise ConfigError("; ".join(problems)) from None


def _mine(
    arguments: argparse.Namespace, settings: MineSection, pairs: list[Pair], passages: list[Passage]
) -> tuple[list[Pair], MiningReport]:
    from stm_training.mining.mine import mine_negatives

    encoders: dict[str, Callable[[Sequence[str]], Any]] = {}
    if settings.miner != "bm25":
        from stm_retriever import Embedder  # onnxruntime is loaded only by those who encode

        embedder = Embedder.load(
            arguments.model,
            variant=arguments.variant,
            device=arguments.device,
            local_files_only=not arguments.download,
        )
        bar = sys.stderr.isatty()
        encoders = {
            "encode_query": lambda texts: embedder.encode_query(texts, show_progress=bar),
            "encode_document": lambda texts: embedder.encode_document(texts, show_progress=bar),
        }
    print(f"mining {len(pairs)} pairs in {len(passages)} passages ...", file=sys.stderr)
    with _progress() as progress:
        return mine_negatives(
            pairs,
            passages,
            settings,
            **encoders,
            model=arguments.model,
            seed=arguments.seed,
            progress=progress,
        )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    from tqdm import tqdm  # comes with tokenizers, through huggingface-hub

    with tqdm(unit="query", desc="mining", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _write_report(path: Path, report: MiningReport) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".txt").write_text(report.text() + "\n", encoding="utf-8")
