"""Work in threads: results in order, the first error stops, Ctrl-C leaves slow ones behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from stm_training.synthesize.pool import in_order


def run(work: Callable[[int], int], count: int, workers: int = 4, **options: object) -> list[int]:
    arguments: dict[str, object] = {"done": lambda n: None, "stop": lambda: None, **options}
    return in_order(work, range(count), workers=workers, **arguments)  # type: ignore[arg-type]


def test_results_come_in_the_order_of_the_items_and_each_is_told() -> None:
    told: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.01 if item % 3 == 0 else 0)
        return item * item

    assert run(work, 20, done=told.append) == [n * n for n in range(20)]
    assert told == list(range(1, 21))
    assert run(work, 0) == []


def test_no_more_items_than_workers_are_under_way() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def work(item: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.003)
        with lock:
            now -= 1
        return item

    run(work, 30, workers=3)
    assert most == 3


def test_the_first_error_is_raised_and_no_further_item_is_begun() -> None:
    begun: list[int] = []
    stopped: list[bool] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("three")
        time.sleep(0.01)
        return item

    with pytest.raises(ValueError, match="three"):
        run(work, 500, workers=2, stop=lambda: stopped.append(True))
    assert len(begun) < 100
    assert stopped == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stm-synthesis")]


def test_ctrl_c_does_not_wait_for_an_item_that_hangs() -> None:
    release = threading.Event()

    def work(item: int) -> int:
        if item:
            release.wait(60)
        return item

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(work, 3, done=interrupt, grace=0.05)
    assert not release.is_set()  # it came back although they still hang
    release.set()
