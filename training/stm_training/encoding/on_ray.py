"""Encode shards with Ray Data, on one machine or on a cluster that shares the output folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stm_retriever import Embedder
from stm_retriever.errors import StmError, require
from stm_retriever.types import Role
from stm_training.data.records import Passage
from stm_training.encoding.shards import Encoding, shard_path, write_shard


class ShardEncoder:
    """An actor: holds an embedder and writes the shards that it is given.

    Args:
        embedder: Loaded by its path when first used.
        folder: Where shards go; every machine of the cluster must see it.
        role: Whose prompt the texts get.
    """

    def __init__(self, embedder: Embedder, folder: str, role: Role) -> None:
        self._encode = embedder.encode_query if role == "query" else embedder.encode_document
        self._folder = Path(folder)

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Encode and write a batch of shards; returns their numbers."""
        for shard, ids, texts in zip(batch["shard"], batch["ids"], batch["texts"], strict=True):
            write_shard(shard_path(self._folder, int(shard)), list(ids), self._encode(list(texts)))
        return {"shard": batch["shard"]}


def encode_on_ray(
    folder: Path,
    encoding: Encoding,
    pending: Sequence[int],
    passages: Sequence[Passage],
    embedder: Embedder,
    *,
    role: Role,
    actors: int = 1,
    threads: int = 1,
) -> None:
    """Write the shards that are missing, each by one of some actors.

    A cluster that is running (``ray start``, ``RAY_ADDRESS``) is used; else Ray starts on this machine and
    ends with the call. The model's folder and ``folder`` must be at the same paths on every machine.

    Args:
        folder: Where they go.
        encoding: What they hold.
        pending: Their numbers.
        passages: All documents of the input.
        embedder: Encodes; each actor loads it anew.
        role: Whose prompt the texts get.
        actors: How many work at a time.
        threads: CPUs of each.

    Raises:
        MissingExtraError: If Ray is not installed.
        StmError: If an actor fails; finished shards stay.
    """
    if not pending:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report how it is used
    ray: Any = require("ray", extra="ray", purpose="--engine ray")
    data: Any = require("ray.data", extra="ray", purpose="--engine ray")
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        _run(data, folder, encoding, pending, passages, embedder, role, actors, threads)
    except ray.exceptions.RayError as error:
        raise StmError(
            f"Ray did not finish: {error!s:.1000}. Shards that were finished stay in {str(folder)!r}; the "
            "same command goes on from there."
        ) from error
    finally:
        if started:
            ray.shutdown()


def _run(
    data: Any,
    folder: Path,
    encoding: Encoding,
    pending: Sequence[int],
    passages: Sequence[Passage],
    embedder: Embedder,
    role: Role,
    actors: int,
    threads: int,
) -> None:
    data.DataContext.get_current().enable_progress_bars = False
    rows = [
        {
            "shard": shard,
            "ids": [passage.id for passage in passages[encoding.rows(shard)]],
            "texts": [passage.content for passage in passages[encoding.rows(shard)]],
        }
        for shard in pending
    ]
    done = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardEncoder,
        batch_size=1,
        concurrency=min(actors, len(pending)),
        num_cpus=threads,
        fn_constructor_kwargs={
            "embedder": embedder.with_threads(threads),
            "folder": str(folder.absolute()),
            "role": role,
        },
    )
    written = {int(row["shard"]) for row in done.iter_rows()}
    missing = sorted(set(pending) - written)
    if missing:
        raise StmError(
            f"Ray reported no result for {len(missing)} shards, the first number {missing[0]}. Run the same "
            "command again; it goes on from there."
        )
