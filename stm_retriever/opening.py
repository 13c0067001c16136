"""Which embedder belongs to an index: naming it, finding it again, refusing another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stm_retriever.embedder import Embedder
from stm_retriever.errors import ArtifactMismatchError, ModelFolderError
from stm_retriever.folder import SERVING_FILES, read_manifest, resolve_folder
from stm_retriever.foreign import AnyEmbedder, same_embedder
from stm_retriever.index.manifest import EmbedderRef, IndexManifest
from stm_retriever.onnx_session import Device


def reference_of(embedder: AnyEmbedder, index: Path) -> EmbedderRef:
    """Describe an embedder for an index's manifest."""
    return EmbedderRef(
        name=embedder.name,
        fingerprint=embedder.fingerprint,
        dimension=embedder.dimension,
        variant=embedder.variant,
        path=None if embedder.path is None else _relative(embedder.path, index),
        hub_name=embedder.hub_name,
        revision=embedder.revision,
    )


def load_embedder(
    path: Path,
    manifest: IndexManifest,
    *,
    variant: str | None = None,
    device: Device = "cpu",
    threads: int | None = None,
) -> Embedder:
    """Load the model that an index was made with, from where it was or from the local hub cache.

    Raises:
        ModelFolderError: If it is not there, or was no model folder.
        ProviderError: If the device is not there.
    """
    wanted = manifest.embedder
    options: dict[str, Any] = {"variant": variant or wanted.variant, "device": device, "threads": threads}
    folder = None if wanted.path is None else (path.resolve() / wanted.path).resolve()
    if folder is None or not os.path.isdir(folder):  # False too for a name that no file system takes
        if wanted.hub_name is None:
            raise _model_gone(path, folder, wanted)
        try:
            folder = resolve_folder(
                wanted.hub_name, revision=wanted.revision, local_files_only=True, patterns=SERVING_FILES
            )
        except ModelFolderError as error:
            raise _model_gone(path, folder, wanted) from error
        return _of_length(
            wanted.hub_name, folder, wanted, revision=wanted.revision, local_files_only=True, **options
        )
    return _of_length(folder, folder, wanted, **options)


def _of_length(source: str | Path, folder: Path, wanted: EmbedderRef, **options: Any) -> Embedder:
    """Load a model, its vectors cut to the index's dimension where they are longer (Matryoshka)."""
    if wanted.dimension < read_manifest(folder).dimension:
        options["dimension"] = wanted.dimension
    return Embedder.load(source, **options)


def check_match(path: Path, manifest: IndexManifest, embedder: AnyEmbedder) -> None:
    """Raise unless the embedder's vectors can be compared with those of the index.

    Raises:
        ArtifactMismatchError: If it is another one; the message names both.
    """
    made_with = manifest.embedder
    if made_with.dimension == embedder.dimension and same_embedder(
        made_with.fingerprint, embedder.fingerprint
    ):
        return
    where = "" if embedder.path is None else f" at {str(embedder.path)!r}"
    remedy = (
        "with this one, into a new index"
        if embedder.path is None
        else f"with this one: stm-train index --model {embedder.path} --out FOLDER"
    )
    hint = ""
    if made_with.fingerprint.startswith("id:") and embedder.fingerprint.startswith("class:"):
        hint = f" If it is the same one, say so: embedder_id={made_with.fingerprint[3:]!r}."
    raise ArtifactMismatchError(
        f"The index {str(path)!r} was made with the model {made_with}, but the one{where} "
        f"is {embedder.name!r} ({embedder.fingerprint[:19]}..., {embedder.dimension} dimensions). Vectors of "
        "two models, or of two prompts, cannot be compared; the hits would be noise. Open it with the first "
        f"model, or index the documents again {remedy}.{hint}"
    )


def _relative(model: Path, index: Path) -> str:
    """Where the model lies, seen from the index, so that the two can be moved together."""
    try:
        return Path(os.path.relpath(model.resolve(), index.resolve())).as_posix()
    except ValueError:  # another drive, on Windows
        return model.resolve().as_posix()


def _model_gone(path: Path, folder: Path | None, wanted: EmbedderRef) -> ModelFolderError:
    if folder is None and wanted.hub_name is None:
        return ModelFolderError(
            f"The index {str(path)!r} was made with {wanted}, an embedder of the application's own that "
            f"cannot be loaded from here. Pass it: Retriever.open({str(path)!r}, embedder=...)"
        )
    hub = "" if wanted.hub_name is None else f", nor {wanted.hub_name!r} in the local Hugging Face cache"
    return ModelFolderError(
        f"The index {str(path)!r} was made with the model {wanted}, which is not at {str(folder)!r} any more"
        f"{hub}; queries must be encoded by the same model. Pass it: "
        f"Retriever.open({str(path)!r}, embedder=Embedder.load(FOLDER)), or put it back there."
    )
