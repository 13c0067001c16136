"""What a merge will do: its parameters, who changes them, and how they are shared out over files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stm_training.merge.stream.folders import ModelFolder
from stm_training.merge.stream.members import Member
from stm_training.merge.stream.memory import memory_limit, numbers_per_block
from stm_training.merge.stream.tensor_files import Stored
from stm_training.merge.stream.writer import shards

SHARD_SIZE = 2_000_000_000
# 1 MB of float32: with a few members the block at hand stays in a core's cache.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Parameter:
    """A tensor of the merged model.

    Attributes:
        stored: Name, shape and type, as the base stores it.
        key: Its name in the bare model: methods know it by that one.
        members: Names of the members that may change it; it is copied where there is none.
    """

    stored: Stored
    key: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class MergePlan:
    """What will be read, computed and written.

    Attributes:
        parameters: All tensors of the merged model.
        files: Weight file -> its tensors.
        threads: How many parameters are merged at once.
        block: Most numbers of a parameter in a thread's hands.
        models: The base and its members.
        read_bytes: Bytes of weights in all folders.
        notes: What is worth saying.
    """

    parameters: Sequence[Parameter]
    files: Mapping[str, Sequence[Stored]]
    threads: int
    block: int
    models: int
    read_bytes: int
    notes: Sequence[str] = ()

    @property
    def write_bytes(self) -> int:
        """Bytes of the merged weights."""
        return sum(item.stored.bytes for item in self.parameters)

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest tensor as stored."""
        return max((item.stored.bytes for item in self.parameters), default=0)

    @property
    def memory_limit(self) -> int:
        """Bytes of anonymous memory above the imports that the merge stays below."""
        return memory_limit(self.models, self.largest_bytes)

    @property
    def merged(self) -> list[Parameter]:
        """The tensors that a member changes."""
        return [item for item in self.parameters if item.members]


def make_plan(
    base: ModelFolder,
    members: Sequence[Member],
    *,
    shard_size: int,
    threads: int | None,
    block: int | None,
    notes: Sequence[str],
) -> MergePlan:
    """Plan a merge of members that fit the base.

    Args:
        base: The base.
        members: Those that take part.
        shard_size: Most bytes of weights in a file.
        threads: How many to use; ``None``: as many as the process may.
        block: Most numbers of a parameter in a thread's hands; ``None``: by the memory there is for them.
        notes: What the checks found worth saying.
    """
    parameters = [
        Parameter(base.tensors.stored[name], key, _touched_by(base, members, name, key))
        for name, key in ((name, _key(base, key)) for key, name in base.names.stored.items())
    ]
    threads = threads or usable_threads()
    tensors = [base.tensors, *(member.tensors for member in members)]
    return MergePlan(
        parameters=parameters,
        files=shards([item.stored for item in parameters], shard_size),
        threads=threads,
        block=block or numbers_per_block(len(members), threads, _BLOCK),
        models=1 + len(members),
        read_bytes=sum(item.bytes for files in tensors for item in files.stored.values()),
        notes=tuple(notes),
    )


def usable_threads() -> int:
    """Processors that this process may use, less where ``OMP_NUM_THREADS`` says so."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return min(count, int(wish)) if wish.isdigit() and int(wish) > 0 else count


def _key(base: ModelFolder, key: str) -> str:
    """A tied head that is stored a second time must stay the embedding, also where numbers are drawn."""
    if key != "lm_head.weight" or not base.config.get("tie_word_embeddings"):
        return key
    head = base.stored(key)
    for other in ("embed_tokens.weight", "wte.weight", "embed_in.weight"):
        embedding = base.stored(other)
        if head and embedding and (head.shape, head.dtype) == (embedding.shape, embedding.dtype):
            return other
    return key


def _touched_by(base: ModelFolder, members: Sequence[Member], name: str, key: str) -> tuple[str, ...]:
    if not base.tensors.stored[name].is_float:
        return ()
    return tuple(member.name for member in members if member.touches(key))
