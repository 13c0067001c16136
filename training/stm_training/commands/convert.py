"""``stm-train convert``: training data and collections from one layout into another."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from stm_retriever.errors import ConfigError, DataError
from stm_training.commands.options import add_on_error
from stm_training.data.aiano import from_collection, read_aiano, write_aiano
from stm_training.data.aiano_records import DEFAULT_GRADES, AianoDataset
from stm_training.data.conversion import collection_pairs, pairs_collection
from stm_training.data.reading import available_splits, read_beir, read_corpus, read_pairs
from stm_training.data.records import Collection, Pair, SkippedRow
from stm_training.data.triplets import columns_of, is_triplets, read_triplets, write_triplets
from stm_training.data.writing import write_beir, write_pairs

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

LAYOUTS = ("aiano", "beir", "triplets", "pairs")

_DESCRIPTION = """\
Convert labelled or synthetic data between four layouts. What INPUT is, is found out by looking at it.

  aiano      AIANO's annotations: annotations.json (or its "structured annotation dataset" export) and
             documents.json; questions with highlighted spans, whose grade-0 levels ("distracting",
             "irrelevant") are hard negatives
  beir       a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv
  triplets   sentence-transformers' columns anchor, positive, negative (or negative_1, negative_2, ...),
             as .jsonl or .parquet
  pairs      our training pairs: .jsonl rows {query, positive, negatives, ...}, as stm-train run reads them
"""
_EXAMPLES = """\
examples:
  stm-train convert export.json --documents documents.json --to pairs --out pairs.jsonl
  stm-train convert export.json --to beir --out my-collection       then, in a recipe: queries: path
  stm-train convert my-collection --split train --to triplets --out train.parquet --negatives 0
  stm-train convert pairs.jsonl --to aiano --out review --for-upload      to correct pairs by hand in AIANO

A bad row ends the command with its file, line and remedy; --on-error skip leaves bad rows out and lists them.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "convert",
        help="convert data between AIANO, BEIR, sentence-transformers triplets and pairs",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="file or folder to read")
    parser.add_argument("--to", required=True, choices=LAYOUTS, help="layout to write")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder (aiano, beir) or file (triplets, pairs) to write"
    )
    parser.add_argument(
        "--from", dest="source", choices=LAYOUTS, help="layout of INPUT, if it is not found out"
    )
    parser.add_argument("--split", help="beir: which qrels file to read (default: the only one)")
    parser.add_argument(
        "--out-split", help="beir: name of the qrels file to write (default: that of the input, else train)"
    )
    parser.add_argument(
        "--documents",
        type=Path,
        help="aiano: file with the annotated documents (default: inside INPUT, or documents.json beside it); "
        "pairs, triplets: corpus that their texts come from, written along",
    )
    parser.add_argument(
        "--level",
        action="append",
        default=[],
        metavar="NAME=GRADE",
        help="aiano: grade of a relevance level, 0 for a hard negative; may be repeated (known: "
        + ", ".join(f"{name}={grade}" for name, grade in DEFAULT_GRADES.items())
        + ")",
    )
    parser.add_argument("--question-block", help="aiano: name of the AIANO block that holds the question")
    parser.add_argument("--answer-block", help="aiano: name of the AIANO block that holds the answer")
    parser.add_argument(
        "--for-upload",
        action="store_true",
        help="aiano: write documents.json as AIANO's upload takes it (a list with Document_Id)",
    )
    parser.add_argument(
        "--negatives", type=int, metavar="N", help="triplets: negatives per row; rows with fewer are left out"
    )
    parser.add_argument(
        "--one-per-row", action="store_true", help="triplets: a row of three columns for each negative"
    )
    parser.add_argument("--force", action="store_true", help="replace what is at --out")
    add_on_error(parser)


def run(arguments: argparse.Namespace) -> int:
    """Convert.

    Args:
        arguments: What :func:`add_parser` describes.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: If the layout cannot be told, or something is at ``--out``.
        DataError: For a bad row.
    """
    source = arguments.source or detect_layout(arguments.input)
    if arguments.out.exists() and not arguments.force:
        message = f"{arguments.out} is there already, and is not replaced. Give another name, or --force."
        raise ConfigError(message)
    skipped: list[SkippedRow] = []
    loaded = _READERS[source](arguments, skipped)
    for row in skipped:
        print(f"skipped {row}")
    print(f"{arguments.input}: {source}, {len(loaded.pairs())} pairs of a query and a relevant text")
    for line in _WRITERS[arguments.to](loaded, arguments):
        print(line)
    return 0


def detect_layout(path: Path) -> str:
    """Find out what a file or folder holds.

    Raises:
        ConfigError: If it cannot be told.
        DataError: If it is not there or cannot be read.
    """
    if not path.exists():
        raise DataError(f"{path} is not there. Name the file or folder to convert.")
    if path.is_dir():
        for name, layout in (("corpus.jsonl", "beir"), ("annotations.json", "aiano")):
            if (path / name).is_file():
                return layout
    elif path.suffix == ".json":
        return "aiano"
    elif path.suffix in (".jsonl", ".parquet"):
        columns = columns_of(path)
        if is_triplets(columns):
            # Our pairs without negatives look the same but for the name; "query" is ours.
            return (
                "pairs" if set(columns) == {"query", "positive"} and path.suffix == ".jsonl" else "triplets"
            )
        if {"query", "positive"} <= set(columns):
            return "pairs"
    message = (
        f"What {path} holds could not be found out. Known are a BEIR folder (corpus.jsonl), AIANO's JSON, "
        "triplets (.jsonl or .parquet) and pairs (.jsonl). Say which: --from aiano|beir|triplets|pairs."
    )
    raise ConfigError(message)


