"""The checksum of a snapshot: SHA-256, of a large file by blocks so that several threads share the work.

SHA-256 and not a faster sum, because a file that this user's programs wrote is known by it: see
:mod:`.kinds.trust`.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from stm_retriever.folder import sha256_file

BLOCK_BYTES = 8 << 20
_AT_ONCE = 256 << 10  # bytes read and hashed together: what stays in the processor's cache
_THREADS = 4


def block_size(path: Path) -> int | None:
    """Return the blocks' size for a file that is to be saved; None where one hash of the whole is as fast."""
    return BLOCK_BYTES if path.stat().st_size > 2 * BLOCK_BYTES else None


def digest_of(path: Path, block_bytes: int | None = None) -> str:
    """Hash a file.

    Args:
        path: The file.
        block_bytes: None for the SHA-256 of the file; else that of its size and of the SHA-256 of each block
            of so many bytes, the last one shorter.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    if block_bytes is None:
        return sha256_file(path)
    size = path.stat().st_size
    starts = range(0, size, block_bytes)
    # hashlib lets other threads run meanwhile.
    with ThreadPoolExecutor(max_workers=max(1, min(os.cpu_count() or 1, _THREADS, len(starts)))) as pool:
        blocks = pool.map(_block, repeat(path), starts, repeat(block_bytes))
        return hashlib.sha256(b"%d:" % size + b"".join(blocks)).hexdigest()


def _block(path: Path, start: int, length: int) -> bytes:
    """The SHA-256 of a stretch of a file, as far as it goes."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_AT_ONCE))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while length > 0 and (count := file.readinto(buffer[: min(length, _AT_ONCE)])):
            digest.update(buffer[:count])
            length -= count
    return digest.digest()
