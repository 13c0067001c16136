"""What is compared: the queries and documents of a training file, and those of a test set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from stm_retriever.errors import DataError
from stm_training.data.reading import read_beir, read_pairs
from stm_training.data.records import Collection, Pair
from stm_training.data.rows import OnError

Role = Literal["query", "document"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class TextSet:
    """Queries and documents under one name.

    Attributes:
        name: For tables, messages and what is allowed by name, for instance ``"scifact/test"``.
        queries: Query texts by id.
        documents: Document texts (title and body) by id.
    """

    name: str
    queries: Mapping[str, str]
    documents: Mapping[str, str]

    def texts(self, role: Role) -> Mapping[str, str]:
        """The queries or the documents, by id."""
        return self.queries if role == "query" else self.documents


def pairs_as_set(name: str, pairs: Iterable[Pair]) -> TextSet:
    """Training pairs as a set: each different text once, under the number of its first row."""
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    for row, pair in enumerate(pairs, start=1):
        queries.setdefault(pair.query, f"row {row}")
        documents.setdefault(pair.positive, f"row {row}")
        for place, negative in enumerate(pair.negatives, start=1):
            documents.setdefault(negative, f"row {row}, negative {place}")
    by_id = [{id_: text for text, id_ in ids.items()} for ids in (queries, documents)]
    return TextSet(name, *by_id)


def collection_as_set(
    collection: Collection, *, name: str | None = None, relevant_only: bool = False
) -> TextSet:
    """A collection's split as a set.

    Args:
        collection: The split.
        name: What it is called; by default the collection's name.
        relevant_only: Only the documents that a query of the split has for an answer, which are those that
            training on it would show; else all of the corpus.
    """
    wanted = {
        passage for grades in collection.qrels.values() for passage, grade in grades.items() if grade > 0
    }
    documents = {
        id_: passage.content
        for id_, passage in collection.corpus.items()
        if not relevant_only or id_ in wanted
    }
    return TextSet(name or collection.name, dict(collection.queries), documents)


def read_training(path: Path | str, *, split: str = "train", on_error: OnError = "raise") -> TextSet:
    """Read what is trained on.

    Args:
        path: A JSONL file of pairs, or a BEIR folder.
        split: Of a BEIR folder: its queries, and the documents that answer them, are what is trained on.
        on_error: What a bad row does.

    Raises:
        DataError: If it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        collection = read_beir(path, split, on_error, allow_title_only=True)
        return collection_as_set(collection, name=f"{path.name}/{split}", relevant_only=True)
    return pairs_as_set(path.name, read_pairs(path, on_error))


def read_test(path: Path | str, *, split: str = "test", on_error: OnError = "raise") -> TextSet:
    """Read a test set: the queries of a split and the whole corpus.

    Raises:
        DataError: If it is no BEIR folder, or cannot be read.
    """
    path = Path(path)
    collection = read_beir(path, split, on_error, allow_title_only=True)
    return collection_as_set(collection, name=f"{path.resolve().name}/{split}")


def check_names(sets: Iterable[TextSet]) -> None:
    """Refuse two sets of one name: their counts and what is allowed could not be told apart.

    Raises:
        DataError: Naming it.
    """
    seen: set[str] = set()
    for one in sets:
        if one.name in seen:
            message = (
                f"Two sets are called {one.name!r}, so counts and what is allowed by name could not be told "
                "apart. Rename one of the folders or files."
            )
            raise DataError(message)
        seen.add(one.name)
