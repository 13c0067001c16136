"""Memory for the block at hand, used again for the next one.

Fresh memory costs a page fault for every 4 kB, which is as much work as the arithmetic on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Room:
    """Float32 tensors of one thread; what it gave is overwritten after :meth:`clear`."""

    def __init__(self) -> None:
        self._slots: list[Tensor] = []
        self._used = 0

    def clear(self) -> None:
        """Give the same memory out again."""
        self._used = 0

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A tensor with any numbers in it."""
        numbers = math.prod(shape)
        if self._used == len(self._slots):
            self._slots.append(torch.empty(numbers, dtype=torch.float32))
        elif self._slots[self._used].numel() < numbers:
            self._slots[self._used] = torch.empty(numbers, dtype=torch.float32)
        slot = self._slots[self._used]
        self._used += 1
        return slot[:numbers].view(tuple(shape))

    def copy(self, numbers: Tensor) -> Tensor:
        """A tensor's numbers as float32."""
        return self.empty(numbers.shape).copy_(numbers)
