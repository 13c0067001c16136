"""A handful of documents, indexed by the tiny model, for the contract tests of the frameworks."""

from __future__ import annotations

from pathlib import Path

from stm_retriever import Document, Embedder, Retriever

QUESTION = "what about a red apple"
DOCUMENTS = (
    Document(id="apple", text="A red apple is a fruit.", metadata={"year": 2020, "score": "grade A"}),
    Document(id="pear", text="The green pear is a fruit of the summer.", metadata={"year": 2021}),
    Document(id="train", text="The train is red.", parent_id="travel", start=0, end=17),
    Document(id="car", text="A car is on the road to the city.", parent_id="travel", start=18, end=51),
    Document(id="fever", text="Fever and cough: treatment for a child.", metadata={"year": 2019}),
)


def make_fruit_index(path: Path, embedder: Embedder) -> Path:
    """Index the documents; returns the index folder."""
    with Retriever.create(path, embedder=embedder) as retriever:
        retriever.add(DOCUMENTS)
    return path
