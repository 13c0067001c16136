"""MTEB tasks from BEIR folders: no hub, no network."""

from __future__ import annotations

import hashlib
from pathlib import Path

from datasets import Dataset
from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.reading import available_splits, read_beir
from stm_training.data.records import Collection
from stm_training.data.rows import OnError
from stm_training.evaluate.systems import self_matches

_ONE_SUBSET = "default"


def folder_of(task: str, data: Path) -> Path | None:
    """Where the local copy of a task lies below a folder, by the task's name in any case; None if nowhere."""
    for folder in sorted(data.iterdir()) if data.is_dir() else ():
        if folder.is_dir() and folder.name.casefold() == task.casefold():
            return folder
    return None


def fill_from_folder(task: AbsTask, folder: Path, *, on_error: OnError = "raise") -> AbsTask:
    """Give a task of mteb its data from a local copy.

    A task in several subsets (languages) has a BEIR folder for each, of the subset's name; where only one is
    asked for, it may lie in ``folder`` itself. The qrels file has the name of the task's split, or is
    ``test.tsv``. The recorded revision of the data becomes ``local-`` and a hash of the files, since nothing
    shows that they are those of the hub.

    Args:
        task: A retrieval task of mteb.
        folder: The copy.
        on_error: What a bad row does.

    Returns:
        The task, loaded.

    Raises:
        ConfigError: If it is no retrieval task, whose data a BEIR folder cannot hold.
        DataError: If a file is missing or broken.
    """
    if not isinstance(task, AbsTaskRetrieval) or task.metadata.type != "Retrieval":
        raise ConfigError(
            f"{task.metadata.name} is a task of type {task.metadata.type}; a local copy can only be that of "
            "a retrieval task. Leave it out, or run it from the hub (without --data)."
        )
    digest = hashlib.sha256()
    data: dict[str, dict[str, RetrievalSplitData]] = {}
    for subset in task.hf_subsets:
        place = _subset_folder(folder, subset, alone=len(task.hf_subsets) == 1)
        for split in task.eval_splits:
            name = _split_file(place, split)
            collection = read_beir(place, name, on_error, allow_title_only=True)
            data.setdefault(subset, {})[split] = _as_split(collection)
            for file in ("corpus.jsonl", "queries.jsonl", f"qrels/{name}.tsv"):
                digest.update((place / file).read_bytes())
    task.dataset = data
    revision = f"local-{digest.hexdigest()[:12]}"
    task.metadata = task.metadata.model_copy(
        update={"dataset": {**task.metadata.dataset, "revision": revision}}
    )
    task.data_loaded = True
    return task


def task_from_folder(
    folder: Path, *, name: str | None = None, split: str = "test", on_error: OnError = "raise"
) -> AbsTask:
    """Make an mteb task of a collection that mteb does not know.

    Args:
        folder: BEIR folder.
        name: The task's name; by default the folder's.
        split: Which qrels file.
        on_error: What a bad row does.

    Returns:
        The task, loaded. Where queries are documents of the corpus, a query's own document does not count,
        as in mteb's ArguAna.

    Raises:
        DataError: If the folder cannot be read.
    """
    name = name or folder.resolve().name
    task = task_from_collection(
        read_beir(folder, split, on_error, allow_title_only=True), name=name, split=split
    )
    return fill_from_folder(task, folder, on_error=on_error)


def task_from_collection(collection: Collection, *, name: str | None = None, split: str = "test") -> AbsTask:
    """Make an mteb task of a collection in memory; see :func:`task_from_folder`."""
    name = name or collection.name
    metadata = TaskMetadata(
        name=name,
        description=f"Local collection {name}",
        reference=None,
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=[split],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        dataset={"path": f"local/{name}", "revision": _content_hash(collection)},
    )
    own = {"metadata": metadata, "ignore_identical_ids": self_matches(collection) > 0}
    made: type[AbsTaskRetrieval] = type("LocalTask", (AbsTaskRetrieval,), own)
    task = made()
    task.dataset = {_ONE_SUBSET: {split: _as_split(collection)}}
    task.data_loaded = True
    return task


def _as_split(collection: Collection) -> RetrievalSplitData:
    passages = collection.corpus.items()
    queries = {name: collection.queries[name] for name in collection.qrels}
    return RetrievalSplitData(
        corpus=Dataset.from_dict(
            {
                "id": [name for name, _ in passages],
                "title": [passage.title for _, passage in passages],
                "text": [passage.text for _, passage in passages],
            }
        ),
        queries=Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
        relevant_docs={name: dict(grades) for name, grades in collection.qrels.items()},
        top_ranked=None,
    )


def _content_hash(collection: Collection) -> str:
    digest = hashlib.sha256()
    for name, passage in collection.corpus.items():
        digest.update(f"{name}\t{passage.content}\n".encode())
    for name, grades in collection.qrels.items():
        digest.update(f"{name}\t{collection.queries[name]}\t{sorted(grades.items())}\n".encode())
    return f"local-{digest.hexdigest()[:12]}"


def _subset_folder(folder: Path, subset: str, *, alone: bool) -> Path:
    if (folder / subset / "corpus.jsonl").is_file():
        return folder / subset
    if alone and (folder / "corpus.jsonl").is_file():
        return folder
    message = (
        f"{folder / subset / 'corpus.jsonl'} is not there. A local copy of a task holds a BEIR folder for "
        "each of its subsets, by the subset's name" + (", or is one itself." if alone else ".")
    )
    raise DataError(message)


def _split_file(folder: Path, split: str) -> str:
    there = available_splits(folder)
    for name in (split, "test"):
        if name in there:
            return name
    message = (
        f"{folder / 'qrels'} has neither {split}.tsv nor test.tsv, found {', '.join(there) or 'nothing'}. "
        "Name the judgements of the task's split so."
    )
    raise DataError(message)
