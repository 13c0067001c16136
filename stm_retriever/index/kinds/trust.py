"""Which snapshot files FAISS may open in this process: those that this user's programs wrote or tried out.

FAISS checks little of what it reads, so a crafted file can end the process or read beyond its memory, and
whoever crafts it can also write the checksum that lies beside it. Therefore the hashes of files that were
written here are remembered in the user's own state folder, where a stranger's folder cannot reach. Any other
file is first opened and searched in a child process; if that ends badly, the documents are indexed anew.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

_REMEMBERED = 1000  # files; the oldest are forgotten, and tried out again
_SECONDS = 30
_BYTES_PER_SECOND = 20_000_000


def state_folder() -> Path:
    """Where notes of this user's programs are kept: ``XDG_STATE_HOME``, else the system's place."""
    given = os.environ.get("XDG_STATE_HOME")
    if given:
        base = Path(given)
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library/Application Support"
    else:
        base = Path.home() / ".local/state"
    return base / "stm-retriever/snapshots"


def remember(sha256: str) -> None:
    """Note that a file with this hash was written here or tried out; where that fails, nothing is lost."""
    try:
        folder = state_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / _name(sha256)).touch(mode=0o600)
        known = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in known[: max(0, len(known) - _REMEMBERED)]:
            path.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        logger.debug("The snapshot %s is not remembered: %s", sha256, error)


def is_known(sha256: str) -> bool:
    """Tell whether :func:`remember` was called for a file with this hash."""
    try:
        return (state_folder() / _name(sha256)).is_file()
    except (OSError, RuntimeError):
        return False


def try_out(path: Path, kind: str, dimension: int) -> None:
    """Open and search a snapshot in a child process.

    Raises:
        ValueError: If that ends badly, or no child can be started; says how.
    """
    command = [sys.executable, "-P", "-m", "stm_retriever.index.kinds.probe", str(path), kind, str(dimension)]
    try:
        limit = _SECONDS + path.stat().st_size / _BYTES_PER_SECOND
        child = subprocess.run(  # noqa: S603 - our own interpreter and module, and no shell
            command, capture_output=True, timeout=limit, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"it was not written here, and could not be tried out: {error}") from error
    if child.returncode != 0:
        words = child.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(
            f"it was not written here, and a process that tried it out ended with {child.returncode}"
            + (f": {words[-1]:.200}" if words else "")
        )


def _name(sha256: str) -> str:
    digest = sha256.removeprefix("sha256:")
    if not (digest.isalnum() and digest.isascii()):
        raise OSError(f"{sha256!r:.80} is no hash")
    return digest
