"""Average the checkpoints of one run: smoother than its last one (Izmailov et al. 2018, arXiv 1803.05407)."""

from __future__ import annotations

import re
from pathlib import Path

from stm_retriever.errors import MergeError

_FOLDER = re.compile(r"checkpoint-(\d+)")


def checkpoint_folders(run: Path) -> list[Path]:
    """Checkpoints in a folder (``checkpoint-<step>``), oldest first.

    Raises:
        MergeError: If there is none.
    """
    found = [(int(match[1]), path) for path in run.glob("*") if (match := _FOLDER.fullmatch(path.name))]
    if not found:
        message = (
            f"{str(run)!r} holds no folder checkpoint-<step>, so there is nothing to average. Train with "
            f"save_steps, and point to the folder that holds the checkpoints."
        )
        raise MergeError(message)
    return [path for _, path in sorted(found)]


def checkpoint_weights(count: int, *, decay: float | None = None) -> list[float]:
    """Weights of checkpoints, oldest first; they add up to 1.

    Args:
        count: How many there are.
        decay: ``None``: equal weights. Else an exponential moving average that starts at the oldest
            checkpoint and keeps this share of itself at each later one, at least 0 and below 1.

    Raises:
        MergeError: If there is no checkpoint, or the decay is out of range.
    """
    if count < 1 or (decay is not None and not 0 <= decay < 1):
        message = (
            f"Averaging needs at least one checkpoint and a decay from 0 to below 1, found {count} and "
            f"a decay of {decay}."
        )
        raise MergeError(message)
    if decay is None:
        return [1 / count] * count
    weights = [1.0]
    for _ in range(count - 1):
        weights = [weight * decay for weight in weights] + [1 - decay]
    return weights
