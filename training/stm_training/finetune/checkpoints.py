"""Checkpoints of one training: which inputs they are of, and which of them are whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stm_training.data.records import Pair
from stm_training.finetune.backbone import BackboneSpec
from stm_training.finetune.settings import TrainSettings

WEIGHTS = "adapter_state.safetensors"
"""A checkpoint's trained weights, by parameter name."""


def inputs_key(
    spec: BackboneSpec, pairs: Sequence[Pair], settings: TrainSettings, seed: int, anchor_texts: Sequence[str]
) -> str:
    """A hash of all that decides a training's result."""
    digest = hashlib.sha256()
    head = {**asdict(spec), "prompts": spec.prompts and spec.prompts.model_dump()}
    digest.update(json.dumps([head, settings.model_dump(), seed], sort_keys=True).encode())
    for pair in pairs:
        digest.update(json.dumps(asdict(pair), sort_keys=True).encode() + b"\n")
    for text in anchor_texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()


def last_checkpoint(folder: Path, key: str) -> Path | None:
    """The newest whole checkpoint of the same inputs; checkpoints of other inputs are removed.

    Args:
        folder: Of all checkpoints of a training; made if it is not there.
        key: See :func:`inputs_key`.
    """
    note = folder / "inputs.json"
    if note.is_file() and note.read_text(encoding="utf-8") == json.dumps(key):
        return next(reversed(whole_checkpoints(folder)), None)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    note.write_text(json.dumps(key), encoding="utf-8")
    return None


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in the order of their steps, without those that were being written at a kill."""
    found = [path for path in folder.glob("checkpoint-*") if _is_json(path / "trainer_state.json")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _is_json(path: Path) -> bool:
    # trainer_state.json is the last file of a checkpoint to be written.
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
