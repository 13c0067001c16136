"""Writes a retriever folder: whole and checked, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stm_retriever.atomic_write import flush_file
from stm_retriever.embedder import Embedder
from stm_retriever.errors import ConfigError, ExportParityError
from stm_retriever.folder import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Manifest,
    Variant,
    fingerprint,
    sha256_file,
    write_manifest,
)
from stm_retriever.types import Role
from stm_training.export import goldens
from stm_training.export.card import render_card
from stm_training.export.checkpoint import write_checkpoint
from stm_training.export.hashes import sha256_of, weight_files
from stm_training.export.layout import write_layout
from stm_training.export.licences import card_licences
from stm_training.export.machine import cpu_features, versions
from stm_training.export.onnx_graph import EXTERNAL_DATA_ABOVE, export_onnx
from stm_training.export.parity import LIMIT, LONGEST_CHECKED, ParityReport, parity_gate, write_parity

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone

_SETTINGS = ("pooling", "attention", "max_length", "eos_token_id", "pad_token_id", "prompts", "dimension")
VARIANTS = ("fp32",)
"""What this version writes."""

Progress = Callable[[str], None]
VectorsByRole = Mapping[Role, npt.NDArray[np.float32]]


def write_retriever_folder(
    backbone: Backbone,
    out: Path,
    *,
    name: str,
    base: Mapping[str, Any],
    experts: Sequence[Mapping[str, Any]] = (),
    merge: Mapping[str, Any] | None = None,
    data: Sequence[Mapping[str, Any]] = (),
    licences: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    variants: Sequence[str] = VARIANTS,
    overwrite: bool = False,
    limit: float = LIMIT,
    longest_checked: int = LONGEST_CHECKED,
    external_data_above: int = EXTERNAL_DATA_ABOVE,
    progress: Progress | None = None,
) -> Manifest:
    """Writes weights, tokenizer, ONNX file, manifest and card of a model in memory, which stays as it is.

    Everything is made in a sibling folder and renamed when whole. The ONNX file is traced from a copy loaded
    from the written weights, judged against a second one, and then read back by the light runtime.

    Args:
        backbone: The model; adapters must have been merged into it.
        out: The folder to make. It may be empty, or - with ``overwrite`` - a retriever folder.
        name: The model's name, for the manifest and the card.
        base: What it was made from: ``name`` and what else is known; ``hub_name`` where the hub has it.
        experts: One entry per expert that went in.
        merge: The merge recipe, if there was a merge.
        data: One entry per source of training data.
        licences: Of the base and the data; if empty, what the card in the base's folder says.
        metrics: Figures for manifest and card.
        variants: Which ONNX files to write; this version knows ``fp32``.
        overwrite: Whether a retriever folder that is there may be replaced.
        limit: Largest difference in a coordinate that the parity gate lets pass.
        longest_checked: Cap of the longest input that the parity gate tries.
        external_data_above: Weights of more bytes than this go into ``onnx/model.onnx_data``.
        progress: Called with a line before each step.

    Returns:
        The manifest of the folder.

    Raises:
        ConfigError: If the target is taken, a variant unknown, or the model cannot be exported.
        ExportParityError: If the exported model gives other vectors; nothing is left behind.
    """
    out = Path(out)
    tell = progress or _silent
    check_variants(variants)
    check_target(out, overwrite=overwrite)
    with _staging(out) as staging:
        tell("writing weights and tokenizer")
        _write_model(backbone, staging)
        fresh = _reload(backbone, staging)
        vectors = {role: goldens.torch_vectors(fresh, role) for role in goldens.ROLES}
        _check_reloaded(backbone, fresh, vectors, limit)
        tell("exporting to ONNX")
        files = _write_graph(_reload(backbone, staging), staging, external_data_above)
        tell("comparing the ONNX file with the model")
        report = parity_gate(files[0], lambda: fresh, limit=limit, longest=longest_checked)
        write_parity(staging / "onnx" / "parity.json", {"fp32": report})
        manifest = _manifest(
            backbone,
            staging,
            name=name,
            variants={"fp32": _variant(files, staging)},
            vectors=vectors,
            base=dict(base),
            experts=[dict(expert) for expert in experts],
            merge=None if merge is None else dict(merge),
            data=[dict(entry) for entry in data],
            licences=list(licences) or card_licences(backbone.path),
            metrics=dict(metrics or {}),
        )
        write_manifest(staging, manifest)
        tell("reading it back with the light runtime")
        _check_served(staging, manifest, limit)
        _write_card(staging, manifest, report)
        _settle(staging)
        _publish(staging, out)
    return manifest


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside the target, gone at the end unless it was renamed."""
    folder = out.absolute().parent / f".{out.name}.partial"
    _remove(folder)  # what a killed run left
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _remove(folder)


def _write_graph(traced: Backbone, folder: Path, external_data_above: int) -> list[Path]:
    graph = folder / "onnx" / "model.onnx"
    graph.parent.mkdir()
    return [graph, *export_onnx(traced, graph, external_data_above=external_data_above)]


def _variant(files: list[Path], folder: Path) -> Variant:
    first, *external = [path.relative_to(folder).as_posix() for path in files]
    return Variant(file=first, sha256=sha256_of(files), external_data=external)


def _silent(_: str) -> None:
    return None


