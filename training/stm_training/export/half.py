"""The fp16 file: half the size, for GPUs whose float16 products are fast.

ONNX Runtime's own converter rounds to float16 between two nodes that both stay float32, which ends the range
of a norm's squares and takes the digits of late positions' angles; hence this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stm_training.export.onnx_graph import OUTPUT_NAMES

_FLOAT, _HALF = 1, 10  # of onnx.TensorProto
# Squares end float16's range at 65504, and what follows a norm divides by their sum.
_FLOAT_OPERATORS = frozenset(
    "Pow ReduceMean Sqrt Reciprocal ReduceL2 ReduceSum Cos Sin Range CumSum Constant ConstantOfShape".split()
)
_ANGLES = ("Cos", "Sin")
# Masked scores lie far below all others, and far enough from the end of the range that adding a score to them
# gives no infinity: that would make NaN of a row that is all padding.
_LARGEST = 30000.0


def to_half(model: Any) -> Any:
    """Turns weights and arithmetic into float16; inputs and outputs keep their types.

    Norms' sums, rotary angles, the last norm, pooling and the final normalisation stay float32.

    Args:
        model: The fp32 model; changed and returned.
    """
    graph = model.graph
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    floats = _float_tensors(model)
    kept = _kept(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == _FLOAT}
    made_by = {name: node.name for node in graph.node for name in node.output}
    rewriting = _Rewriting(
        weights, {name for name in floats if name in made_by and made_by[name] not in kept}
    )
    nodes: list[Any] = []
    for node in graph.node:
        keep = node.name in kept
        for place, name in enumerate(node.input):
            if name in floats:
                node.input[place] = rewriting.as_type(name, _FLOAT if keep else _HALF, nodes)
        if node.op_type == "Cast" and not keep:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == _FLOAT:
                    attribute.i = _HALF
        nodes.append(node)
    rewriting.replace_weights(graph)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model


class _Rewriting:
    """Gives each tensor in the type that a node wants, with one cast or one copy of a weight per type."""

    def __init__(self, weights: dict[str, Any], halves: set[str]) -> None:
        self._weights = weights
        self._halves = halves
        self._wanted: dict[str, set[int]] = {}
        self._cast: dict[tuple[str, int], str] = {}

    def as_type(self, name: str, wanted: int, nodes: list[Any]) -> str:
        """Returns the name of the tensor in a type; a cast that this takes is appended to ``nodes``."""
        from onnx import helper

        if name in self._weights:
            self._wanted.setdefault(name, set()).add(wanted)
            return name if wanted == _FLOAT else f"{name}_half"
        if (name in self._halves) == (wanted == _HALF):
            return name
        key = (name, wanted)
        if key not in self._cast:
            self._cast[key] = f"{name}_{'half' if wanted == _HALF else 'float'}"
            nodes.append(
                helper.make_node("Cast", [name], [self._cast[key]], f"{self._cast[key]}_cast", to=wanted)
            )
        return self._cast[key]

    def replace_weights(self, graph: Any) -> None:
        """Puts the float16 weights in, and takes out the float32 ones that nothing reads any more."""
        from onnx import numpy_helper

        for name, wanted in self._wanted.items():
            tensor = self._weights[name]
            if _HALF in wanted:
                values = np.clip(numpy_helper.to_array(tensor), -_LARGEST, _LARGEST).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, f"{name}_half"))
        drop_weights(graph, {name for name, wanted in self._wanted.items() if _FLOAT not in wanted})


def drop_weights(graph: Any, names: set[str]) -> None:
    """Takes weights out of a graph, by name."""
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name in names:
            del graph.initializer[place]


def _float_tensors(model: Any) -> set[str]:
    """Names of all float32 tensors; the exporter writes the types, so that nothing has to be inferred."""
    graph = model.graph
    typed = {
        info.name: info.type.tensor_type.elem_type
        for info in (*graph.value_info, *graph.input, *graph.output)
        if info.type.tensor_type.elem_type
    }
    if any(name and name not in typed for node in graph.node for name in node.output):
        from onnx.shape_inference import infer_shapes

        inferred = infer_shapes(model).graph.value_info
        typed.update({info.name: info.type.tensor_type.elem_type for info in inferred})
    floats = {name for name, kind in typed.items() if kind == _FLOAT}
    return floats | {tensor.name for tensor in graph.initializer if tensor.data_type == _FLOAT}


def _kept(graph: Any) -> set[str]:
    """Names of the nodes that stay float32, because of what they do or where they stand."""
    makers = {name: node for node in graph.node for name in node.output}
    states = makers[OUTPUT_NAMES[0]]
    pooling = {node.name for node in graph.node} - _upstream([OUTPUT_NAMES[0]], makers)
    angles = _upstream([node.input[0] for node in graph.node if node.op_type in _ANGLES], makers)
    means = {name for node in graph.node if node.op_type == "ReduceMean" for name in node.output}
    epsilons = {node.name for node in graph.node if node.op_type == "Add" and means & set(node.input)}
    by_kind = {node.name for node in graph.node if node.op_type in _FLOAT_OPERATORS}
    return pooling | angles | epsilons | by_kind | {states.name}


def _upstream(names: list[str], makers: dict[str, Any]) -> set[str]:
    """Names of all nodes that some tensors are computed from."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        node = makers.get(todo.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            todo.extend(node.input)
    return found