@dataclass
class _Loaded:
    """What was read, in the layout that it came in."""

    name: str
    split: str = "train"
    given: list[Pair] | None = None
    of_aiano: AianoDataset | None = None
    of_beir: Collection | None = None

    def pairs(self) -> list[Pair]:
        if self.given is None:
            self.given = (
                self.of_aiano.pairs()
                if self.of_aiano is not None
                else collection_pairs(self.collection(None))
            )
        return self.given

    def collection(self, corpus: Path | None) -> Collection:
        if self.of_beir is not None:
            return self.of_beir
        if self.of_aiano is not None:
            return self.of_aiano.collection()
        passages = [] if corpus is None else read_corpus(corpus, allow_title_only=True)
        return pairs_collection(self.name, self.given or [], passages)

    def aiano(self, corpus: Path | None) -> AianoDataset:
        return self.of_aiano if self.of_aiano is not None else from_collection(self.collection(corpus))


def _read_aiano(arguments: argparse.Namespace, skipped: list[SkippedRow]) -> _Loaded:
    data = read_aiano(
        arguments.input,
        arguments.documents,
        arguments.on_error,
        skipped=skipped,
        levels=_levels(arguments.level),
        question_block=arguments.question_block,
        answer_block=arguments.answer_block,
    )
    return _Loaded(data.name, of_aiano=data)


def _read_beir(arguments: argparse.Namespace, skipped: list[SkippedRow]) -> _Loaded:
    splits = available_splits(arguments.input)
    split = arguments.split or (splits[0] if len(splits) == 1 else None)
    if split is None:
        message = (
            f"{arguments.input} has the splits {', '.join(splits) or '(none)'}. Say which: --split NAME."
        )
        raise ConfigError(message)
    collection = read_beir(arguments.input, split, arguments.on_error, skipped=skipped, allow_title_only=True)
    return _Loaded(collection.name, split, of_beir=collection)


def _read_pairs(arguments: argparse.Namespace, skipped: list[SkippedRow]) -> _Loaded:
    pairs = read_pairs(arguments.input, arguments.on_error, skipped=skipped)
    return _Loaded(arguments.input.stem, given=pairs)


def _read_triplets(arguments: argparse.Namespace, skipped: list[SkippedRow]) -> _Loaded:
    pairs = read_triplets(arguments.input, arguments.on_error, skipped=skipped)
    return _Loaded(arguments.input.stem, given=pairs)


def _levels(given: list[str]) -> dict[str, int]:
    levels = {}
    for text in given:
        name, _, grade = text.rpartition("=")
        if not name or not grade.strip().isdecimal():
            message = f"--level {text!r} is not NAME=GRADE with a whole number, for instance 'Key Point=2'."
            raise ConfigError(message)
        levels[name] = int(grade)
    return levels


def _write_aiano(loaded: _Loaded, arguments: argparse.Namespace) -> list[str]:
    data = loaded.aiano(arguments.documents)
    write_aiano(arguments.out, data, for_upload=arguments.for_upload)
    spans = sum(len(annotation.spans) for annotation in data.annotations)
    counts = f"{len(data.documents)} documents, {len(data.annotations)} questions, {spans} spans"
    return [f"Wrote {arguments.out}: {counts}."]


def _write_beir(loaded: _Loaded, arguments: argparse.Namespace) -> list[str]:
    collection = loaded.collection(arguments.documents)
    if not collection.queries:
        message = f"{arguments.input} has no query with a relevant text, so there is no collection to write."
        raise DataError(message)
    write_beir(arguments.out, collection, arguments.out_split or loaded.split)
    lines = [
        f"Wrote {arguments.out}: {len(collection.corpus)} documents, {len(collection.queries)} queries, "
        f"split {arguments.out_split or loaded.split}."
    ]
    if loaded.of_aiano is not None:
        left = len(loaded.of_aiano.annotations) - len(collection.queries)
        lines.append(
            "Judgements name whole documents; spans and answers are kept in the documents' metadata."
        )
        if left:
            lines.append(f"{left} questions have no relevant span, so no query; they are kept there too.")
    return lines


def _write_pairs(loaded: _Loaded, arguments: argparse.Namespace) -> list[str]:
    if arguments.out.suffix != ".jsonl":
        raise ConfigError(f"{arguments.out} does not end in .jsonl, as pairs do. Rename it.")
    return [f"Wrote {arguments.out}: {write_pairs(arguments.out, loaded.pairs())} pairs."]


def _write_triplets(loaded: _Loaded, arguments: argparse.Namespace) -> list[str]:
    count = write_triplets(
        arguments.out, loaded.pairs(), negatives=arguments.negatives, one_per_row=arguments.one_per_row
    )
    return [f"Wrote {arguments.out}: {count} rows from {len(loaded.pairs())} pairs."]


_READERS: Mapping[str, Callable[[argparse.Namespace, list[SkippedRow]], _Loaded]] = {
    "aiano": _read_aiano,
    "beir": _read_beir,
    "triplets": _read_triplets,
    "pairs": _read_pairs,
}
_WRITERS: Mapping[str, Callable[[_Loaded, argparse.Namespace], list[str]]] = {
    "aiano": _write_aiano,
    "beir": _write_beir,
    "triplets": _write_triplets,
    "pairs": _write_pairs,
}