def check_variants(variants: Sequence[str]) -> None:
    """Raises ConfigError unless this version can write all of these ONNX files."""
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown or not variants:
        raise ConfigError(
            f"variants={list(variants)!r}: this version writes {', '.join(VARIANTS)} and nothing else. "
            f"Pass variants={list(VARIANTS)!r} (on the command line: --variants {','.join(VARIANTS)})."
        )


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raises ConfigError unless a retriever folder may be put here without losing anything."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{str(out)!r} is a file, not a folder. Choose another --out.")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).is_file():
        raise ConfigError(
            f"{str(out)!r} is not empty and holds no {MANIFEST_NAME}, so it is none of ours. Replacing it "
            "could destroy your files. Choose another --out, or empty the folder yourself."
        )
    if not overwrite:
        raise ConfigError(
            f"{str(out)!r} already holds a retriever folder. An index built with it may still need it. "
            "Choose another --out, or pass --overwrite (overwrite=True) to replace it."
        )


def _write_model(backbone: Backbone, folder: Path) -> None:
    write_checkpoint(backbone, folder)
    write_layout(
        folder,
        prompts=backbone.prompts,
        pooling=backbone.pooling,
        dimension=backbone.dimension,
        max_length=backbone.max_length,
    )


def _reload(backbone: Backbone, folder: Path) -> Backbone:
    """Loads the written folder, told everything that the model in memory knows about itself."""
    from stm_training.finetune.backbone import BackboneSpec, load_backbone

    spec = BackboneSpec(
        source=str(folder),
        pooling=backbone.pooling,
        attention=backbone.attention,
        max_length=backbone.max_length,
        prompts=backbone.prompts,
    )
    return load_backbone(spec).eval()


def _check_reloaded(backbone: Backbone, fresh: Backbone, vectors: VectorsByRole, limit: float) -> None:
    """What was written must be the model that was given, in every setting and in its vectors."""
    for what in (
        "pooling",
        "attention",
        "max_length",
        "eos_token_id",
        "pad_token_id",
        "prompts",
        "dimension",
    ):
        given, read = getattr(backbone, what), getattr(fresh, what)
        if given != read:
            raise ExportParityError(
                f"The written folder reads back with {what} {read!r} instead of {given!r}, so it would serve "
                "other vectors than the model that was evaluated. Nothing was written; please report this."
            )
    import torch

    if any(parameter.dtype != torch.float32 for parameter in backbone.parameters()):
        return  # rounding of the shorter type would hide or fake a difference
    for role, read in vectors.items():
        difference = float(np.abs(goldens.torch_vectors(backbone, role) - read).max())
        if not difference <= limit:
            raise ExportParityError(
                f"The weights on disk give other {role} vectors than the model in memory: max abs diff "
                f"{difference:.3g}, the limit is {limit:g}. A weight was lost or renamed on the way. "
                "Nothing was written; please report the model family with this number."
            )


def _manifest(
    backbone: Backbone,
    folder: Path,
    *,
    name: str,
    variants: dict[str, Variant],
    vectors: VectorsByRole,
    **provenance: Any,
) -> Manifest:
    weights = sha256_of(weight_files(folder))
    tokenizer = sha256_file(folder / TOKENIZER_NAME)
    return Manifest(
        name=name,
        fingerprint=fingerprint(
            weights_sha256=weights,
            tokenizer_sha256=tokenizer,
            prompts=backbone.prompts,
            pooling=backbone.pooling,
            normalize=True,
            attention=backbone.attention,
            eos_token_id=backbone.eos_token_id,
            max_length=backbone.max_length,
        ),
        prompts=backbone.prompts,
        pooling=backbone.pooling,
        attention=backbone.attention,
        model_type=backbone.model_type,
        eos_token_id=backbone.eos_token_id,
        pad_token_id=backbone.pad_token_id,
        max_length=backbone.max_length,
        dimension=backbone.dimension,
        dimensions_allowed=[backbone.dimension],
        weights_sha256=weights,
        tokenizer_sha256=tokenizer,
        variants=variants,
        token_goldens=goldens.token_goldens(backbone),
        vector_goldens=goldens.vector_goldens(vectors),
        versions=versions(),
        cpu_features=cpu_features(),
        **provenance,
    )


def _check_served(folder: Path, manifest: Manifest, limit: float) -> None:
    """The light runtime, from the folder alone, must give the goldens."""
    embedder = Embedder.load(folder)
    for role, encode in (("query", embedder.encode_query), ("document", embedder.encode_document)):
        wanted = [golden for golden in manifest.vector_goldens if golden.role == role]
        found = encode([golden.text for golden in wanted])
        difference = float(np.abs(found - np.asarray([golden.vector for golden in wanted])).max())
        if not difference <= limit:
            raise ExportParityError(
                f"Embedder gives other {role} vectors than the torch model: max abs diff {difference:.3g}, "
                f"the limit is {limit:g}. Nothing was written; please report this."
            )


def _write_card(folder: Path, manifest: Manifest, report: ParityReport) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    card = render_card(manifest, report, unmasked=config.get("is_causal") is False)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _settle(folder: Path) -> None:
    """Gives every file the usual mode (safetensors writes for the owner alone) and forces it to disk."""
    mode = (folder / "config.json").stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            flush_file(path)


def _publish(staging: Path, out: Path) -> None:
    """Renames the finished folder into place; an old one steps aside and comes back if that fails."""
    if not out.exists():
        staging.rename(out)
        return
    aside = staging.with_name(f".{out.name}.replaced")
    _remove(aside)
    out.rename(aside)
    try:
        staging.rename(out)
    except OSError:
        aside.rename(out)
        raise
    _remove(aside)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
