"""What a merge method sees of one parameter: blocks of it, so that memory is bounded by the block."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TILE = 1 << 15
"""Numbers that a kernel works on at a time: few enough that they stay in the processor's cache, and that
torch does not wake other threads for them, which on a busy machine costs more than it gains."""


@dataclass(frozen=True)
class Block:
    """Consecutive numbers of one parameter (whole rows where it is cut by rows): base and every member.

    Attributes:
        base: The base's weight, float32, any shape.
        deltas: Members minus base, float32, of the base's shape, in the order of the recipe's weights; zeros
            where a member leaves the parameter alone.
        offset: Index of the block's first number in the flattened parameter. Random drops and ties between
            equal magnitudes depend on it alone, so that the size of the blocks never changes a result.
        members: The members themselves, float32, where they are known exactly (full folders); ``None``, or
            an entry that is ``None``, where a member *is* base plus delta (LoRA). Adding a rounded
            difference back may miss the last bit; a merge that comes down to one member returns this.
    """

    base: Tensor
    deltas: Sequence[Tensor]
    offset: int = 0
    members: Sequence[Tensor | None] | None = None

    def member(self, place: int) -> Tensor:
        """A member's own numbers: as given, else base plus delta rounded to float32."""
        known = None if self.members is None else self.members[place]
        return self.base + self.deltas[place] if known is None else known


Blocks = Callable[[], Iterator[Block]]
"""Makes a fresh pass over a parameter's blocks, in order and each time cut at the same places."""


class WholeParameter:
    """A parameter that fits into memory as one block, with what is known about it from merge to merge.

    Args:
        block: The whole parameter.
        keys: Stand for the block's members in ``facts``, in their order; needed where ``facts`` is shared by
            merges of other members.
        facts: What was computed about the base and the members: products and histograms, which do not depend
            on the recipe. Grows.
    """

    def __init__(
        self, block: Block, keys: Sequence[Hashable] | None = None, facts: dict[Any, Any] | None = None
    ) -> None:
        self.block = block
        self.keys: Sequence[Hashable] = range(len(block.deltas)) if keys is None else keys
        self.facts: dict[Any, Any] = {} if facts is None else facts

    def __call__(self) -> Iterator[Block]:
        """One pass: one block."""
        yield self.block


@dataclass(frozen=True)
class Tile:
    """Part of a block, flat.

    Attributes:
        base: (n,) float32.
        deltas: (n,) float32 each.
        start: Index of the first number in the flattened parameter.
        out: (n,) float32, to be written.
    """

    base: Tensor
    deltas: Sequence[Tensor]
    start: int
    out: Tensor


def merge_by_tiles(block: Block, used: Sequence[int], kernel: Callable[[Tile], None]) -> Tensor:
    """Run an element-wise kernel over a block.

    Args:
        block: The block.
        used: Places of the members that the kernel wants, in the order it wants them.
        kernel: Writes ``tile.out``. Tiles come in order and end at multiples of ``TILE`` of the whole
            parameter's index.

    Returns:
        Float32, of the block's shape.
    """
    out = torch.empty_like(block.base, dtype=torch.float32, memory_format=torch.contiguous_format)
    flat_out, base = out.view(-1), block.base.reshape(-1)
    deltas = [block.deltas[place].reshape(-1) for place in used]
    for begin, end in tile_bounds(block.offset, base.numel()):
        kernel(
            Tile(
                base=base[begin:end],
                deltas=[delta[begin:end] for delta in deltas],
                start=block.offset + begin,
                out=flat_out[begin:end],
            )
        )
    return out


def tile_bounds(offset: int, size: int, tile: int = TILE) -> Iterator[tuple[int, int]]:
    """Cut ``size`` numbers that begin at ``offset`` where the parameter's index is a multiple of ``tile``."""
    begin = 0
    while begin < size:
        end = min(size, begin + tile - (offset + begin) % tile)
        yield begin, end
        begin = end
