"""Writes a retriever folder: whole and checked, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stm_retriever.cpu_features import cpu_features
from stm_retriever.embedder import Embedder
from stm_retriever.errors import ExportParityError
from stm_retriever.folder import (
    TOKENIZER_NAME,
    Manifest,
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
from stm_training.export.machine import versions
from stm_training.export.onnx_graph import EXTERNAL_DATA_ABOVE, export_onnx
from stm_training.export.parity import LIMIT, LONGEST_CHECKED, parity_gate, write_parity
from stm_training.export.target import check_target, publish, settle, staging
from stm_training.export.variant_kinds import FP32, KINDS, check_variants
from stm_training.export.variants import as_variant, checked_dimensions, make_variants

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone
    from stm_training.pipeline.collections import Problem

__all__ = ["Progress", "check_target", "check_variants", "write_retriever_folder"]

_SETTINGS = ("pooling", "attention", "max_length", "eos_token_id", "pad_token_id", "prompts", "dimension")

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
    variants: Sequence[str] = (FP32,),
    dimensions: Sequence[int] = (),
    dev: Sequence[Problem] = (),
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
        variants: Which ONNX files to write, of ``fp32``, ``fp16``, ``w8``, ``int8``, ``w4``. Without ``fp32``
            the folder is smaller, but ``variant=`` must be given wherever it is loaded, no other variant can
            be added, and programs that look for ``onnx/model.onnx`` do not find it.
        dimensions: Lengths below the full one to which vectors may be cut (the model was trained for them).
        dev: Development queries on which each variant other than fp32 is compared with it.
        overwrite: Whether a retriever folder that is there may be replaced.
        limit: Largest difference in a coordinate that the parity gate lets pass.
        longest_checked: Cap of the longest input that the parity gate tries.
        external_data_above: Weights of more bytes than this go into ``onnx/model.onnx_data``.
        progress: Called with a line before each step.

    Returns:
        The manifest of the folder.

    Raises:
        ConfigError: If the target is taken, a variant unknown, or the model cannot be exported.
        ExportParityError: If the exported model gives other vectors, or any of the variants misses its limit;
            nothing is left behind.
    """
    out = Path(out)
    tell = progress or _silent
    check_variants(variants)
    lengths = checked_dimensions(dimensions, backbone.dimension)
    check_target(out, overwrite=overwrite)
    with staging(out) as folder:
        tell("writing weights and tokenizer")
        _write_model(backbone, folder)
        fresh = _reload(backbone, folder)
        vectors = {role: goldens.torch_vectors(fresh, role) for role in goldens.ROLES}
        _check_reloaded(backbone, fresh, vectors, limit)
        tell("exporting to ONNX")
        files = _write_graph(_reload(backbone, folder), folder, external_data_above)
        tell("comparing the ONNX file with the model")
        report = parity_gate(files[0], lambda: fresh, limit=limit, longest=longest_checked)
        manifest = _manifest(
            backbone,
            folder,
            name=name,
            variants={FP32: as_variant(files, folder, KINDS[FP32].precision)},
            dimensions_allowed=lengths,
            vectors=vectors,
            base=dict(base),
            experts=[dict(expert) for expert in experts],
            merge=None if merge is None else dict(merge),
            data=[dict(entry) for entry in data],
            licences=list(licences) or card_licences(backbone.path),
            metrics=dict(metrics or {}),
        )
        write_manifest(folder, manifest)
        tell("reading it back with the light runtime")
        _check_served(folder, manifest, limit)
        manifest, reports = make_variants(
            folder,
            manifest,
            [name for name in dict.fromkeys(variants) if name != FP32],
            dev=dev,
            longest_checked=longest_checked,
            external_data_above=external_data_above,
            progress=tell,
        )
        if FP32 not in variants:
            manifest = _without_fp32(folder, manifest, files)
        parity = {FP32: report.as_dict(), **{name: found.as_dict() for name, found in reports.items()}}
        write_parity(folder / "onnx" / "parity.json", parity)
        write_manifest(folder, manifest)
        _write_card(folder, manifest, parity)
        settle(folder)
        publish(folder, out)
    return manifest


def _write_graph(traced: Backbone, folder: Path, external_data_above: int) -> list[Path]:
    graph = folder / "onnx" / "model.onnx"
    graph.parent.mkdir()
    return [graph, *export_onnx(traced, graph, external_data_above=external_data_above)]


def _without_fp32(folder: Path, manifest: Manifest, files: Sequence[Path]) -> Manifest:
    """Drops the fp32 file, which was needed to make and judge the others."""
    for path in files:
        path.unlink()
    kept = {name: entry for name, entry in manifest.variants.items() if name != FP32}
    return manifest.model_copy(update={"variants": kept})


def _silent(_: str) -> None:
    return None


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
    for what in _SETTINGS:
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
        weights_sha256=weights,
        tokenizer_sha256=tokenizer,
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


def _write_card(folder: Path, manifest: Manifest, parity: Mapping[str, Mapping[str, Any]]) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    card = render_card(manifest, parity, unmasked=config.get("is_causal") is False)
    (folder / "README.md").write_text(card, encoding="utf-8")
