"""A mixed write load in a child process that says on stdout what it has been told is done.

Run as ``python -m tests.integration.index_load INDEX KIND SEED``. Every line is one acknowledged step, a JSON list:
``["put", {id: text}]``, ``["delete", [ids]]`` or ``["other", name]``.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np

from stm_retriever import Document
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.vectors import Vectors

DIMENSION = 16


def vector_of(text: str) -> Vectors:
    """Give a text its own vector, float32 (DIMENSION,)."""
    return np.random.default_rng(list(text.encode())).standard_normal(DIMENSION).astype(np.float32)


def document_of(name: str, text: str) -> Document:
    """Make a document whose metadata follow from its text."""
    return Document(id=name, text=text, metadata={"group": len(text) % 7, "tags": text.split()})


def main(path: Path, seed: int) -> None:
    """Write until killed."""
    dice = random.Random(seed)
    folder = IndexFolder(path)
    step = 0
    while True:
        step += 1
        choice = dice.random()
        if choice < 0.6:
            texts = {
                f"d{dice.randrange(200)}": f"words {seed} {step} {n}" for n in range(dice.randrange(1, 9))
            }
            vectors = np.array([vector_of(text) for text in texts.values()])
            folder.put([document_of(name, text) for name, text in texts.items()], vectors)
            _acknowledge("put", texts)
        elif choice < 0.8:
            ids = [f"d{dice.randrange(200)}" for _ in range(dice.randrange(1, 6))]
            folder.delete(ids)
            _acknowledge("delete", ids)
        else:
            name = dice.choice(["snapshot", "search", "compact", "search"])
            if name == "search":
                folder.search(vector_of("question")[None], 5, where={"group": 3})
            else:
                getattr(folder, name)()
            _acknowledge("other", name)


def _acknowledge(kind: str, what: object) -> None:
    sys.stdout.write(json.dumps([kind, what]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
