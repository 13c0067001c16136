"""Our side: an IndexFolder by vector, texts included, beside bare FAISS on the same vectors."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from worker import Floats, K

from stm_retriever import Document
from stm_retriever.index import connections
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.manifest import EmbedderRef

PARTS = 100  # a filter on one of them lets 1 % through
_CALL = 1000  # documents per call


class Ours:
    """An index folder of one kind."""

    packages = ("stm-retriever", "faiss-cpu", "numpy")

    def __init__(self, folder: Path, kind: str, source: str) -> None:
        self._folder = folder / "index"
        self._kind = kind
        self._source = source
        self._index: Any = None
        self._bare: Any = None

    def build(self, texts: list[str], vectors: Floats) -> None:
        """Add in calls of a thousand; or take a folder that is filled already, and change its kind."""
        if self._source:
            shutil.copytree(self._source, self._folder)
            with_kind = IndexFolder(self._folder)
            with_kind.change_kind(self._kind)
        else:
            with_kind = new_folder(self._folder, vectors.shape[1], self._kind)
            for start in range(0, len(texts), _CALL):
                with_kind.put(documents(texts, start, _CALL), vectors[start : start + _CALL])
        with_kind.close()

    def open(self) -> None:
        """Open."""
        self._index = IndexFolder(self._folder, read_only=True)

    def search(self, vector: Floats) -> list[tuple[str, str]]:
        """By vector."""
        return [(found.id, found.text) for found, _ in self._index.search(vector[None], K)[0]]

    def search_batch(self, vectors: Floats) -> list[list[tuple[str, str]]]:
        """In one call."""
        return [[(found.id, found.text) for found, _ in row] for row in self._index.search(vectors, K)]

    def paired(self, queries: str, first: int, count: int) -> dict[str, Any]:
        """Time this side and bare FAISS in turn, query by query."""
        bare = self._bare_faiss()
        mine, theirs = [], []
        for query in np.load(queries)[first : first + count]:
            row = np.ascontiguousarray(query[None])
            started = time.perf_counter()
            bare.search(row, K)
            theirs.append(time.perf_counter() - started)
            started = time.perf_counter()
            self._index.search(row, K)
            mine.append(time.perf_counter() - started)
        return {"ours": mine, "bare": theirs}

    def filtered(self, queries: str, vectors: str, count: int) -> dict[str, Any]:
        """Time filtered and unfiltered searches in turn; a filter lets 1 % through, another one each time."""
        stored = np.load(vectors, mmap_mode="r")[: self._index.count()]
        with_filter, without, shares = [], [], []
        for number, query in enumerate(np.load(queries)[:count]):
            part = number % PARTS
            started = time.perf_counter()
            found = self._index.search(query[None], K, where={"part": part})[0]
            with_filter.append(time.perf_counter() - started)
            started = time.perf_counter()
            self._index.search(query[None], K)
            without.append(time.perf_counter() - started)
            scores = np.asarray(stored[part::PARTS]) @ query
            true = {int(place) * PARTS + part for place in np.argsort(-scores)[:K]}
            shares.append(len(true & {int(hit.id) for hit, _ in found}) / len(true))
        return {"filtered": with_filter, "unfiltered": without, "recall": float(np.mean(shares))}

    def _bare_faiss(self) -> Any:
        """The same snapshot in FAISS alone, in memory, with the same search parameters."""
        if self._bare is None:
            import faiss

            snapshot = self._index.manifest.snapshot
            wrapped = faiss.read_index(str(self._folder / snapshot.file))
            self._bare = faiss.downcast_index(wrapped.index)
            self._kept = wrapped
        return self._bare


class Durability:
    """Adding with SQLite's ``synchronous`` FULL, as ours is, beside NORMAL, in turn."""

    packages = ("stm-retriever",)

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def compare(self, data: str, count: int, call: int) -> dict[str, Any]:
        """Add ``count`` documents to each, in calls of ``call``; returns seconds per setting."""
        texts = json.loads((Path(data) / "texts.json").read_text("utf-8"))[:count]
        vectors = np.load(Path(data) / "vectors.npy", mmap_mode="r")[:count]
        pragmas = connections._PRAGMAS
        folders, seconds = {}, {}
        for setting in ("FULL", "NORMAL"):
            chosen = tuple(f"synchronous={setting}" if "synchronous" in one else one for one in pragmas)
            connections._PRAGMAS = chosen  # type: ignore[assignment]
            folders[setting] = new_folder(self._folder / setting, vectors.shape[1], "flat")
            seconds[setting] = 0.0
        for start in range(0, count, call):
            for setting, index in folders.items():
                part = documents(texts, start, call)
                started = time.perf_counter()
                index.put(part, np.asarray(vectors[start : start + call]))
                seconds[setting] += time.perf_counter() - started
        for index in folders.values():
            index.close()
        connections._PRAGMAS = pragmas
        return {"seconds": seconds, "count": count, "call": call}


def new_folder(path: Path, dimension: int, kind: str) -> IndexFolder:
    """An empty index folder of nobody's vectors."""
    nobody = EmbedderRef(name="benchmark", fingerprint="none", dimension=dimension, variant="", path=None)
    return IndexFolder.create(path, embedder=nobody, kind=kind)


def documents(texts: list[str], start: int, count: int) -> list[Document]:
    """The next documents, numbered, each in one of a hundred parts."""
    return [
        Document(id=str(number), text=texts[number], metadata={"part": number % PARTS, "year": 2000})
        for number in range(start, min(start + count, len(texts)))
    ]


def make(folder: Path, *, kind: str = "", source: str = "", durability: bool = False) -> Ours | Durability:
    """Make a side."""
    return Durability(folder) if durability else Ours(folder, kind, source)
