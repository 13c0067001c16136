"""Work on many items at once, give the results in order, and let go of slow ones when the user stops."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

GRACE = 5.0
"""Seconds that answers under way get after Ctrl-C; what comes later is lost and asked again."""


@dataclass(frozen=True)
class _Ended(Generic[Result]):
    place: int
    result: Result | None = None
    error: BaseException | None = None


def in_order(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    done: Callable[[int], None],
    stop: Callable[[], None],
    grace: float = GRACE,
) -> list[Result]:
    """Work on items in threads.

    Args:
        work: Called in several threads at once.
        items: What to work on; a thread takes the next one when it is free.
        workers: How many threads.
        done: Called in this thread after each item, with the number done so far.
        stop: Called once before this function raises, so that running items end soon.
        grace: Seconds that running items get after Ctrl-C. (After an error they are waited for.)

    Returns:
        Results in the order of the items.

    Raises:
        BaseException: The first that any item raised; no further item is begun.
    """
    ended: queue.SimpleQueue[_Ended[Result]] = queue.SimpleQueue()
    stopped = threading.Event()
    places = iter(range(len(items)))
    lock = threading.Lock()

    def run() -> None:
        for place in _taken(places, lock):
            if stopped.is_set():
                return
            try:
                ended.put(_Ended(place, work(items[place])))
            except BaseException as error:  # raised again in the calling thread
                ended.put(_Ended(place, error=error))

    # Daemons: a thread that hangs in a request must not keep a stopped program alive.
    threads = [
        threading.Thread(target=run, name=f"stm-synthesis-{n}", daemon=True)
        for n in range(max(1, min(workers, len(items))))
    ]
    results: dict[int, Result] = {}
    try:
        for thread in threads:
            thread.start()
        for count in range(1, len(items) + 1):
            one = ended.get()
            if one.error is not None:
                raise one.error
            results[one.place] = one.result  # type: ignore[assignment]
            done(count)
    except BaseException as error:
        stopped.set()
        stop()
        _wait_for(threads, None if isinstance(error, Exception) else grace)
        raise
    return [results[place] for place in range(len(items))]


def _wait_for(threads: Sequence[threading.Thread], seconds: float | None) -> None:
    """Wait for the threads that were started, together at most so many seconds."""
    until = None if seconds is None else time.monotonic() + seconds
    for thread in threads:
        if thread.ident is not None:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))


def _taken(places: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    while True:
        with lock:
            place = next(places, None)
        if place is None:
            return
        yield place
