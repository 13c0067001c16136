"""Open an index folder and use all of it: ``python -m tests.integration.opening_process FOLDER...``.

Says one word per folder: ``ok``, or the name of our error. Any other error, or the end of the process, is a
failure of whoever called.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from stm_retriever import Document, StmError
from stm_retriever.index.folder import IndexFolder


def main(folders: list[str]) -> None:
    """Use one folder after the other."""
    for name in folders:
        try:
            _use(Path(name))
            said = "ok"
        except StmError as error:
            said = type(error).__name__
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()


def _use(path: Path) -> None:
    folder = IndexFolder(path)
    try:
        dimension = folder.manifest.dimension
        query = np.ones((2, dimension), np.float32)
        for document in folder.documents():
            folder.get([document.id])
        for where in (None, {"group": 3}, {"tags": {"$gte": "a"}}, {"group": {"$ne": 1}}):
            folder.search(query, 5, where=where)
            folder.lexical(["sea river"], 5, where=where)
            folder.count(where=where)
        folder.vectors_of([document.id for document in folder.documents(where={"group": 3})])
        folder.put([Document(id="new", text="sea", metadata={"group": 3})], query[:1])
        folder.delete(["d1", "new"])
        folder.compact()
    finally:
        folder.close()


if __name__ == "__main__":
    main(sys.argv[1:])
