"""``stm-train index``: documents into an index folder."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from stm_retriever import Document, Embedder, Retriever
from stm_retriever.errors import ConfigError
from stm_retriever.index.kinds import KINDS, check_kind
from stm_retriever.retriever import open_or_create
from stm_training.commands.options import add_on_error
from stm_training.data.reading import read_corpus
from stm_training.data.records import Passage, SkippedRow
from stm_training.data.splitting import split_passages

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_BATCH = 512  # documents per transaction: what a kill may cost, and how often the index is synced to disk
DEFAULT_OVERLAP = 32


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "index",
        help="put documents into an index folder",
        description="Read documents (.txt, .md, .html in a folder, a JSONL file, or a BEIR folder), split "
        "long ones, encode them with a retriever folder, and store them in an index folder. Documents that "
        "are there already with the same id are replaced, so the command may be repeated.",
    )
    parser.add_argument("documents", help="folder of .txt/.md/.html files, JSONL file, or BEIR folder")
    parser.add_argument("--model", required=True, help="retriever folder (made by stm-train run or export)")
    parser.add_argument("--out", required=True, help="index folder; made if it is not there")
    parser.add_argument(
        "--kind",
        metavar="KIND",
        help=f"kind of vector index: {', '.join(KINDS)}, auto, or factory: and a FAISS factory string, as in "
        "factory:HNSW32,SQ8. auto chooses by size at each rebuild: flat up to 50,000 vectors of 384 "
        "dimensions (or as many numbers), then hnsw while graph and vectors take up to 8 GiB, then ivf-pq "
        "(default: flat, which is exact, for a new index; one that is there keeps its kind)",
    )
    parser.add_argument("--max-tokens", type=int, help="tokens per passage (default: the model's maximum)")
    parser.add_argument(
        "--overlap", type=int, default=DEFAULT_OVERLAP, help="tokens repeated between passages"
    )
    parser.add_argument(
        "--no-split", action="store_true", help="keep documents whole; long ones are truncated"
    )
    add_on_error(parser)
    parser.add_argument("--variant", default="fp32", help="which ONNX file of the model (default: fp32)")


def run(arguments: argparse.Namespace) -> int:
    """Index the documents."""
    if arguments.max_tokens is not None and arguments.max_tokens < 16:
        message = f"--max-tokens is {arguments.max_tokens}; a passage needs at least 16 tokens."
        raise ConfigError(message)
    if arguments.kind is not None:
        check_kind(arguments.kind)  # before anything is read or encoded
    skipped: list[SkippedRow] = []
    passages = read_corpus(arguments.documents, arguments.on_error, skipped=skipped)
    for row in skipped:
        print(f"skipped {row}")
    embedder = Embedder.load(arguments.model, variant=arguments.variant)
    if not arguments.no_split:
        passages = split_for(embedder, passages, arguments.max_tokens, arguments.overlap)
    with open_or_create(Path(arguments.out), embedder, arguments.kind) as retriever:
        add_in_batches(retriever, (as_document(passage) for passage in passages), total=len(passages))
        total = retriever.count()
    truncated = embedder.count_truncated([passage.content for passage in passages], role="document")
    print(f"{len(passages)} passages encoded, {total} in {arguments.out}.")
    if truncated:
        print(f"{truncated} passages are longer than {embedder.max_length} tokens; their ends were cut off.")
    print(f'Try it: stm-train search {arguments.out} "your question"')
    return 0


def split_for(
    embedder: Embedder, passages: list[Passage], max_tokens: int | None, overlap: int
) -> list[Passage]:
    """Split long documents so that each passage fits the model, prompt and title included."""
    limit = min(max_tokens or embedder.max_length, embedder.max_length)
    return split_passages(
        passages,
        count_tokens=lambda texts: embedder.tokenizer.count(texts, "document"),
        max_tokens=limit,
        overlap_tokens=min(overlap, limit // 4),
    )


def as_document(passage: Passage) -> Document:
    """A passage as it is stored: title and text together are what is embedded and shown."""
    metadata = dict(passage.metadata)
    if passage.title:
        metadata.setdefault("title", passage.title)
    return Document(
        id=passage.id,
        text=passage.content,
        metadata=metadata,
        parent_id=passage.parent_id,
        start=passage.start,
        end=passage.end,
    )


def add_in_batches(
    retriever: Retriever, documents: Iterable[Document], *, total: int, quiet: bool = False
) -> None:
    """Add documents a batch at a time, with a progress bar."""
    from tqdm import tqdm  # comes with tokenizers, through huggingface-hub

    with (
        _without_notes_on_length(),
        tqdm(total=total, unit="passage", desc="indexing", disable=quiet or None) as bar,
    ):
        for batch in _batches(iter(documents)):
            retriever.add(batch)
            bar.update(len(batch))


@contextmanager
def _without_notes_on_length() -> Iterator[None]:
    """The embedder would say for each batch what the caller says once: how many passages are cut off."""
    logger = logging.getLogger("stm_retriever.embedder")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while batch := list(islice(documents, _BATCH)):
        yield batch
