"""Which program gives our vectors for which kind of folder: runs each in its environment and compares."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stm_retriever import Embedder, __version__
from tests.interop.environments import is_made, python_of, reason

LIMIT = 1e-5
ENCODER, CAUSAL, BIDIRECTIONAL, MINILM = "encoder", "causal decoder", "bidirectional decoder", "MiniLM"
_CONSUME = Path(__file__).with_name("consume.py")
_TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Cell:
    """A program in an environment.

    Attributes:
        program: A key of ``consume.PROGRAMS``.
        environment: A key of ``environments.ENVIRONMENTS``.
        versions: Distributions whose versions the card lists.
        conflicts: Whether the environment is known not to resolve; the table then says why.
    """

    program: str
    environment: str
    versions: tuple[str, ...]
    conflicts: bool = False

    @property
    def name(self) -> str:
        """For test ids."""
        return f"{self.program} in {self.environment}"


CELLS = (
    Cell(
        "sentence-transformers before 5", "sentence-transformers-3", ("sentence-transformers", "transformers")
    ),
    Cell("sentence-transformers", "sentence-transformers-5", ("sentence-transformers", "transformers")),
    Cell("sentence-transformers", "sentence-transformers-6", ("sentence-transformers", "transformers")),
    Cell(
        "sentence-transformers, ONNX backend",
        "sentence-transformers-5",
        ("sentence-transformers", "optimum-onnx", "transformers"),
    ),
    Cell(
        "sentence-transformers, ONNX backend",
        "sentence-transformers-6-onnx",
        ("sentence-transformers",),
        conflicts=True,
    ),
    Cell("mteb", "sentence-transformers-6", ("mteb", "sentence-transformers")),
    Cell(
        "LangChain's own class",
        "langchain-huggingface",
        ("langchain-huggingface", "sentence-transformers", "transformers"),
    ),
    Cell(
        "LlamaIndex's own class",
        "llama-index-huggingface",
        ("llama-index-embeddings-huggingface", "sentence-transformers", "transformers"),
    ),
    Cell("fastembed", "fastembed", ("fastembed", "onnxruntime")),
    Cell("onnxruntime and tokenizers alone", "fastembed", ("onnxruntime", "tokenizers")),
    Cell("optimum-onnx", "sentence-transformers-5", ("optimum-onnx", "transformers")),
)


def run_cell(cell: Cell, folders: Mapping[str, Path], texts: Sequence[str], scratch: Path) -> dict[str, Any]:
    """Encodes the texts in a program with each folder, and compares with ours.

    Args:
        cell: The program.
        folders: Retriever folders by kind.
        texts: What is encoded, as queries and as documents.
        scratch: A folder for files in between.

    Returns:
        The cell's row of ``interop.json``: program, versions, and per kind whether it agrees, and by how much.
    """
    row: dict[str, Any] = {"program": cell.program, "environment": cell.environment}
    if not is_made(cell.environment):
        return {**row, "versions": {}, "results": {}, "not_installed": reason(cell.environment)}
    texts_file = scratch / "texts.json"
    texts_file.write_text(json.dumps(list(texts)), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [
            str(python_of(cell.environment)),
            str(_CONSUME),
            cell.program,
            str(texts_file),
            ",".join(cell.versions),
            *map(str, folders.values()),
        ],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{cell.name} ended with {done.returncode}: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    results = {
        kind: _compared(folder, texts, answer["vectors"][str(folder)]) for kind, folder in folders.items()
    }
    return {**row, "versions": answer["versions"], "results": results}


def _compared(folder: Path, texts: Sequence[str], found: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in found:
        return {"agrees": False, "error": found["error"].replace(str(folder), "FOLDER")}
    embedder = Embedder.load(folder, threads=1)
    ours = np.stack([embedder.encode_query(texts), embedder.encode_document(texts)])
    differences = np.abs(ours - np.asarray([found["query"], found["document"]])).max(axis=(0, 2))
    plain = np.asarray([_is_plain(text) for text in texts])
    largest = float(differences[plain].max())
    return {
        "agrees": largest <= LIMIT,
        "max_abs_diff": float(f"{largest:.2g}"),
        "keeps_white_space": float(differences[~plain].max(initial=0.0)) <= LIMIT,
    }


def _is_plain(text: str) -> bool:
    """Some programs strip texts or turn line breaks into spaces before they encode them: told apart."""
    return text == text.strip() and "\n" not in text


def write_results(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes what the model cards list."""
    content = {"made_with": {"stm-retriever": __version__}, "limit": LIMIT, "cells": list(rows)}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
