"""Run by another environment's interpreter: encode texts with a folder of ours, print the vectors as JSON.

    python consume.py PROGRAM TEXTS.json FOLDER [FOLDER ...]

Knows nothing of stm-retriever. The lines that load the model are those that the folder's card prints for the
program, so that they are tested as a reader would run them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any


def read_snippet(folder: Path, title: str) -> str:
    """The card's Python block under a title."""
    card = (folder / "README.md").read_text("utf-8")
    after = card.split(f"# {title}\n\n```python\n", 1)[1]
    return after.split("```", 1)[0].replace("path-or-hub-name", str(folder))


def run_snippet(folder: Path, title: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(read_snippet(folder, title), names)
    return names


def prompts_of(folder: Path) -> dict[str, str]:
    """What sentence-transformers stores; for programs that do not read it, as their snippets put it in front."""
    stored = json.loads((folder / "config_sentence_transformers.json").read_text("utf-8"))
    return dict(stored["prompts"])


def sentence_transformers(folder: Path, texts: list[str]) -> tuple[Any, Any]:
    model = run_snippet(folder, "sentence-transformers")["model"]
    return model.encode_query(texts), model.encode_document(texts)


def sentence_transformers_before_5(folder: Path, texts: list[str]) -> tuple[Any, Any]:
    model = run_snippet(folder, "sentence-transformers before 5")["model"]
    return model.encode(texts, prompt_name="query"), model.encode(texts, prompt_name="document")


def sentence_transformers_onnx(folder: Path, texts: list[str]) -> tuple[Any, Any]:
    from sentence_transformers import SentenceTransformer

    arguments = {"file_name": "onnx/model.onnx", "provider": "CPUExecutionProvider"}
    model = SentenceTransformer(str(folder), backend="onnx", model_kwargs=arguments)
    return model.encode_query(texts), model.encode_document(texts)


def mteb(folder: Path, texts: list[str]) -> tuple[Any, Any]:
    """Prompts by mteb itself, from the role that a task gives."""
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    model = SentenceTransformerEncoderWrapper(str(folder), device="cpu")
    task = TaskMetadata(
        name="Mine", description="-", reference=None, type="Retrieval", category="t2t", modalities=["text"],
        eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10",
        dataset={"path": "local/mine", "revision": "1"},
    )  # fmt: skip
    batches = DataLoader(Dataset.from_dict({"text": texts}), batch_size=4)  # type: ignore[arg-type]
    query, document = (
        model.encode(batches, task_metadata=task, hf_split="test", hf_subset="default", prompt_type=role)
        for role in (PromptType.query, PromptType.document)
    )
    return query, document


def langchain(folder: Path, texts: list[str]) -> tuple[Any, Any]:
    embeddings = run_snippet(folder, "LangChain's own class")["embeddings"]
    return [embeddings.embed_query(text) for text in texts], embeddings.embed_documents(texts)


def llama_index(folder: Path, texts: list[str]) -> tuple[Any, Any]:
    embedding = run_snippet(folder, "LlamaIndex's own class")["embedding"]
    return [embedding.get_query_embedding(text) for text in texts], embedding.get_text_embedding_batch(texts)


def fastembed(folder: Path, texts: list[str]) -> tuple[Any, Any]:
    model = run_snippet(folder, "fastembed")["model"]
    prompts = prompts_of(folder)
    query, document = (
        list(model.embed([prompts[role] + text for text in texts])) for role in ("query", "document")
    )
    return query, document


def by_encode(title: str) -> Callable[[Path, list[str]], tuple[Any, Any]]:
    """A snippet that defines ``encode`` of one text."""

    def both(folder: Path, texts: list[str]) -> tuple[Any, Any]:
        encode = run_snippet(folder, title)["encode"]
        prompts = prompts_of(folder)
        query, document = ([encode(prompts[role] + text) for text in texts] for role in ("query", "document"))
        return query, document

    return both


PROGRAMS: dict[str, Callable[[Path, list[str]], tuple[Any, Any]]] = {
    "sentence-transformers": sentence_transformers,
    "sentence-transformers before 5": sentence_transformers_before_5,
    "sentence-transformers, ONNX backend": sentence_transformers_onnx,
    "mteb": mteb,
    "LangChain's own class": langchain,
    "LlamaIndex's own class": llama_index,
    "fastembed": fastembed,
    "onnxruntime and tokenizers alone": by_encode("onnxruntime and tokenizers alone"),
    "optimum-onnx": by_encode("optimum-onnx"),
}


def main() -> int:
    """Encode, and print one line of JSON, the last of the output."""
    program, texts_file, distributions, *folders = sys.argv[1:]
    texts = json.loads(Path(texts_file).read_text("utf-8"))
    vectors: dict[str, Any] = {}
    for folder in folders:
        try:
            query, document = PROGRAMS[program](Path(folder), texts)
            vectors[folder] = {
                "query": [[float(value) for value in row] for row in query],
                "document": [[float(value) for value in row] for row in document],
            }
        except Exception as error:  # what a user would see; the other folders go on
            vectors[folder] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    versions = {name: metadata.version(name) for name in distributions.split(",")}
    print(json.dumps({"versions": versions, "vectors": vectors}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
