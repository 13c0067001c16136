"""Merge the parameters of a plan, several at once, each in blocks."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from stm_retriever.errors import MergeError
from stm_training.merge.methods.blocks import Block
from stm_training.merge.methods.registry import METHODS
from stm_training.merge.methods.tensor import merge_parameter
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.stream.folders import ModelFolder
from stm_training.merge.stream.members import Member
from stm_training.merge.stream.memory import give_back
from stm_training.merge.stream.pieces import Piece, cut
from stm_training.merge.stream.plan import MergePlan, Parameter
from stm_training.merge.stream.room import Room
from stm_training.merge.stream.tensor_files import FLOATS
from stm_training.merge.stream.writer import TensorFileWriter

Progress = Callable[[int], None]
"""Called with the bytes of merged weights written since the last call."""

_BLOCKS_PER_JOB = 64
_BLOCKS_PER_TRIM = 64


class Stopped(Exception):
    """Another thread failed, or the user pressed Ctrl-C."""


@dataclass(frozen=True)
class _Job:
    """Pieces of one parameter, in order."""

    parameter: Parameter
    pieces: Sequence[Piece]


class Merging:
    """Merges a plan's parameters into open files.

    Args:
        base: The base.
        members: By name.
        recipe: The merge.
        layers: Count of the model's layers.
        plan: What to do.
    """

    def __init__(
        self,
        base: ModelFolder,
        members: Mapping[str, Member],
        recipe: MergeRecipe,
        layers: int,
        plan: MergePlan,
    ) -> None:
        self._base = base
        self._members = [members[name] for name in recipe.weights]
        self._recipe = recipe
        self._layers = layers
        self._plan = plan
        self._stop = threading.Event()
        self._blocks = itertools.count(1)
        self._rooms = threading.local()

    def run(self, writers: Mapping[str, TensorFileWriter], progress: Progress | None) -> None:
        """Merge everything.

        Torch works with one thread per parameter meanwhile, which leaves no core waiting for another.

        Args:
            writers: Open file by the name of a parameter in it.
            progress: See :data:`Progress`.

        Raises:
            MergeError: If a model holds NaN or infinite numbers, or the result does.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(self._plan.threads, "merge", initializer=_one_thread) as pool:
                futures = [pool.submit(self._do, job, writers, progress) for job in self._jobs()]
                self._await(futures)
        finally:
            torch.set_num_threads(before)

    def _await(self, futures: Sequence[Future[None]]) -> None:
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            self._stop.set()
            for future in futures:
                future.cancel()
            raise

    def _jobs(self) -> list[_Job]:
        """Largest parameters first, so that no thread begins one when the others are done."""
        split = not (METHODS[self._recipe.method].needs_statistics or self._recipe.base_slerp is not None)
        jobs = []
        for parameter in sorted(self._plan.parameters, key=lambda item: -item.stored.bytes):
            pieces = cut(parameter.stored.shape, self._plan.block)
            step = _BLOCKS_PER_JOB if split or not parameter.members else max(1, len(pieces))
            jobs += [_Job(parameter, pieces[at : at + step]) for at in range(0, len(pieces), step)]
        return jobs

    def _do(self, job: _Job, writers: Mapping[str, TensorFileWriter], progress: Progress | None) -> None:
        stored = job.parameter.stored
        writer = writers[stored.name]
        numbers = self._merged(job) if job.parameter.members else self._copied(job)
        for piece, merged in zip(job.pieces, numbers, strict=True):
            writer.write(stored.name, piece.offset, merged)
            if progress is not None:
                progress(piece.numbers * merged.element_size())

    def _copied(self, job: _Job) -> Iterator[Tensor]:
        stored = job.parameter.stored
        for piece in job.pieces:
            if self._stop.is_set():
                raise Stopped
            numbers = self._base.tensors.read(stored.name, piece)
            if stored.is_float:
                _check(numbers, "The base", stored.name, piece)
            yield numbers

    def _merged(self, job: _Job) -> Iterator[Tensor]:
        stored, key = job.parameter.stored, job.parameter.key
        checked: set[int] = set()

        def blocks() -> Iterator[Block]:
            for piece in job.pieces:
                if self._stop.is_set():
                    raise Stopped
                yield self._block(key, piece, check=piece.offset not in checked)
                checked.add(piece.offset)

        merged = merge_parameter(key, blocks, stored.numbers, self._recipe, self._layers)
        for piece, block in zip(job.pieces, merged, strict=True):
            cast = block.to(FLOATS[stored.dtype])
            if stored.dtype == "F16":  # the only type that cannot hold what float32 can
                _check(cast, "The merged model", stored.name, piece)
            yield cast

    def _block(self, key: str, piece: Piece, *, check: bool) -> Block:
        if next(self._blocks) % _BLOCKS_PER_TRIM == 0:
            give_back()
        name = self._base.names.stored[key]
        room = self._room()
        base = room.copy(self._base.tensors.read(name, piece))
        if check:
            _check(base, "The base", name, piece)
        nothing = torch.zeros((), dtype=torch.float32).expand(base.shape)
        deltas: list[Tensor] = []
        exact: list[Tensor | None] = []
        for member in self._members:
            if member.touches(key):
                delta, own = member.read(key, piece, base, room)
                if check:
                    _check(delta, f"Member {member.name!r}", name, piece)
            else:
                delta, own = nothing, base
            deltas.append(delta)
            exact.append(own)
        return Block(base, deltas, piece.offset, exact)

    def _room(self) -> Room:
        """This thread's memory; its last block is no longer needed when the next one is asked for."""
        room: Room | None = getattr(self._rooms, "room", None)
        if room is None:
            room = self._rooms.room = Room()
        room.clear()
        return room


def _one_thread() -> None:
    torch.set_num_threads(1)


def _check(numbers: Tensor, whose: str, name: str, piece: Piece) -> None:
    # A sum is a fraction of the cost of looking at each number, and is finite only if they are or cancel out
    # of range, which then is looked at.
    if bool(torch.isfinite(numbers.sum(dtype=torch.float32))):
        return
    broken = int((~torch.isfinite(numbers)).sum())
    if broken:
        message = (
            f"{whose} has {broken} of {piece.numbers} numbers NaN or infinite in {name} (shape of the part: "
            f"{tuple(numbers.shape)}, from number {piece.offset}); a model merged with them would give NaN. "
            f"Train it again with a lower learning rate, or leave it out. Nothing was written."
        )
        raise MergeError(message)
