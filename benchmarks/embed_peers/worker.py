"""One side of the embedding benchmark in a process of its own: encodes what it is given, when it is let.

Reads a task file, loads its encoder, then answers lines of JSON on standard input:

    {"do": "documents", "texts": [...], "save": FILE or null}    -> {"seconds": s}
    {"do": "stream", "file": FILE}                               -> {"seconds": s}
    {"do": "queries", "texts": [...]}                            -> {"seconds": [s per query]}
    {"do": "end"}                                                -> {"peak": bytes, "anonymous": bytes, ...}
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()  # before everything that a side itself imports
Encode = Callable[[Sequence[str]], Any]
_PACKAGES = (
    "stm-retriever", "onnxruntime", "openvino", "tokenizers", "numpy", "torch", "transformers",
    "sentence-transformers", "langchain-huggingface", "llama-index-embeddings-huggingface", "fastembed",
)  # fmt: skip


def ours(task: dict[str, Any]) -> tuple[Encode, Encode]:
    """Ours: documents and queries."""
    from stm_retriever import Embedder

    embedder = Embedder.load(
        task["folder"], variant=task["variant"], engine=task["engine"], threads=task["threads"]
    )
    return embedder.encode_document, embedder.encode_query


def sentence_transformers(task: dict[str, Any]) -> tuple[Encode, Encode]:
    """SentenceTransformer as it comes: torch, float32, batches of 32."""
    _set_torch_threads(task)
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(task["source"], device="cpu")
    return model.encode_document, model.encode_query


def langchain_huggingface(task: dict[str, Any]) -> tuple[Encode, Encode]:
    """LangChain's stock class as it comes."""
    _set_torch_threads(task)
    from langchain_huggingface import HuggingFaceEmbeddings

    model = HuggingFaceEmbeddings(model_name=task["source"], model_kwargs={"device": "cpu"})
    return model.embed_documents, lambda texts: [model.embed_query(text) for text in texts]


def llama_index(task: dict[str, Any]) -> tuple[Encode, Encode]:
    """LlamaIndex's stock class as it comes: batches of 10."""
    _set_torch_threads(task)
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model = HuggingFaceEmbedding(model_name=task["source"], device="cpu")
    return (
        lambda texts: model.get_text_embedding_batch(list(texts)),
        lambda texts: [model.get_query_embedding(text) for text in texts],
    )


def fastembed(task: dict[str, Any]) -> tuple[Encode, Encode]:
    """Fastembed as it comes (batches of 256) with the very ONNX file that ours runs."""
    import numpy
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="local/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/model"),
        dim=task["dimension"],
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding("local/model", specific_model_path=task["folder"], threads=task["threads"])
    return (
        lambda texts: numpy.stack(list(model.embed(list(texts)))),
        lambda texts: numpy.stack(list(model.query_embed(list(texts)))),
    )


LOADERS = {
    "ours": ours,
    "sentence-transformers": sentence_transformers,
    "langchain-huggingface": langchain_huggingface,
    "llama-index-embeddings-huggingface": llama_index,
    "fastembed": fastembed,
}


def _set_torch_threads(task: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(task["threads"])


class Memory:
    """Watches this process: the most anonymous pages, twenty times a second; the kernel keeps the rest."""

    def __init__(self) -> None:
        self.anonymous = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.anonymous = max(self.anonymous, status("RssAnon"))
            time.sleep(0.05)


def status(key: str) -> int:
    """A figure of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    words = next((line.split() for line in lines if line.startswith(f"{key}:")), [])
    return 1024 * int(words[1]) if words else 0


def versions() -> dict[str, str]:
    """What is installed of the packages that matter."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(path: str) -> None:
    """Do the task of a file."""
    out, sys.stdout = sys.stdout, sys.stderr

    def say(**message: Any) -> None:
        print(json.dumps(message), file=out, flush=True)

    task = json.loads(Path(path).read_text(encoding="utf-8"))
    documents, queries = LOADERS[task["loader"]](task)
    queries(["what is it"])
    say(load=time.perf_counter() - STARTED, versions=versions())
    memory = Memory()
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "end":
            say(peak=status("VmHWM"), anonymous=memory.anonymous)
            return
        if order["do"] == "documents":
            say(seconds=_documents(documents, order))
        elif order["do"] == "stream":
            say(seconds=_stream(documents, order["file"]))
        else:
            say(seconds=[_timed(queries, [text])[0] for text in order["texts"]])


def _documents(encode: Encode, order: dict[str, Any]) -> float:
    seconds, vectors = _timed(encode, order["texts"])
    if order.get("save"):
        import numpy

        numpy.save(order["save"], numpy.asarray(vectors, dtype=numpy.float32))
    return seconds


def _stream(encode: Any, file: str) -> float:
    """Ours alone: a file's lines through the stream; the vectors are dropped as they come."""
    started = time.perf_counter()
    with Path(file).open(encoding="utf-8") as lines:
        for _ in encode.__self__.encode_document_stream(line.rstrip("\n") for line in lines):
            pass
    return time.perf_counter() - started


def _timed(encode: Encode, texts: Sequence[str]) -> tuple[float, Any]:
    started = time.perf_counter()
    vectors = encode(texts)
    return time.perf_counter() - started, vectors


if __name__ == "__main__":
    main(sys.argv[1])
