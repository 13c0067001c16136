"""``stm-train export``: any model that transformers can load becomes a retriever folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stm_retriever.folder import MANIFEST_NAME, Manifest, Prompts, read_manifest
from stm_training.export.folder_writer import Progress, write_retriever_folder
from stm_training.export.target import check_target
from stm_training.export.variant_kinds import FP32, check_variants

if TYPE_CHECKING:
    from stm_training.finetune.backbone import BackboneSpec
    from stm_training.pipeline.collections import Problem


def export_model(
    source: str,
    out: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    pooling: Literal["auto", "cls", "mean", "last"] = "auto",
    attention: Literal["auto", "causal", "bidirectional"] = "auto",
    max_length: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    licence: str | None = None,
    variants: Sequence[str] = (FP32,),
    dimensions: Sequence[int] | None = None,
    dev: Sequence[Problem] = (),
    overwrite: bool = False,
    download: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Exports a model folder or a hub model as it is, without training.

    Args:
        source: Folder or hub name. What a sentence-transformers folder or one of ours says about pooling,
            prompts, attention and length is taken over.
        out: The folder to make.
        name: The model's name; by default that of the folder to make.
        revision: Branch, tag or commit of a hub name.
        pooling: Overrides the folder's.
        attention: Overrides the folder's.
        max_length: Overrides the folder's; in tokens.
        query_prompt: Overrides the folder's; ``""`` for none.
        document_prompt: Overrides the folder's; ``""`` for none.
        licence: Of the model; by default what its card says.
        variants: Which ONNX files to write; see :func:`write_retriever_folder`.
        dimensions: Lengths below the full one to which vectors may be cut; None takes what the folder says.
        dev: Development queries on which each variant is compared with fp32.
        overwrite: Whether a retriever folder at ``out`` may be replaced.
        download: Whether a hub name may be fetched; otherwise only the local cache is looked into.
        progress: Called with a line before each step.

    Returns:
        The manifest of the new folder.

    Raises:
        ConfigError: If an option cannot be, the target is taken, or the model cannot be traced.
        ModelFolderError: If there is no such model.
        ExportParityError: If the exported model gives other vectors.
    """
    from stm_training.finetune.backbone import BackboneSpec, load_backbone

    out = Path(out)
    check_variants(variants)  # before a model of gigabytes is loaded
    check_target(out, overwrite=overwrite)
    spec = BackboneSpec(
        source=source,
        revision=revision,
        local_files_only=not download,
        pooling=pooling,
        attention=attention,
        max_length=max_length,
    )
    backbone = load_backbone(_with_prompts(spec, query_prompt, document_prompt))
    unchanged = (pooling, attention, max_length, query_prompt, document_prompt) == (
        "auto",
        "auto",
        *[None] * 3,
    )
    provenance = _provenance(source, revision, backbone.path, keep_metrics=unchanged)
    if licence is not None:
        provenance["licences"] = [licence]
    return write_retriever_folder(
        backbone,
        out,
        name=name or out.absolute().name,
        variants=variants,
        dimensions=_recorded_dimensions(backbone.path) if dimensions is None else dimensions,
        dev=dev,
        overwrite=overwrite,
        progress=progress,
        **provenance,
    )


def _with_prompts(spec: BackboneSpec, query: str | None, document: str | None) -> BackboneSpec:
    """Replaces one prompt or both; the other stays the folder's."""
    if query is None and document is None:
        return spec
    import dataclasses

    from stm_training.finetune.source import read_settings, resolve_source

    path = resolve_source(spec.source, revision=spec.revision, local_files_only=spec.local_files_only)
    stored = read_settings(path).prompts
    prompts = Prompts(
        query=stored.query if query is None else query,
        document=stored.document if document is None else document,
    )
    return dataclasses.replace(spec, prompts=prompts)


def _recorded_dimensions(path: Path) -> list[int]:
    """What a folder of ours says about lengths that its vectors may be cut to."""
    return read_manifest(path).dimensions_allowed if (path / MANIFEST_NAME).is_file() else []


def _provenance(source: str, revision: str | None, path: Path, *, keep_metrics: bool) -> dict[str, Any]:
    """What is known about where the model comes from; figures only of the very same vectors."""
    if (path / MANIFEST_NAME).is_file():
        made = read_manifest(path)
        return {
            "base": made.base,
            "experts": made.experts,
            "merge": made.merge,
            "data": made.data,
            "licences": made.licences,
            "metrics": made.metrics if keep_metrics else {},
        }
    is_folder = Path(source).expanduser().is_dir()
    base: dict[str, Any] = {"name": path.absolute().name if is_folder else source}
    if not is_folder:
        base["hub_name"] = source
        if revision is not None:
            base["revision"] = revision
    return {"base": base}
