"""A cross-encoder folder of a few kilobytes: it counts the tokens that query and text share.

Its score is what the text's tokens weigh that the query has too, which an expectation can be computed for.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import processors

from tests.tiny_retriever import CLS, EOS, PAD, tiny_tokenizer


def make_tiny_cross_encoder(
    path: Path, *, outputs: int = 1, max_length: int = 64, root: bool = False
) -> Path:
    """Write the folder.

    Args:
        path: Where to; must not exist.
        outputs: Length of the row of logits per pair; with 2 the first is always 0.
        max_length: What its configuration names.
        root: Put ``model.onnx`` into the folder itself.

    Returns:
        The folder.
    """
    path.mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A",
        pair="[CLS] $A </s> $B:1 </s>:1",
        special_tokens=[("[CLS]", CLS), ("</s>", EOS)],
    )
    (path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config = {"pad_token_id": PAD, "max_position_embeddings": max_length}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    file = path / ("model.onnx" if root else "onnx/model.onnx")
    file.parent.mkdir(exist_ok=True)
    onnx.save(_graph(tokenizer.get_vocab_size(), outputs), file)
    return path


def _graph(size: int, outputs: int) -> onnx.ModelProto:
    """Logit = sum over (i of the query, j of the text) of [id_i == id_j] - 1."""
    table = np.eye(size, dtype=np.float32)
    table[[PAD, CLS, EOS]] = 0.0
    head = np.zeros((1, outputs), dtype=np.float32)
    head[0, -1] = 1.0
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["one_hot"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["token_type_ids"], ["second"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["mask", "second"], ["first"]),
        helper.make_node("Unsqueeze", ["first", "last"], ["first3"]),
        helper.make_node("Unsqueeze", ["second", "last"], ["second3"]),
        helper.make_node("Mul", ["one_hot", "first3"], ["query"]),
        helper.make_node("Mul", ["one_hot", "second3"], ["text"]),
        helper.make_node("ReduceSum", ["query", "length"], ["query_count"], keepdims=0),
        helper.make_node("ReduceSum", ["text", "length"], ["text_count"], keepdims=0),
        helper.make_node("Mul", ["query_count", "text_count"], ["both"]),
        helper.make_node("ReduceSum", ["both", "length"], ["shared"], keepdims=1),
        helper.make_node("Sub", ["shared", "one"], ["logit"]),
        helper.make_node("MatMul", ["logit", "head"], ["logits"]),
    ]
    names = ("input_ids", "attention_mask", "token_type_ids")
    graph = helper.make_graph(
        nodes,
        "tiny-cross-encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(head, "head"),
            numpy_helper.from_array(np.float32(1.0).reshape(1), "one"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "length"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model
