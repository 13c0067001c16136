"""Checks of what a folder's ONNX files give: the recorded vectors, variant by variant."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stm_retriever.cpu_features import cpu_features
from stm_retriever.embedder import Embedder
from stm_retriever.errors import ArtifactMismatchError, StmError
from stm_retriever.folder import Manifest, VectorGolden
from stm_training.export.findings import COPY_AGAIN, Finding, ok, problem, warning
from stm_training.export.machine import installed_version
from stm_training.export.variant_kinds import FP32
from stm_training.export.variant_words import PARITY_NAME

# Another CPU rounds differently in the last bits; a wrong prompt or pooling differs in the first digit.
VECTOR_TOLERANCE = 1e-4
# Of the smaller variants, whose rounded activations may fall on the other side: 8-bit sums that saturate on
# a CPU without VNNI go far below.
MIN_COSINE = 0.999


def check_vectors(folder: Path, manifest: Manifest) -> list[Finding]:
    """Encodes the recorded texts with each variant that is whole."""
    if installed_version("onnxruntime") is None and installed_version("onnxruntime-gpu") is None:
        return []  # said already
    findings: list[Finding] = []
    if FP32 not in manifest.variants and manifest.variants:
        findings.append(
            warning(
                f"the folder was written without fp32: name a variant wherever it is loaded "
                f"({', '.join(manifest.variants)}); programs that look for onnx/model.onnx do not find it.",
                "export it with fp32: stm-train export FOLDER --out NEW_FOLDER",
            )
        )
    for name in manifest.variants:
        findings.append(_check_variant(folder, manifest, name))
    return findings


def _check_variant(folder: Path, manifest: Manifest, name: str) -> Finding:
    goldens = manifest.goldens_of(name)
    if not goldens:
        return warning(
            f"variant {name}: no vectors were recorded, so it cannot be judged here",
            f"export anew: stm-train export FOLDER --out NEW_FOLDER --variants fp32,{name}",
        )
    try:
        found = _encoded(Embedder.load(folder, variant=name), goldens)
    except ArtifactMismatchError as error:  # the embedder compared the same vectors when it loaded
        return problem(str(error), _machine(manifest, name)[1])
    except StmError as error:
        return problem(str(error), COPY_AGAIN)
    wanted = np.asarray([golden.vector for golden in goldens])
    difference = float(np.abs(found - wanted).max())
    cosine = float((found * wanted).sum(axis=1).min())
    right = difference <= VECTOR_TOLERANCE if name == FP32 else cosine >= MIN_COSINE
    if right:
        return ok(f"vectors of {name}: {len(goldens)} recorded texts give theirs, to {difference:.1e}")
    limit = f"limit {VECTOR_TOLERANCE:g}" if name == FP32 else f"cosine {cosine:.4f}, at least {MIN_COSINE:g}"
    machine, remedy = _machine(manifest, name)
    return problem(
        f"vectors of {name}: the recorded texts give others than at export, by up to {difference:.3g} "
        f"({limit}).{machine}",
        remedy,
    )


def _encoded(embedder: Embedder, goldens: Sequence[VectorGolden]) -> npt.NDArray[np.float32]:
    encoders: dict[str, Callable[[list[str]], Any]] = {
        "query": embedder.encode_query,
        "document": embedder.encode_document,
    }
    # one text at a time, as they were recorded
    return np.stack([encoders[golden.role]([golden.text])[0] for golden in goldens])


def _machine(manifest: Manifest, name: str) -> tuple[str, str]:
    """What the CPU may have to do with it, and the remedy."""
    absent = sorted(set(manifest.features_of(name)) - set(cpu_features()))
    if not absent:
        return "", COPY_AGAIN
    said = f" This CPU lacks {', '.join(absent)} of the exporting one."
    if name != "int8":
        return said, COPY_AGAIN
    return (
        f"{said} Without VNNI its 8-bit sums may saturate.",
        "take w8, which rounds per token: Embedder.load(FOLDER, variant='w8'); to add it: "
        "stm-train export FOLDER --out FOLDER --variants w8",
    )


def check_parity(folder: Path, manifest: Manifest) -> list[Finding]:
    """Looks whether the numbers of the parity gate are there, for every variant."""
    path = folder / PARITY_NAME
    again = "export anew, which measures again: stm-train export FOLDER --out NEW_FOLDER"
    if not path.is_file():
        return [warning(f"{PARITY_NAME} is missing: how exact the ONNX files are is not recorded", again)]
    try:
        parity = json.loads(path.read_text("utf-8"))
        absent = [name for name in manifest.variants if not isinstance(parity.get(name), dict)]
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        return [problem(f"{PARITY_NAME} is not readable: {error}", again)]
    if absent:
        return [warning(f"{PARITY_NAME} has no numbers for {', '.join(absent)}", again)]
    return [ok(f"{PARITY_NAME}: has the numbers of {', '.join(manifest.variants)}")]
