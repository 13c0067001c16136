"""Passage vectors that outlive a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stm_training.finetune.backbone import Backbone
from stm_training.finetune.encode import encode_texts
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.scoring import Vectors
from stm_training.pipeline.stages import content_digest


def kept_documents(
    backbone: Backbone,
    problem: Problem,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Vectors:
    """Vectors (m, d) of a problem's passages, encoded at the first call and read at later ones.

    The file's name holds a hash of the model's files, its settings and the passages.

    Args:
        backbone: The model as it was loaded from its folder.
        problem: Gives the passages.
        folder: An existing folder.
        progress: Called with passages done and their total.

    Returns:
        The vectors, in the order of the passages.
    """
    settings = (backbone.pooling, backbone.attention, backbone.max_length, backbone.prompts.document)
    digest = hashlib.sha256(repr((content_digest(backbone.path), settings)).encode())
    for passage in problem.passages:
        digest.update(repr((passage.id, passage.content)).encode("utf-8", "surrogatepass"))
    path = folder / f"documents-{digest.hexdigest()[:16]}.npy"
    if path.exists():
        vectors: Vectors = np.load(path, allow_pickle=False)
        return vectors
    texts = [passage.content for passage in problem.passages]
    vectors = encode_texts(backbone, texts, "document", progress=progress)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, vectors)
    partial.replace(path)
    return vectors
