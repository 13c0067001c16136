"""Which processes of a search are alive: each holds a lock that the system takes back when it dies."""

from __future__ import annotations

import uuid
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout


class Owner:
    """This process's part in a search, from entering to leaving the context.

    A process id can be given to another process, and a heartbeat must be waited for; a lock is neither.

    Args:
        folder: Where the locks of all processes of the search lie.

    Attributes:
        name: Identifies this process in the trials that it runs.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.name = uuid.uuid4().hex
        self._lock = FileLock(self._path(self.name))

    def __enter__(self) -> Owner:
        self._lock.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()
        self._path(self.name).unlink(missing_ok=True)

    def is_alive(self, name: str | None) -> bool:
        """Whether the process of that name still runs."""
        if name == self.name:
            return True
        if name is None or not self._path(name).exists():
            return False
        other = FileLock(self._path(name))
        try:
            other.acquire(timeout=0)
        except Timeout:
            return True
        other.release()
        self._path(name).unlink(missing_ok=True)
        return False

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.lock"
