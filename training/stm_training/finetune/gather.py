"""One batch over several processes: who encodes which text, vectors gathered with gradient, errors shared."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed

from stm_retriever.errors import TrainingError
from stm_training.finetune.out_of_memory import OutOfMemoryElsewhereError, is_out_of_memory

_PIECE = 16 * 1024**2  # numbers that are reduced at once
_FINE, _OUT_OF_MEMORY, _BROKEN = range(3)


@dataclass(frozen=True)
class Ranks:
    """The processes of one training; one alone needs no torch.distributed.

    Attributes:
        rank: This process, from 0.
        size: How many there are.
        device: Where tensors lie that are exchanged (CPU for gloo, the own GPU for NCCL).
        sharded: The weights are sharded (FSDP), so that every forward pass waits for all processes, and
            their gradients are exchanged by it.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sharded: bool = False

    @classmethod
    def of_this_process(cls, device: torch.device, *, sharded: bool) -> Ranks:
        """Read from torch.distributed, if it runs.

        Args:
            device: Where the model lies.
            sharded: Whether the weights are sharded.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        own = device if distributed.get_backend() == "nccl" else torch.device("cpu")
        return cls(distributed.get_rank(), distributed.get_world_size(), own, sharded)

    def own_share(self, sizes: Sequence[int]) -> list[int]:
        """The texts that this process encodes: all of them, divided so that the sizes' sums are alike.

        Every process computes the same division, without asking the others.

        Args:
            sizes: A measure of each text's length, at least 1. If there are as many texts as processes, no
                process goes without.

        Returns:
            Places in ``sizes``, ascending.
        """
        if self.size == 1:
            return list(range(len(sizes)))
        loads = [(0, rank) for rank in range(self.size)]
        own: list[int] = []
        for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
            load, rank = heapq.heappop(loads)
            heapq.heappush(loads, (load + max(1, sizes[place]), rank))
            if rank == self.rank:
                own.append(place)
        return sorted(own)

    def gather(self, vectors: Tensor, rows: Tensor, total: int) -> Tensor:
        """Put the vectors of all processes together; gradients flow through this process's own ones.

        The sum of all processes' gradients is then that of the whole batch.

        Args:
            vectors: (n, d), of this process.
            rows: (n,) int64, their places among all; those of all processes are 0 to total - 1, once each.
            total: Number of vectors over all processes.

        Returns:
            (total, d), the same in every process.
        """
        places = rows.to(vectors.device)
        everything = vectors.new_zeros(total, vectors.shape[1])
        if self.size > 1:
            # Each place is set in one process and zero in the others, so that the sum is exact.
            shared = everything.index_copy(0, places, vectors.detach()).to(self.device)
            distributed.all_reduce(shared)
            everything = shared.to(vectors.device)
        return everything.index_copy(0, places, vectors)

    def sum_gradients(self, weights: Iterable[Tensor]) -> None:
        """Sum the gradients over all processes in place, unless sharding has done it.

        Every process must have gradients for the same weights.
        """
        if self.size == 1 or self.sharded:
            return
        waiting: list[Tensor] = []
        for weight in weights:
            if weight.grad is None:
                continue
            if waiting and sum(map(torch.numel, waiting)) + weight.grad.numel() > _PIECE:
                self._sum_together(waiting)
                waiting = []
            waiting.append(weight.grad)
        if waiting:
            self._sum_together(waiting)

    def _sum_together(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.float().flatten() for tensor in tensors]).to(self.device)
        distributed.all_reduce(flat)
        for tensor, part in zip(
            tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))

    @contextmanager
    def together(self, doing: str, *, encodes: bool = False) -> Iterator[None]:
        """Leave a block in all processes or in none: an error in one is an error in each.

        Otherwise the others would wait for its vectors or gradients until a timeout.

        Args:
            doing: For the message, as in "while encoding".
            encodes: The block runs the model. Where the weights are sharded it then waits for all processes
                itself, so that nothing can be agreed on: the launcher must end what an error leaves.

        Raises:
            OutOfMemoryElsewhereError: If memory ran out in another process, and nothing worse happened.
            TrainingError: If another process had an error.
        """
        if self.size == 1 or (encodes and self.sharded):
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # whatever it is, the others must hear of it; it is raised again below
            failure = error
        worst = self.largest(_severity(failure))
        if failure is not None and _severity(failure) == worst:
            raise failure
        if worst == _OUT_OF_MEMORY:
            message = f"Another process of the training ran out of memory while {doing}."
            raise OutOfMemoryElsewhereError(message)
        if worst == _BROKEN:
            message = (
                f"Another of the {self.size} processes stopped with an error while {doing}, so that this one "
                f"(number {self.rank}) cannot go on. Its message says why."
            )
            raise TrainingError(message) from failure

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return self._reduce(number, distributed.ReduceOp.MAX) if self.size > 1 else number

    def smallest(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        return self._reduce(number, distributed.ReduceOp.MIN) if self.size > 1 else number

    def sum(self, number: int) -> int:
        """The sum of the processes' numbers."""
        return self._reduce(number, distributed.ReduceOp.SUM) if self.size > 1 else number

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.largest(0)

    def _reduce(self, number: int, how: distributed.ReduceOp.RedOpType) -> int:
        value = torch.tensor([number], device=self.device)
        distributed.all_reduce(value, op=how)
        return int(value)


def _severity(failure: Exception | None) -> int:
    if failure is None:
        return _FINE
    return _OUT_OF_MEMORY if is_out_of_memory(failure) else _BROKEN
