"""A folder in which the pages' examples run: what the demo leaves, documents, models, collections, all tiny."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from stm_retriever import Document, Embedder, Retriever
from tests.tiny_models import build_tiny_model
from tests.tiny_retriever import make_tiny_retriever
from tests.tiny_run import write_tiny_recipe


def make_workplace(folder: Path) -> Path:
    """Fill the folder."""
    make_tiny_retriever(folder / "runs" / "demo" / "retriever")
    embedder = Embedder.load(folder / "runs" / "demo" / "retriever")
    with Retriever.create(folder / "runs" / "demo" / "index", embedder=embedder) as retriever:
        retriever.add(Document(id=f"d{n}", text=f"Text number {n} about asthma.") for n in range(5))
    return folder


def add_documents_and_models(folder: Path) -> Path:
    """What the how-to pages need beside: documents, a base with two members, a recipe, a finished run."""
    documents = folder / "my-documents"
    documents.mkdir()
    for number in range(4):
        (documents / f"note-{number}.txt").write_text(f"A note on asthma and cough, number {number}.")
    write_tiny_recipe(folder)  # base, health, general, recipe.yaml
    for number, name in enumerate(("one", "two"), start=1):
        build_tiny_model("bert", folder / "experts" / name, seed=number)
        # A member has its base's tokenizer and settings; only its weights are others.
        for file in (folder / "base").rglob("*"):
            target = folder / "experts" / name / file.relative_to(folder / "base")
            if file.is_file() and file.suffix != ".safetensors":
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
    for name in ("corpus", "retriever", "index", "report"):
        stage = folder / "runs" / "finished" / name
        stage.mkdir(parents=True)
        (stage / "stage.json").write_text(json.dumps({"stage": name, "key": "k"}))
    (folder / "runs" / "finished" / "scratch").mkdir()
    card = "---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\ntags: [a]\n---\n# Tiny\n"
    (folder / "runs" / "demo" / "retriever" / "README.md").write_text(card)
    return folder
