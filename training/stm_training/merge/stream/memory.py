"""Anonymous memory: what a process holds itself, without the pages of files that are mapped into it."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType

_INTERVAL = 0.01  # seconds; a block lives longer than that
_ALLOWANCE = 300_000_000
_BLOCKS = 128_000_000  # bytes for the blocks of all threads together; the rest is for the allocator


def anonymous_bytes(process: str = "self") -> int | None:
    """Anonymous resident memory in bytes, by Linux's count (``RssAnon``); ``None`` elsewhere."""
    try:
        for line in Path(f"/proc/{process}/status").read_text("ascii", "replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc).

    Blocks come and go between small results that stay; without this the gaps add up to a multiple of what is
    in use.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
    return found


class PeakMemory:
    """Watches how far anonymous memory rises above what there was at the start; a context manager.

    Attributes:
        peak: Bytes above the start, ``None`` where the system does not tell.
    """

    def __init__(self) -> None:
        self.peak: int | None = None
        self._start: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        now = anonymous_bytes()
        if now is not None and self._start is not None:
            self.peak = max(self.peak or 0, now - self._start)

    def __enter__(self) -> PeakMemory:
        self._start = anonymous_bytes()
        if self._start is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._start is not None:
            self._thread.join()
            self._look()


def numbers_per_block(members: int, threads: int, largest: int) -> int:
    """How many numbers of a tensor each thread may hold at once.

    Args:
        members: How many models are merged with the base.
        threads: How many work at once.
        largest: Most numbers that pay off: beyond the processor's caches, blocks only get slower.

    Returns:
        At least 1024.
    """
    # Of each member its numbers, its change and what a method keeps of it, as float32; the base, the merged
    # numbers and what the method needs in between.
    copies = 3 * members + 8
    return max(1024, min(largest, _BLOCKS // (4 * copies * threads)))


def memory_limit(models: int, largest_tensor: int) -> int:
    """What a merge promises to stay below, in bytes above the imports.

    Args:
        models: The base and its members.
        largest_tensor: Bytes of the largest tensor as it is stored.
    """
    return (models + 2) * largest_tensor + _ALLOWANCE
