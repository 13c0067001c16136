"""Makes the smaller ONNX files out of the fp32 one."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stm_training.export.half import drop_weights, to_half
from stm_training.export.onnx_graph import EXTERNAL_DATA_ABOVE, EXTERNAL_DATA_SUFFIX, drop_notes
from stm_training.export.variant_kinds import VariantKind

# Tables smaller than this (token types) are not worth their own scales.
_MIN_TABLE = 4096
# At 128 the kernel's sums depend on how many rows there are, and so a text's vector on its batch mates.
_BLOCKS = (64, 32)
# Activations rounded to int8 per row and block: several times faster than float ones, and still independent
# of the batch.
_INT8_ACCURACY = 4
_FLOAT = 1  # onnx.TensorProto.FLOAT


def write_variant(
    kind: VariantKind, source: Path, out: Path, *, external_data_above: int = EXTERNAL_DATA_ABOVE
) -> list[Path]:
    """Makes one ONNX file from the fp32 one, which stays as it is.

    Args:
        kind: Which; not fp32.
        source: The fp32 file, its weight files beside it.
        out: The file to write.
        external_data_above: Weights of more bytes than this go into ``<out>_data``.

    Returns:
        The files written, the graph first.
    """
    import onnx

    makers: dict[str, Callable[[Any], Any]] = {
        "fp16": to_half,
        "w8": lambda model: _weights_in_blocks(model, bits=8),
        "int8": _dynamic_int8,
        "w4": lambda model: _weights_in_blocks(model, bits=4),
    }
    with _quiet():
        model = makers[kind.name](onnx.load(str(source)))
    drop_notes(model)
    model.producer_name, model.producer_version = "stm-retriever", ""
    return _save(model, out, external_data_above)


def _save(model: Any, out: Path, external_data_above: int) -> list[Path]:
    import onnx

    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    data = out.with_name(out.name + EXTERNAL_DATA_SUFFIX)
    data.unlink(missing_ok=True)  # onnx would append to it
    if size <= external_data_above:
        onnx.save(model, str(out))
        return [out]
    onnx.save(model, str(out), save_as_external_data=True, all_tensors_to_one_file=True, location=data.name)
    return [out, data]


def _weights_in_blocks(model: Any, *, bits: int) -> Any:
    """Weights of 8 or 4 bits with a scale per block; the products are MatMulNBits of ONNX Runtime."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(
        block_size=_block_size(model) if bits == 8 else 32,
        is_symmetric=bits == 8,  # a zero point of its own per block counts at 4 bits
        accuracy_level=_INT8_ACCURACY,
        bits=bits,
    )
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    quantized = quantizer.model.model
    _shrink_tables(quantized)
    return quantized


def _block_size(model: Any) -> int:
    """The longest block that divides the inputs of all products; padding would cost size and time."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    lengths = [
        shapes[node.input[1]][0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in shapes
    ]
    return next((block for block in _BLOCKS if all(length % block == 0 for length in lengths)), _BLOCKS[-1])


def _dynamic_int8(model: Any) -> Any:
    """Weights of 8 bits per output channel; ONNX Runtime scales the activations of each run."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _shrink_tables(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],  # the default list breaks fused attention
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=_is_large(model),
        )
        return onnx.load(str(path))


def _is_large(model: Any) -> bool:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EXTERNAL_DATA_ABOVE


def _shrink_tables(model: Any) -> None:
    """Embedding tables as int8 with a scale per row: the row that is looked up is scaled back, exactly.

    Standard operators only, so the lookup runs everywhere and does not depend on the batch.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    tables = _tables(graph)
    scales: dict[str, str] = {}
    for name, tensor in tables.items():
        rows = numpy_helper.to_array(tensor)
        scale = np.abs(rows).max(axis=1, keepdims=True).astype(np.float32) / np.float32(127)
        scale[scale == 0] = 1  # a row of zeros, as padding tokens often have
        codes = np.clip(np.rint(rows / scale), -127, 127).astype(np.int8)
        scales[name] = f"{name}_scale"
        graph.initializer.append(numpy_helper.from_array(codes, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale, scales[name]))
    drop_weights(graph, set(tables))
    nodes = []
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in tables:
            nodes.append(node)
            continue
        table, ids, out = node.input[0], node.input[1], node.output[0]
        nodes += [
            helper.make_node("Gather", [f"{table}_int8", ids], [f"{out}_int8"], f"{out}_codes"),
            helper.make_node("Gather", [scales[table], ids], [f"{out}_scale"], f"{out}_scales"),
            helper.make_node("Cast", [f"{out}_int8"], [f"{out}_float"], f"{out}_cast", to=_FLOAT),
            helper.make_node("Mul", [f"{out}_float", f"{out}_scale"], [out], f"{out}_scaled"),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _tables(graph: Any) -> dict[str, Any]:
    """The weights that are looked up by row and used for nothing else."""
    elsewhere = {
        name
        for node in graph.node
        for place, name in enumerate(node.input)
        if not (node.op_type == "Gather" and place == 0 and _axis(node) == 0)
    }
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"} - elsewhere
    return {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.name in looked_up
        and tensor.data_type == _FLOAT
        and len(tensor.dims) == 2
        and int(np.prod(tensor.dims)) >= _MIN_TABLE
    }


def _axis(node: Any) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps a line per weight, and advice to run other tools, off the user's terminal.

    Importing the quantizer configures the root logger, so that every library's notes would follow.
    """
    root = logging.getLogger()
    disabled, level, handlers = root.manager.disable, root.level, list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        root.handlers[:] = handlers
