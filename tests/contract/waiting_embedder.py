"""An embedder that can only finish if the event loop goes on while it works."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stm_retriever import Embedder
from stm_retriever.embedder import Progress, Vectors
from stm_retriever.folder import read_manifest

T = TypeVar("T")


class WaitingEmbedder(Embedder):
    """Encodes once ``ticked`` is set; gives up waiting after some seconds, which the test then sees."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_manifest(path), threads=1)
        self.at_work = threading.Event()
        self.ticked = threading.Event()
        self.gave_up = False

    def encode_query(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        self._wait()
        return super().encode_query(texts, show_progress=show_progress)

    def encode_document(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        self._wait()
        return super().encode_document(texts, show_progress=show_progress)

    def _wait(self) -> None:
        self.at_work.set()
        self.gave_up = not self.ticked.wait(timeout=10) or self.gave_up


async def finishes_beside_a_heartbeat(embedder: WaitingEmbedder, work: Awaitable[T]) -> T:
    """Await the work while a heartbeat ticks, and assert that it ticked while the embedder was at work."""

    async def heartbeat() -> None:
        while not embedder.at_work.is_set():  # noqa: ASYNC110  (another thread sets it)
            await asyncio.sleep(0.001)
        for _ in range(3):
            await asyncio.sleep(0)
        embedder.ticked.set()

    beating: asyncio.Task[Any] = asyncio.create_task(heartbeat())
    result = await work
    await beating
    assert not embedder.gave_up, "the event loop stood still while the embedder worked"
    return result
