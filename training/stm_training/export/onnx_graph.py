"""Exports a backbone to one ONNX file with PyTorch's own (dynamo) exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm_retriever.errors import ConfigError, require

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone

# Traps of the exporter: opset 17 is silently raised, opset 23 breaks ModernBERT for batches.
OPSET = 20
# Consumers such as fastembed read last_hidden_state by position; "embedding" would make an invalid graph.
INPUT_NAMES = ("input_ids", "attention_mask")
OUTPUT_NAMES = ("last_hidden_state", "sentence_embedding")
# A protobuf ends at 2 GiB; the rest is for the graph itself.
EXTERNAL_DATA_ABOVE = 1_800_000_000
EXTERNAL_DATA_SUFFIX = "_data"  # text-embeddings-inference, transformers.js and optimum look for it


def export_onnx(
    backbone: Backbone, path: Path, *, external_data_above: int = EXTERNAL_DATA_ABOVE
) -> list[Path]:
    """Traces a backbone and writes the graph; **tracing changes some models**, so give a copy of your own.

    Inputs are ``input_ids`` and ``attention_mask`` (batch, sequence) int64; outputs are ``last_hidden_state``
    (batch, sequence, width) and ``sentence_embedding`` (batch, dimension) float32, pooled and of unit length.

    Args:
        backbone: A freshly loaded float32 model that is thrown away afterwards.
        path: The ``.onnx`` file to write; its folder must exist.
        external_data_above: Weights of more bytes than this go into a file of their own beside it.

    Returns:
        The files that hold external weights; empty when all is in the one file.

    Raises:
        ConfigError: If the model cannot be traced, with the reason.
        MissingExtraError: If the exporter's packages are not installed.
    """
    import torch

    require("onnx", extra="train", purpose="the ONNX export")
    require("onnxscript", extra="train", purpose="the ONNX export")
    _refuse_length_dependent_rope(backbone)
    backbone.eval()
    size = sum(parameter.numel() * parameter.element_size() for parameter in backbone.parameters())
    external = size > external_data_above
    length = max(2, min(8, backbone.max_length))  # a length of 1 would be baked in
    ids = torch.full((2, length), backbone.pad_token_id, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    try:
        with torch.no_grad(), _silence():
            torch.onnx.export(
                backbone,
                (ids, mask),
                str(path),
                input_names=list(INPUT_NAMES),
                output_names=list(OUTPUT_NAMES),
                opset_version=OPSET,
                dynamo=True,
                external_data=external,
                dynamic_shapes={"input_ids": axes, "attention_mask": axes},
                verbose=False,
            )
    except RuntimeError as error:  # OnnxExporterError is one
        raise ConfigError(_untraceable(backbone, error)) from error
    return _tidy(path, external=external)


def vocabulary_size(path: Path) -> int:
    """How many token ids a graph that :func:`export_onnx` wrote knows: the rows that ``input_ids`` look up.

    Raises:
        ConfigError: If nothing is looked up by ``input_ids``: another tool wrote the graph.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    rows = {tensor.name: int(tensor.dims[0]) for tensor in graph.initializer if len(tensor.dims) == 2}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[1] == INPUT_NAMES[0] and node.input[0] in rows:
            return rows[node.input[0]]
    raise ConfigError(
        f"{str(path)!r} has no embedding table that input_ids look up, so stm-train did not write it and no "
        "variant can be made of it. Make the folder anew: stm-train export MODEL --out NEW_FOLDER"
    )


def _refuse_length_dependent_rope(backbone: Backbone) -> None:
    """Dynamic NTK scaling computes its frequencies from the length at run time, which no graph can hold."""
    config = backbone.model.config
    for scheme in _rope_schemes(config):
        if scheme.get("rope_type", scheme.get("type")) == "dynamic":
            raise ConfigError(
                f"The model {backbone.spec.source!r} ({backbone.model_type}) uses rope_type 'dynamic' "
                f"(factor {scheme.get('factor')}), which recomputes its rotary frequencies from the length "
                "of each batch. PyTorch cannot export that, and a text's vector would depend on its batch "
                "mates. Set the rope scaling in the model's config.json to 'linear' or 'yarn', or remove it "
                f"and keep max_length within {getattr(config, 'max_position_embeddings', 'its positions')}."
            )


def _rope_schemes(config: Any) -> Iterator[dict[str, Any]]:
    for attribute in ("rope_parameters", "rope_scaling"):
        value = getattr(config, attribute, None)
        if isinstance(value, dict):
            yield value
            yield from (inner for inner in value.values() if isinstance(inner, dict))


def _untraceable(backbone: Backbone, error: RuntimeError) -> str:
    reason = " ".join(str(error.__cause__ or error).split())[:400]
    return (
        f"PyTorch's exporter cannot trace {type(backbone.model).__name__} from {backbone.spec.source!r}: "
        f"{reason}. Without a graph there is no retriever folder. Known to work are the Qwen3, Llama, "
        "Mistral, Gemma, Phi, GPT-NeoX, BERT, ModernBERT and XLM-R families."
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps the exporter's progress lines and warnings off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _tidy(path: Path, *, external: bool) -> list[Path]:
    """Removes the exporter's notes, which hold paths of this machine, and renames the external file."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    drop_notes(model)
    files: list[Path] = []
    written = path.with_name(path.name + ".data")  # what torch calls it
    if external and written.is_file():
        wanted = path.with_name(path.name + EXTERNAL_DATA_SUFFIX)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = wanted.name
        os.replace(written, wanted)
        files.append(wanted)
    onnx.save(model, str(path))
    return files


def drop_notes(model: Any) -> None:
    """Removes what the tools noted beside the graph: paths of this machine, among others."""
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    graph = model.graph
    holders = [graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output]
    for function in model.functions:
        holders += [function, *function.node, *function.value_info]
    for holder in holders:
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
