"""Merge methods on one parameter at a time, from the papers; each on whole tensors or on blocks of them.

Every method works on the base's weight and the experts' full deltas (expert minus base) in float32; the
caller casts last. A result never depends on how a parameter is cut into blocks, not in a single bit.
"""

from stm_training.merge.methods.blocks import Block, Blocks, WholeParameter
from stm_training.merge.methods.plain import linear, merge_block, slerp, task_arithmetic, ties
from stm_training.merge.methods.registry import METHODS, Method
from stm_training.merge.methods.tensor import merge_parameter

__all__ = [
    "METHODS",
    "Block",
    "Blocks",
    "Method",
    "WholeParameter",
    "linear",
    "merge_block",
    "merge_parameter",
    "slerp",
    "task_arithmetic",
    "ties",
]
