"""How long the client waits."""

from __future__ import annotations

import pytest

from stm_training.llm.retrying import Pause, backoff_seconds, retry_after_seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_the_server_is_understood(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, now=10) == seconds


def test_the_back_off_doubles_up_to_its_limit() -> None:
    waits = [backoff_seconds(attempt, base=1, longest=10) for attempt in range(8)]
    for attempt, wait in enumerate(waits):
        assert min(10, 2**attempt) / 2 <= wait <= min(10, 2**attempt)


def test_a_pause_holds_until_the_latest_end_for_everybody() -> None:
    now = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pause = Pause(sleep, lambda: now[0])
    pause.wait()
    pause.extend(5)
    pause.extend(2)
    pause.wait()
    pause.wait()
    assert slept == [5]
