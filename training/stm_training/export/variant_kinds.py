"""The ONNX files that a retriever folder may hold beside fp32: what each is, and what it may lose.

The limits come from all-MiniLM-L6-v2 on scifact and disease_ontology (300 queries, 600 passages) and from
random tiny models of every family. Largest loss of nDCG@10 seen: w8 0.2 points, int8 0.4, w4 1.1. Smallest
cosine to fp32 on those texts: w8 0.998, int8 0.988, w4 0.94; on random ids: w8 0.996, int8 0.958, w4 0.27.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stm_retriever.errors import ConfigError


@dataclass(frozen=True, slots=True)
class VariantKind:
    """One kind of file.

    Attributes:
        name: What ``variant=`` takes.
        file: Where it lies in a folder.
        precision: Of weights and arithmetic, in words.
        min_cosine: Smallest cosine to the fp32 vector that the gate lets pass, of any input tried.
        max_loss: Most nDCG@10, in points, that any development set may lose.
        max_spread: How far a coordinate may move with the batch mates, padded on the right as the runtime
            does; None where the arithmetic depends on them, so that the runtime encodes one text at a time.
    """

    name: str
    file: str
    precision: str
    min_cosine: float
    max_loss: float
    max_spread: float | None

    @property
    def lossy(self) -> bool:
        """Whether its vectors are others than fp32's, so that it needs goldens of its own."""
        return self.name != "fp32"


FP32 = "fp32"
_LISTED = (
    VariantKind(FP32, "onnx/model.onnx", "float32", 0.99999, 0.0, 1e-4),
    VariantKind(
        "fp16",
        "onnx/model_fp16.onnx",
        "float16 weights and arithmetic, for GPUs; norms, rotary angles and pooling float32",
        min_cosine=0.999,
        max_loss=0.3,
        max_spread=1e-3,
    ),
    VariantKind(
        "w8",
        "onnx/model_w8.onnx",
        "8-bit weights in blocks, 8-bit embedding rows; activations rounded per token",
        min_cosine=0.98,
        max_loss=0.5,
        max_spread=1e-4,
    ),
    VariantKind(
        "int8",
        "onnx/model_int8.onnx",
        "8-bit weights per channel, 8-bit embedding rows; activations rounded per text, at run time",
        min_cosine=0.95,
        max_loss=1.0,
        max_spread=None,
    ),
    VariantKind(
        "w4",
        "onnx/model_w4.onnx",
        "4-bit weights in blocks of 32, 8-bit embedding rows; activations rounded per token",
        min_cosine=0.85,
        max_loss=2.0,
        max_spread=1e-4,
    ),
)
KINDS = {kind.name: kind for kind in _LISTED}
VARIANTS = tuple(KINDS)
"""What this version writes."""


def check_variants(variants: Sequence[str]) -> None:
    """Raises ConfigError unless this version can write all of these ONNX files."""
    unknown = [variant for variant in variants if variant not in KINDS]
    if unknown or not variants or isinstance(variants, str):
        raise ConfigError(
            f"variants={variants if isinstance(variants, str) else list(variants)!r}: a list of "
            f"{', '.join(VARIANTS)} is needed (on the command line: --variants fp32,w8). What each is: "
            + "; ".join(f"{kind.name}: {kind.precision}" for kind in _LISTED)
            + "."
        )
