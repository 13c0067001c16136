"""Open what a retriever folder holds, and check that it gives what its manifest says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stm_retriever.cpu_features import cpu_features
from stm_retriever.encoding.engines import EngineName, open_engine
from stm_retriever.encoding.runner import Runner
from stm_retriever.errors import ArtifactMismatchError
from stm_retriever.folder import TOKENIZER_NAME, Manifest, variant_file
from stm_retriever.onnx_session import Device
from stm_retriever.tokenization import TextTokenizer

GOLDEN_COSINE = 0.995
"""A quantised variant's golden on another CPU: roundings differ a little, saturated sums by far more."""


class Opened(NamedTuple):
    """A folder at work in one process."""

    runner: Runner
    tokenizer: TextTokenizer
    process: int


def open_folder(
    path: Path,
    manifest: Manifest,
    *,
    variant: str,
    device: Device,
    threads: int | None,
    engine: EngineName,
) -> Opened:
    """Open tokenizer and graph.

    Raises:
        ConfigError: If the folder has no such variant.
        ModelFolderError: If a file is missing or damaged.
        ArtifactMismatchError: If the tokenizer does not give the ids that the manifest recorded, or a
            quantised variant does not give its vectors on this CPU.
        ProviderError: If the device is not there.
        MissingExtraError: If the engine is not installed.
    """
    file = variant_file(path, manifest, variant)
    tokenizer = open_tokenizer(path, manifest)
    opened = open_engine(engine, file, device=device, threads=threads, size=_size(path, manifest, variant))
    runner = Runner(opened, tokenizer, variant=variant, dimension=manifest.dimension, folder=path)
    if not opened.on_gpu:
        _check_goldens(path, manifest, variant, runner, tokenizer)
    return Opened(runner, tokenizer, os.getpid())


def open_tokenizer(path: Path, manifest: Manifest) -> TextTokenizer:
    """Open the tokenizer and compare its ids with the manifest's.

    Raises:
        ModelFolderError: If the file is missing or no tokenizer.
        ArtifactMismatchError: If its ids are others.
    """
    tokenizer = TextTokenizer.from_file(
        path / TOKENIZER_NAME,
        max_length=manifest.max_length,
        eos_token_id=manifest.eos_token_id,
        pad_token_id=manifest.pad_token_id,
        prompts=manifest.prompts,
    )
    for golden in manifest.token_goldens:
        found = tokenizer.encode([golden.text], golden.role)[0].tolist()
        if found != golden.ids:
            raise ArtifactMismatchError(
                f"{str(path)!r}: the {golden.role} {golden.text!r:.60} becomes the tokens {found}, "
                f"but the model was made with {golden.ids}. Its vectors would be wrong without any other "
                "sign. The tokenizer or the prompts were changed or belong to another model; run: "
                f"stm-train doctor {path}"
            )
    return tokenizer


def _check_goldens(
    path: Path, manifest: Manifest, variant: str, runner: Runner, tokenizer: TextTokenizer
) -> None:
    """Without VNNI, 8-bit sums may saturate; nothing but the vectors themselves would show it."""
    goldens = manifest.variants[variant].goldens
    here = cpu_features()
    if not goldens or here == sorted(manifest.features_of(variant)):
        return
    for golden in goldens:
        vector = runner.encode(tokenizer.encode([golden.text], golden.role))[0]
        cosine = float(vector @ np.asarray(golden.vector, dtype=np.float32))
        if cosine < GOLDEN_COSINE:
            lacking = sorted(set(manifest.features_of(variant)) - set(here))
            raise ArtifactMismatchError(
                f"{str(path)!r}: on this CPU the variant {variant!r} gives the {golden.role} "
                f"{golden.text!r:.60} a vector of cosine {cosine:.4f} to that of the exporting machine "
                f"(at least {GOLDEN_COSINE} is needed), so it would not fit an index made there. This CPU "
                f"lacks {', '.join(lacking) or 'none of its instruction sets, but has others'}; 8-bit sums "
                "may saturate. Take variant='w8' (its own recorded vectors are compared here as well), or "
                "variant='fp32', which has no 8-bit sums."
            )


def _size(path: Path, manifest: Manifest, variant: str) -> int:
    wanted = manifest.variants[variant]
    return sum((path / name).stat().st_size for name in (wanted.file, *wanted.external_data))
