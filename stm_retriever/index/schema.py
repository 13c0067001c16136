"""The tables of ``documents.sqlite``, and the check that a file has these and nothing else."""

from __future__ import annotations

import sqlite3
from functools import cache

from stm_retriever.errors import IndexFolderError, MissingExtraError

# Labels are never given twice (AUTOINCREMENT): a replaced document gets a new one, so that a label always
# means the same text and vector, the log of changes may be replayed from any point on, and the order of
# labels is the order of insertion.
# Each document carries a hash of its fields (does it need encoding again? is the file damaged?), each vector
# a checksum: SQLite itself does not notice a flipped bit inside a value.
# One row of ``attributes`` is one comparable value of one metadata key (stm_retriever.filters).
# FTS5 keeps no text of its own ("external content"); it must be told the old text when a row goes.
TABLES = (
    """CREATE TABLE documents (
    label INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    parent_id TEXT,
    start_offset INTEGER,
    end_offset INTEGER,
    hash BLOB NOT NULL
)""",
    "CREATE INDEX documents_by_parent ON documents (parent_id) WHERE parent_id IS NOT NULL",
    "CREATE TABLE vectors (label INTEGER PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL)",
    """CREATE TABLE changes (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    label INTEGER NOT NULL,
    added INTEGER NOT NULL
)""",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE keys (key INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE)",
    """CREATE TABLE attributes (
    key INTEGER NOT NULL,
    type INTEGER NOT NULL,
    value NOT NULL,
    label INTEGER NOT NULL,
    PRIMARY KEY (key, type, value, label)
) WITHOUT ROWID""",
    """CREATE VIRTUAL TABLE words USING fts5 (
    text, content = 'documents', content_rowid = 'label', tokenize = 'porter unicode61 remove_diacritics 2'
)""",
)
_SHADOWS = frozenset({"words_data", "words_idx", "words_docsize", "words_config"})
_OWN = "sqlite_"  # names that SQLite gives itself
_LISTING = "SELECT type, name, sql FROM sqlite_master"


def create_tables(connection: sqlite3.Connection, *, index_id: str) -> None:
    """Make every table in an empty file, in one transaction.

    Raises:
        MissingExtraError: If this Python's SQLite was built without FTS5.
    """
    connection.execute("BEGIN")
    try:
        for statement in TABLES:
            connection.execute(statement)
        connection.execute("INSERT INTO facts VALUES ('index_id', ?)", (index_id,))
    except sqlite3.OperationalError as error:
        connection.execute("ROLLBACK")
        raise _without_fts5(error) from error
    connection.execute("COMMIT")


def check_tables(connection: sqlite3.Connection, name: str) -> None:
    """Refuse a file that holds other tables, or triggers and views, which SQL in the file could hide in.

    Raises:
        IndexFolderError: If a table is missing, differs, or is one too many.
        MissingExtraError: If this Python's SQLite was built without FTS5.
    """
    found = _listed(connection)
    expected = _expected()
    if found != expected:
        odd = sorted(name for (_, name), _ in found.items() ^ expected.items())
        raise IndexFolderError(
            f"{name!r} does not hold the tables of an index (first difference: {odd[0]!r}), so it is "
            "another program's file, damaged, or of another version. Restore it from a backup, or index the "
            "documents again; an index of an older version: stm-train upgrade FOLDER"
        )


def _listed(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    listed: dict[tuple[str, str], str] = {}
    for kind, name, sql in connection.execute(_LISTING):
        if kind in ("table", "index") and (str(name).startswith(_OWN) or name in _SHADOWS):
            continue
        listed[str(kind), str(name)] = str(sql)
    return listed


@cache
def _expected() -> dict[tuple[str, str], str]:
    memory = sqlite3.connect(":memory:", isolation_level=None)
    try:
        create_tables(memory, index_id="")
        return _listed(memory)
    finally:
        memory.close()


def _without_fts5(error: sqlite3.OperationalError) -> Exception:
    if "no such module: fts5" not in str(error):
        return error
    return MissingExtraError(
        f"The SQLite of this Python ({sqlite3.sqlite_version}) was built without FTS5, and an index keeps "
        "its words in it. Take a Python whose SQLite has it (those of python.org, conda, uv, Debian "
        "and Ubuntu do)."
    )
