"""SQLite connections as this project uses them: durable, distrustful of the file, with typed errors."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stm_retriever.errors import IndexFolderError, StmError
from stm_retriever.index.schema import check_tables

# FULL: a commit is on the disk before it is acknowledged. trusted_schema and cell_size_check are for files
# that were damaged or made by others. mmap_size, the most that SQLite takes: pages are read where the system
# keeps them, which takes half as long as copying them; writing goes the usual way.
_PRAGMAS = (
    "synchronous=FULL",
    "fullfsync=ON",
    "checkpoint_fullfsync=ON",
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "mmap_size=2147418112",
)


# What Python raises when a value read from the file has another type, size or encoding than was written.
_UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)


def first_connection(path: Path) -> tuple[sqlite3.Connection, str]:
    """Open a store's file and check that it holds the tables of an index.

    Returns:
        The connection, and the options that further ones need.

    Raises:
        IndexFolderError: If the file is missing or holds something else.
        sqlite3.Error: If SQLite cannot read it.
    """
    if not os.path.isfile(path):  # False too for a name that no file system takes
        raise IndexFolderError(
            f"{str(path)!r} is missing, and with it all documents. Restore it from a backup, or index "
            "the documents again."
        )
    try:
        return _checked(path, ""), ""
    except sqlite3.OperationalError:
        # A folder that may only be read, as in a container image, cannot hold SQLite's shared-memory file.
        # Reading the main file alone is right only if no write-ahead log is left beside it.
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size > 0:
            raise
        return _checked(path, "&immutable=1"), "&immutable=1"


def distrust(connection: sqlite3.Connection) -> None:
    """Set what every connection has: durable commits, and no trust in what the file holds."""
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def connect(path: Path, options: str) -> sqlite3.Connection:
    """Open one more connection."""
    return _open(path, options)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, with the way out, and those of values that were never written so."""
    try:
        yield
    except StmError:
        raise
    except sqlite3.Error as error:
        raise typed(path, error) from error
    except _UNREADABLE as error:
        raise IndexFolderError(
            f"{str(path)!r} holds what no index has written ({type(error).__name__}: {error!s:.200}); the "
            "file is damaged or was tampered with. Restore it from a backup, or index the documents again."
        ) from error


def typed(path: Path, error: sqlite3.Error) -> IndexFolderError:
    """One of SQLite's errors as one of ours."""
    return IndexFolderError(
        f"{str(path)!r}: SQLite says {error!s:.200}. What was acknowledged before is kept, "
        f"this call changed nothing. {_remedy(str(error))}"
    )


def _checked(path: Path, options: str) -> sqlite3.Connection:
    connection = _open(path, options)
    try:
        check_tables(connection, str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def _open(path: Path, options: str) -> sqlite3.Connection:
    # mode=rw: a file that is gone must not come back empty.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw{options}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=30.0,
    )
    try:
        distrust(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _remedy(message: str) -> str:
    if "full" in message or "disk I/O" in message:
        return "Free disk space and call again."
    if "readonly" in message or "unable to open" in message:
        return "Make the folder and its files writable for this user."
    if "locked" in message:
        return "Another program holds the file; close it and call again."
    return "If it stays, the file is damaged: restore it from a backup, or index the documents again."
