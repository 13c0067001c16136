"""How long to wait before asking again."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Callable, Mapping


def retry_after_seconds(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds that a server asks to wait, from ``retry-after-ms`` or ``Retry-After`` (seconds or a date).

    Args:
        headers: Case-insensitive mapping, or one with lower-case names.
        now: Unix time; the clock's if ``None``.

    Returns:
        Seconds, at least 0, or ``None`` if the server does not say.
    """
    milliseconds = headers.get("retry-after-ms")
    value = headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(0.0, float(milliseconds) / 1000)
        if value is None:
            return None
        return max(0.0, float(value))
    except ValueError:
        parsed = email.utils.parsedate_tz(value or "")
        if parsed is None:
            return None
        return max(0.0, email.utils.mktime_tz(parsed) - (time.time() if now is None else now))


def backoff_seconds(attempt: int, *, base: float, longest: float) -> float:
    """Exponential back-off with jitter: half to all of ``base * 2**attempt`` seconds, at most ``longest``."""
    full = min(longest, base * 2.0 ** min(attempt, 30))
    return full * random.uniform(0.5, 1.0)


class Pause:
    """A pause that all threads keep: one refused for being too fast speaks for the others.

    Args:
        sleep: Waits so many seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._until = 0.0

    def extend(self, seconds: float) -> None:
        """Let nobody ask for so many seconds from now."""
        with self._lock:
            self._until = max(self._until, self._clock() + seconds)

    def wait(self) -> None:
        """Wait until the pause is over."""
        while True:
            with self._lock:
                left = self._until - self._clock()
            if left <= 0:
                return
            self._sleep(left)

    def sleep(self, seconds: float) -> None:
        """Wait alone."""
        self._sleep(seconds)
