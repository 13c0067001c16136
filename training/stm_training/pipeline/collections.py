"""The run's own collections on disk: passages, queries and judgements by split, and the guards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stm_training.data.reading import read_beir
from stm_training.data.records import Passage
from stm_training.data.splits import halves
from stm_training.recipe import GuardSection

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
HeldOut = Literal["dev", "test"]
HELD_OUT: tuple[HeldOut, ...] = ("dev", "test")
Qrels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Problem:
    """Queries to answer from a set of passages.

    Attributes:
        name: For tables.
        passages: What is ranked.
        queries: Text by query id.
        qrels: Grade by query id and *document* id; a passage counts as the document it was cut from.
        exclude_self: Drop the document with the query's own id.
    """

    name: str
    passages: Sequence[Passage]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    exclude_self: bool = False


def document_id(passage: Passage) -> str:
    """The id that judgements use: the parent's for a piece of a document."""
    return passage.parent_id or passage.id


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines of our own making."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_split(
    folder: Path, split: Split, queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]]
) -> None:
    """Store one split's queries and judgements."""
    rows = ({"id": name, "text": text, "relevant": dict(qrels[name])} for name, text in queries.items())
    write_rows(folder / f"{split}.jsonl", rows)


def read_split(folder: Path, split: Split) -> tuple[dict[str, str], Qrels]:
    """Queries and judgements of one split; empty where the run has none."""
    path = folder / f"{split}.jsonl"
    rows = read_rows(path) if path.exists() else []
    return {row["id"]: row["text"] for row in rows}, {row["id"]: row["relevant"] for row in rows}


def guard_problem(
    name: str, guard: GuardSection, half: Literal["dev", "test"], *, seed: int, max_documents: int | None
) -> Problem:
    """One half of a guard: searches see dev, the final figures test."""
    collection = read_beir(Path(guard.path), guard.split, allow_title_only=True)
    dev, test = halves(collection, seed=seed)
    chosen = dev if half == "dev" else test
    passages = list(collection.corpus.values())
    if max_documents is not None:
        passages = judged_and_sample(
            passages, chosen.qrels, max_documents, seed=seed, keep=set(chosen.queries)
        )
    return Problem(name, passages, chosen.queries, chosen.qrels, exclude_self=guard.exclude_self)


def judged_and_sample(
    passages: Sequence[Passage],
    qrels: Mapping[str, Mapping[str, int]],
    limit: int,
    *,
    seed: int,
    keep: set[str] | None = None,
) -> list[Passage]:
    """All judged documents, and a seeded sample of others up to ``limit`` passages, in corpus order.

    Figures on such a cut are higher than on the whole corpus; they serve to compare models on dev.
    """
    if len(passages) <= limit:
        return list(passages)
    judged = {name for grades in qrels.values() for name in grades} | (keep or set())
    needed = [index for index, passage in enumerate(passages) if document_id(passage) in judged]
    others = np.setdiff1d(np.arange(len(passages)), needed)
    room = max(0, limit - len(needed))
    drawn = np.random.default_rng(seed).choice(others, size=min(room, len(others)), replace=False)
    return [passages[index] for index in sorted([*needed, *(int(index) for index in drawn)])]
