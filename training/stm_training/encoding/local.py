"""Encode shards on this machine, in this process or in several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from stm_retriever import Embedder
from stm_retriever.types import Role
from stm_training.data.records import Passage
from stm_training.encoding.shards import Encoding, shard_path, write_shard


def encode_locally(
    folder: Path,
    encoding: Encoding,
    pending: Sequence[int],
    passages: Sequence[Passage],
    embedder: Embedder,
    *,
    role: Role,
    processes: int = 1,
    threads: int | None = None,
    quiet: bool = False,
) -> None:
    """Write the shards that are missing, one after the other; a kill costs the shard it is at.

    Args:
        folder: Where they go.
        encoding: What they hold.
        pending: Their numbers.
        passages: All documents of the input.
        embedder: Encodes.
        role: Whose prompt the texts get.
        processes: More than 1 for an :class:`~stm_retriever.encoding.pool.EmbedderPool`.
        threads: CPU threads of each of several processes; None divides those that there are.
        quiet: Show no bar.
    """
    from tqdm import tqdm

    total = sum(len(passages[encoding.rows(shard)]) for shard in pending)
    with ExitStack() as stack:
        if processes > 1:
            from stm_retriever.encoding.pool import EmbedderPool

            pool = stack.enter_context(EmbedderPool(embedder, processes=processes, threads=threads))
            encode = pool.encode_query if role == "query" else pool.encode_document
        else:
            encode = embedder.encode_query if role == "query" else embedder.encode_document
        bar = stack.enter_context(tqdm(total=total, unit="text", desc="encoding", disable=quiet or None))
        for shard in pending:
            rows = passages[encoding.rows(shard)]
            done = 0

            def tell(now: int, _total: int) -> None:
                nonlocal done
                bar.update(now - done)
                done = now

            vectors = encode([passage.content for passage in rows], show_progress=tell)
            write_shard(shard_path(folder, shard), [passage.id for passage in rows], vectors)
            bar.update(len(rows) - done)  # equal texts are encoded once
