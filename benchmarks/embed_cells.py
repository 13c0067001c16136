"""What benchmarks/embed_speed.py encodes, with which models, and what it takes in operations."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from training_cells import QWEN3_4L, write_qwen3

from stm_retriever import Embedder
from stm_training.data.reading import read_beir, read_corpus
from stm_training.demo.base_model import find_base
from stm_training.evaluate.metrics import mean, ndcg_at_k
from stm_training.evaluate.ranking import rank
from stm_training.export.export import export_model
from stm_training.pipeline.collections import judged_and_sample
from stm_training.recipe import expand_variables

SETS = ("medquad", "disease_ontology")
QUALITY_SETS = ("scifact", "disease_ontology")
MODELS = ("minilm", "qwen3-4l")
VARIANTS = ("fp32", "w8", "int8")


@dataclass(frozen=True)
class Model:
    """A model in both forms.

    Attributes:
        source: The folder that sentence-transformers loads.
        folder: The retriever folder, with all variants.
        dimension: Of its vectors.
    """

    source: Path
    folder: Path
    dimension: int


def make_model(name: str, scratch: Path) -> Model:
    """Export a model: all-MiniLM-L6-v2, or a random 4-layer Qwen3 with its tokenizer."""
    source = find_base() if name == "minilm" else write_qwen3(scratch / "source" / name, QWEN3_4L)
    folder = scratch / "folders" / name
    manifest = export_model(str(source), folder, name=name, variants=VARIANTS, licence="apache-2.0")
    return Model(source, folder, manifest.dimension)


def data() -> Path:
    """Where the collections lie."""
    return Path(expand_variables("${STM_DATA}"))


def documents(name: str, count: int, *, seed: int = 0) -> list[str]:
    """Documents of a collection in random order, each text once."""
    passages = read_corpus(data() / name, "skip")
    texts = list(dict.fromkeys(passage.content for passage in passages if passage.content.strip()))
    random.Random(seed).shuffle(texts)
    return texts[:count]


def queries(count: int, *, seed: int = 0) -> list[str]:
    """Questions of medquad's published test."""
    texts = list(dict.fromkeys(read_beir(data() / "medquad", "test", "skip").queries.values()))
    random.Random(seed).shuffle(texts)
    return [texts[number % len(texts)] for number in range(count)]


def short_texts(count: int) -> list[str]:
    """Any number of different short texts: a few words from medquad and a number."""
    words = " ".join(documents("medquad", 2000)).split()
    return [" ".join([*words[9 * number % (len(words) - 9) :][:8], str(number)]) for number in range(count)]


def ndcg_change(model: Model, size: tuple[int, int], name: str) -> dict[str, float]:
    """nDCG@10 on a panel set by variant: fp32's own, and how much the others differ from it.

    Args:
        model: Which one.
        size: Queries, and documents that they are ranked among.
        name: Of the panel set.
    """
    found = read_beir(data() / "panel" / name, "test", "skip")
    chosen = sorted(found.queries)
    random.Random(0).shuffle(chosen)
    asked = {query: found.queries[query] for query in chosen[: size[0]]}
    qrels = {query: found.qrels[query] for query in asked}
    passages = judged_and_sample(list(found.corpus.values()), qrels, size[1], seed=0)
    scores = {}
    for variant in VARIANTS:
        embedder = Embedder.load(model.folder, variant=variant)
        run = rank(
            embedder.encode_query(list(asked.values())),
            embedder.encode_document([passage.content for passage in passages]),
            query_ids=list(asked),
            doc_ids=[passage.id for passage in passages],
            k=10,
        )
        scores[variant] = mean(ndcg_at_k(run, qrels))
    return {variant: score - (variant != "fp32") * scores["fp32"] for variant, score in scores.items()}


def operations(model: Model, texts: Sequence[str]) -> float:
    """Floating-point operations of encoding texts without padding, a multiply-add counted as two.

    The linear layers and the two products of attention; embeddings, norms and activations are overhead.
    """
    config = json.loads((model.source / "config.json").read_text(encoding="utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    width = heads * config.get("head_dim", hidden // heads)
    keys = config.get("num_key_value_heads", heads) * width // heads
    gated = config["model_type"] != "bert"
    weights = hidden * (2 * width + 2 * keys) + (3 if gated else 2) * hidden * inner
    lengths = Embedder.load(model.folder, threads=1).tokenizer.encode(texts, "document")
    per_layer = sum(2 * weights * len(ids) + 4 * width * len(ids) ** 2 for ids in lengths)
    return float(config["num_hidden_layers"] * per_layer)


def matrix_peaks(threads: int, scratch: Path) -> dict[str, float]:
    """Operations per second of a 2048-cubed product, the best that is found here.

    Returns:
        ``fp32``: the faster of ONNX Runtime's and torch's; ``int8``: ONNX Runtime's MatMulInteger.
    """
    import torch

    size = 2048
    torch.set_num_threads(threads)
    left, right = torch.randn(size, size), torch.randn(size, size)
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((size, size)).astype(np.float32)
    unsigned, signed = (rng.integers(0, 100, (size, size)).astype(kind) for kind in (np.uint8, np.int8))
    by_torch = _best(lambda: left @ right)
    by_runtime = _best(_product(scratch / "fp32.onnx", "MatMul", floats, floats, threads))
    integers = _best(_product(scratch / "int8.onnx", "MatMulInteger", unsigned, signed, threads))
    work = 2 * size**3
    return {"fp32": work / min(by_torch, by_runtime), "int8": work / integers}


def _product(path: Path, kind: str, left: Any, right: Any, threads: int) -> Any:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    types = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32}
    output = TensorProto.INT32 if kind == "MatMulInteger" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(kind, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", types[left.dtype.name], left.shape)],
        [helper.make_tensor_value_info("c", output, (left.shape[0], right.shape[1]))],
        [numpy_helper.from_array(right, "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": left})


def _best(work: Any, times: int = 5) -> float:
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def cosines(files: Mapping[str, Path], reference: str) -> dict[str, float]:
    """Least cosine of each side's vectors to the reference's."""
    expected = np.load(files[reference])
    found = {}
    for name, file in files.items():
        vectors = np.load(file)
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
        found[name] = float(((vectors * expected).sum(axis=1) / norms).min())
    return found
