"""Qdrant in local mode: its Python client with a folder instead of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models
from worker import Floats, K


class Local:
    """One collection, cosine distance, texts in the payload."""

    packages = ("qdrant-client", "numpy")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client: Any = None

    def build(self, texts: list[str], vectors: Floats) -> None:
        """Add; the client saves as it goes."""
        client = QdrantClient(path=str(self._folder))
        client.create_collection(
            "texts",
            vectors_config=models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE),
        )
        for start in range(0, len(texts), 1000):
            part = texts[start : start + 1000]
            client.upsert(
                "texts",
                points=models.Batch(
                    ids=list(range(start, start + len(part))),
                    vectors=vectors[start : start + 1000].tolist(),
                    payloads=[{"text": text} for text in part],
                ),
            )
        client.close()

    def open(self) -> None:
        """Open the folder."""
        self._client = QdrantClient(path=str(self._folder))

    def search(self, vector: Floats) -> list[tuple[str, str]]:
        """By vector."""
        found = self._client.query_points("texts", query=vector.tolist(), limit=K, with_payload=True)
        return [(str(point.id), point.payload["text"]) for point in found.points]

    def search_batch(self, vectors: Floats) -> list[list[tuple[str, str]]]:
        """In one call."""
        requests = [
            models.QueryRequest(query=vector.tolist(), limit=K, with_payload=True) for vector in vectors
        ]
        answers = self._client.query_batch_points("texts", requests=requests)
        return [[(str(point.id), point.payload["text"]) for point in answer.points] for answer in answers]


def make(folder: Path, *, store: str = "") -> Local:
    """Make a side."""
    return Local(folder)
