"""Encode in several processes of one machine, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from types import TracebackType
from typing import cast

import numpy as np

from stm_retriever.embedder import Embedder
from stm_retriever.encoding.precision import Vectors, stored_shape
from stm_retriever.encoding.progress import Progress, Reporter
from stm_retriever.encoding.windows import warn_truncated, windows
from stm_retriever.errors import ConfigError, StmError
from stm_retriever.onnx_session import usable_cpus
from stm_retriever.tokenization import check_texts
from stm_retriever.types import Role

_CHUNK = 256  # texts per task: large enough to sort by length, small enough to stop soon
_AHEAD = 3  # tasks per process that wait or run: memory stays flat

_own: list[Embedder] = []


class EmbedderPool:
    """An embedder in several processes. A context manager.

    Processes are spawned, so nothing of the parent's threads or sessions is shared; each opens the folder
    itself. In a script the caller's main module needs the usual ``if __name__ == "__main__":``. One process
    uses all CPUs already; more of them pay where Python or tokenising is the limit, and on machines with
    several memory nodes.

    Args:
        embedder: What each process loads; anything that it was loaded with holds in each.
        processes: How many; None for one per two usable CPUs.
        threads: CPU threads of each; None divides the usable ones.

    Raises:
        ConfigError: If ``processes`` or ``threads`` is below 1.
    """

    def __init__(
        self, embedder: Embedder, *, processes: int | None = None, threads: int | None = None
    ) -> None:
        self._processes = processes if processes is not None else max(1, usable_cpus() // 2)
        if self._processes < 1:
            raise ConfigError(f"processes={processes}: a pool needs at least one. Pass 1 or more.")
        if threads is not None and threads < 1:
            raise ConfigError(f"threads={threads}: a process needs at least one. Pass 1 or more.")
        self._embedder = embedder
        each = threads or max(1, usable_cpus() // self._processes)
        self._pool = ProcessPoolExecutor(
            self._processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_open_here,
            initargs=(embedder.with_threads(each),),
        )

    def __enter__(self) -> EmbedderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes once what they are at is done; what waits is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def encode_query(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        """As :meth:`stm_retriever.Embedder.encode_query`."""
        return self._encode(texts, "query", show_progress)

    def encode_document(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        """As :meth:`stm_retriever.Embedder.encode_document`."""
        return self._encode(texts, "document", show_progress)

    def encode_query_stream(
        self, texts: Iterable[str], *, show_progress: Progress = False, window: int = _CHUNK
    ) -> Iterator[Vectors]:
        """As :meth:`stm_retriever.Embedder.encode_query_stream`."""
        return self._stream(texts, "query", show_progress, window, None)

    def encode_document_stream(
        self, texts: Iterable[str], *, show_progress: Progress = False, window: int = _CHUNK
    ) -> Iterator[Vectors]:
        """As :meth:`stm_retriever.Embedder.encode_document_stream`, a window per task."""
        return self._stream(texts, "document", show_progress, window, None)

    def _encode(self, texts: Sequence[str], role: Role, show_progress: Progress) -> Vectors:
        checked = check_texts(texts, role)
        places = {text: index for index, text in enumerate(dict.fromkeys(checked))}
        found = list(self._stream(places, role, show_progress, _CHUNK, len(places)))
        if not found:
            shape, dtype = stored_shape(0, self._embedder.dimension, self._embedder.precision)
            return cast(Vectors, np.empty(shape, dtype=dtype))
        return np.concatenate(found)[[places[text] for text in checked]]

    def _stream(
        self, texts: Iterable[str], role: Role, show_progress: Progress, window: int, total: int | None
    ) -> Iterator[Vectors]:
        source = windows(texts, role, window)
        waiting: deque[Future[tuple[Vectors, int]]] = deque()
        cut = done = 0
        try:
            with Reporter(show_progress, total) as reporter:
                for piece in source:
                    waiting.append(self._pool.submit(_encode_here, piece, role))
                    if len(waiting) < _AHEAD * self._processes:
                        continue
                    vectors, longer = waiting.popleft().result()
                    cut, done = cut + longer, done + len(vectors)
                    reporter.add(len(vectors))
                    yield vectors
                while waiting:
                    vectors, longer = waiting.popleft().result()
                    cut, done = cut + longer, done + len(vectors)
                    reporter.add(len(vectors))
                    yield vectors
        except BrokenProcessPool as error:
            raise StmError(
                f"One of the {self._processes} encoding processes died without a word, most often because "
                "the system killed it for its memory. What was handed over before is complete. Take fewer "
                "processes, or a smaller variant."
            ) from error
        finally:
            for future in waiting:
                future.cancel()
        warn_truncated(cut, done, role, self._embedder.name, self._embedder.max_length)


def _open_here(embedder: Embedder) -> None:
    """In a new process: Ctrl-C is the parent's to handle, and a process without a parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _own[:] = [embedder]


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_here(texts: list[str], role: Role) -> tuple[Vectors, int]:
    return _own[0].encode_counted(texts, role)
