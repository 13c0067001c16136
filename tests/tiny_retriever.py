"""A retriever folder of a few kilobytes that is real in every other respect; needs no training package.

Its model looks up a random vector per token and averages them, so texts that share words are similar.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from stm_retriever.embedder import Embedder
from stm_retriever.folder import (
    Manifest,
    Prompts,
    TokenGolden,
    Variant,
    VectorGolden,
    fingerprint,
    sha256_file,
    write_manifest,
)
from stm_retriever.tokenization import TextTokenizer
from stm_retriever.types import Role

PROMPTS = Prompts(query="find: ", document="passage: ")
WORDS = (
    "find passage query the a of and in is to for with about what how does do red green blue apple pear "
    "cherry fruit tree house car train road river sea mountain fever cough pain heart blood sugar doctor "
    "patient drug treatment symptom cause prevent outlook child adult cat dog bird fish bread water salt "
    "light dark day night summer winter rain snow city village book music number one two three four five six "
    "seven eight nine ten"
).split()
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-_/+*=%&@#$"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "</s>")
PAD, UNK, CLS, EOS = range(4)
_GOLDEN_TEXTS: tuple[tuple[Role, str], ...] = (
    ("query", "what does a red apple do"),
    ("document", "A red apple is a fruit."),
    ("document", "zebra crossing 42"),
)


def tiny_tokenizer(*, appends_eos: bool = False) -> Tokenizer:
    """Word pieces down to single characters; ``[CLS]`` first and, if asked, ``</s>`` last."""
    pieces = [*WORDS, *_CHARACTERS, *(f"##{character}" for character in _CHARACTERS)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*_SPECIAL, *pieces]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A </s>" if appends_eos else "[CLS] $A",
        special_tokens=[("[CLS]", CLS), ("</s>", EOS)],
    )
    return tokenizer


def make_tiny_retriever(
    path: Path,
    *,
    prompts: Prompts = PROMPTS,
    seed: int = 0,
    dimension: int = 32,
    max_length: int = 64,
    name: str | None = None,
    variants: tuple[str, ...] = ("fp32",),
) -> Path:
    """Write a retriever folder; another seed or other prompts give another fingerprint.

    Returns:
        The folder, for ``Embedder.load``.
    """
    path = Path(path)
    (path / "onnx").mkdir(parents=True)
    tokenizer_path = path / "tokenizer.json"
    tokenizer_path.write_text(tiny_tokenizer().to_str(), encoding="utf-8")
    size = tiny_tokenizer().get_vocab_size()
    table = np.random.default_rng(seed).standard_normal((size, dimension)).astype(np.float32)
    files = {}
    for variant in variants:
        file = "onnx/model.onnx" if variant == "fp32" else f"onnx/model_{variant}.onnx"
        onnx.save(_graph(table), path / file)
        files[variant] = Variant(file=file, sha256=sha256_file(path / file))
    weights = hashlib.sha256(table.tobytes()).hexdigest()
    tokenizer_sha = sha256_file(tokenizer_path)
    text_tokenizer = TextTokenizer.from_file(
        tokenizer_path, max_length=max_length, eos_token_id=EOS, pad_token_id=PAD, prompts=prompts
    )
    manifest = Manifest(
        name=name or f"tiny-{seed}",
        fingerprint=fingerprint(
            weights_sha256=weights,
            tokenizer_sha256=tokenizer_sha,
            prompts=prompts,
            pooling="mean",
            normalize=True,
            attention="bidirectional",
            eos_token_id=EOS,
            max_length=max_length,
        ),
        prompts=prompts,
        pooling="mean",
        attention="bidirectional",
        model_type="tiny",
        eos_token_id=EOS,
        pad_token_id=PAD,
        max_length=max_length,
        dimension=dimension,
        dimensions_allowed=[dimension],
        weights_sha256=weights,
        tokenizer_sha256=tokenizer_sha,
        variants=files,
        token_goldens=[
            TokenGolden(role=role, text=text, ids=text_tokenizer.encode([text], role)[0].tolist())
            for role, text in _GOLDEN_TEXTS
        ],
        vector_goldens=[],
        base={"name": "tiny"},
        licences=["apache-2.0"],
    )
    write_manifest(path, manifest)
    write_manifest(path, manifest.model_copy(update={"vector_goldens": _vector_goldens(path)}))
    return path


def _vector_goldens(path: Path) -> list[VectorGolden]:
    embedder = Embedder.load(path, threads=1)
    encode = {"query": embedder.encode_query, "document": embedder.encode_document}
    return [
        VectorGolden(role=role, text=text, vector=encode[role]([text])[0].tolist())
        for role, text in _GOLDEN_TEXTS
    ]


def _graph(table: np.ndarray) -> onnx.ModelProto:
    dimension = table.shape[1]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last_axis"], ["mask3"]),
        helper.make_node("Mul", ["last_hidden_state", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "length_axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask3", "length_axis"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("LpNormalization", ["mean"], ["sentence_embedding"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "length"]),
        ],
        [
            helper.make_tensor_value_info(
                "last_hidden_state", TensorProto.FLOAT, ["batch", "length", dimension]
            ),
            helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", dimension]),
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2], np.int64), "last_axis"),
            numpy_helper.from_array(np.array([1], np.int64), "length_axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model
