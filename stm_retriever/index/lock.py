"""One writer per index folder: a lock on a file, which the system frees when its holder dies."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import IO

from stm_retriever.errors import IndexFolderError

LOCK_NAME = "writer.lock"


class WriterLock:
    """Held from the first write until :meth:`release`; also keeps out a second writer in this process."""

    def __init__(self, folder: Path, name: str = LOCK_NAME) -> None:
        self._path = folder / name
        self._file: IO[bytes] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self) -> None:
        """Take the lock, or keep it.

        Raises:
            IndexFolderError: If another writer holds it, or the folder cannot be written.
        """
        if self._file is not None:
            return
        try:
            file = self._path.open("a+b")
        except OSError as error:
            raise IndexFolderError(
                f"{str(self._path.parent)!r} cannot be written ({error}), so nothing can be added or "
                "deleted. Make the folder writable for this user, or only search."
            ) from error
        try:
            _lock(file)
        except OSError as error:
            holder = self._holder()
            file.close()
            raise IndexFolderError(
                f"{str(self._path.parent)!r} is being written by {holder}; two writers would overwrite each "
                "other's documents. Wait until it closes the index, or send the documents through it; "
                "searching is possible meanwhile."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the lock back; a no-op without it."""
        if self._file is not None:
            self._file.close()  # closing frees it
            self._file = None

    def _holder(self) -> str:
        try:
            return self._path.read_text("utf-8", "replace")[:200] or "another writer"
        except OSError:
            return "another writer"


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        file.seek(1 << 20)  # a byte far behind the text, which others may then still read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
