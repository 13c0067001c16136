"""Stage ``corpus``: read, check, split into passages, and cut the labelled queries into splits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from stm_retriever.errors import DataError
from stm_training.data.reading import read_beir, read_corpus
from stm_training.data.records import Collection, Passage, SkippedRow
from stm_training.data.rows import OnError
from stm_training.data.splits import split_collection
from stm_training.data.splitting import split_passages
from stm_training.data.writing import write_passages
from stm_training.pipeline.collections import SPLITS, Qrels, Split, write_split
from stm_training.recipe import QueriesSection, Recipe

PASSAGES = "passages.jsonl"
INFO = "corpus.json"

CountTokens = Callable[[list[str]], list[int]]
Splits = dict[Split, tuple[dict[str, str], Qrels]]


def prepare_corpus(recipe: Recipe, out: Path, *, count_tokens: CountTokens, max_length: int) -> None:
    """Write the passages, the splits of the labelled queries, and what was skipped.

    Args:
        recipe: The recipe.
        out: Folder to write into.
        count_tokens: Tokens of each text as the model reads it as a document.
        max_length: The model's maximum.

    Raises:
        DataError: For bad rows (``on_error: raise``), or where no document is left.
    """
    skipped: list[SkippedRow] = []
    documents = read_corpus(recipe.corpus, recipe.on_error, skipped=skipped, allow_title_only=True)
    if not documents:
        message = (
            f"{recipe.corpus} holds no document, so there is nothing to retrieve. Add some, or mend the path."
        )
        raise DataError(message)
    passages = _split(recipe, documents, count_tokens, max_length)
    write_passages(out / PASSAGES, passages)
    splits = cut_queries(
        recipe.queries, documents, seed=recipe.seed, on_error=recipe.on_error, skipped=skipped
    )
    for split, (queries, qrels) in splits.items():
        write_split(out, split, queries, qrels)
    info = {
        "documents": len(documents),
        "passages": len(passages),
        "truncated": sum(n > max_length for n in count_tokens([passage.content for passage in passages])),
        "queries": {split: len(splits[split][0]) if split in splits else 0 for split in SPLITS},
        "skipped": [asdict(row) for row in skipped],
    }
    (out / INFO).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _split(
    recipe: Recipe, documents: list[Passage], count_tokens: CountTokens, max_length: int
) -> Sequence[Passage]:
    is_beir = (Path(recipe.corpus) / "corpus.jsonl").is_file()
    if recipe.split.mode == "never" or (recipe.split.mode == "auto" and is_beir):
        return documents
    limit = min(recipe.split.max_tokens or max_length, max_length)
    overlap = min(recipe.split.overlap_tokens, limit // 4)
    return split_passages(documents, count_tokens=count_tokens, max_tokens=limit, overlap_tokens=overlap)


def cut_queries(
    section: QueriesSection | None,
    documents: Sequence[Passage],
    *,
    seed: int,
    on_error: OnError,
    skipped: list[SkippedRow],
) -> Splits:
    """Cut labelled queries into train, dev and test; a published test is only ever test."""
    if section is None:
        return {}
    corpus = {document.id: document for document in documents}

    def published(split: str) -> Collection:
        return read_beir(section.path, split, on_error, skipped=skipped, corpus=corpus)

    splits: Splits = {}
    if section.test is not None:
        splits["test"] = _as_split(published(section.test))
    if section.dev is not None:
        splits["dev"] = _as_split(published(section.dev))
    if section.train is not None:
        train = published(section.train)
        parts = _cut(train, section, seed)
        splits = {**parts, **splits}
    return splits


def _as_split(collection: Collection) -> tuple[dict[str, str], Qrels]:
    return dict(collection.queries), {name: dict(grades) for name, grades in collection.qrels.items()}


def _cut(train: Collection, section: QueriesSection, seed: int) -> Splits:
    """Take dev, and test where none is published, out of train by a seeded hash of the query id."""
    dev = 0.0 if section.dev is not None else section.dev_fraction
    test = 0.0 if section.test is not None else section.test_fraction
    fractions = {"train": 1.0 - dev - test, "dev": dev, "test": test}
    parts = split_collection(train, seed=seed, fractions=fractions)
    return {split: _as_split(parts[split]) for split in SPLITS if fractions[split] > 0}
