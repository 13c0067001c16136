"""Any dense model by its name: a retriever folder, or a transformers or sentence-transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, ModelFolderError
from stm_retriever.folder import MANIFEST_NAME, Prompts, resolve_folder

if TYPE_CHECKING:
    from stm_training.evaluate.systems import RankOptions
    from stm_training.finetune.backbone import Backbone


class Encoder(Protocol):
    """What ranks documents by vectors: :class:`stm_retriever.Embedder`, or a model still in training."""

    def encode_query(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """(n, d) unit vectors of texts in the role of queries."""
        ...

    def encode_document(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """(n, d) unit vectors of texts in the role of documents."""
        ...


class BackboneEncoder:
    """A transformers or sentence-transformers model that our own loader can read; runs in fp32."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def encode_query(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """See :class:`Encoder`."""
        return self._encode(texts, "query", show_progress)

    def encode_document(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """See :class:`Encoder`."""
        return self._encode(texts, "document", show_progress)

    def _encode(self, texts: Sequence[str], role: Any, show_progress: bool) -> NDArray[np.float32]:
        from tqdm import tqdm

        from stm_training.finetune.encode import encode_texts

        with tqdm(total=len(texts), unit="text", desc=role, disable=not show_progress) as bar:
            return encode_texts(
                self._backbone,
                texts,
                role,
                precision="fp32",
                progress=lambda done, _: bar.update(done - bar.n),
            )


class SentenceTransformerEncoder:
    """A model that only sentence-transformers itself can run: one with a Dense module, for instance."""

    def __init__(self, model: Any, prompts: Prompts | None) -> None:
        self._model = model
        self._prompts = prompts

    def encode_query(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """See :class:`Encoder`."""
        prompt = None if self._prompts is None else self._prompts.query
        return self._encode(self._model.encode_query, texts, prompt, show_progress)

    def encode_document(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """See :class:`Encoder`."""
        prompt = None if self._prompts is None else self._prompts.document
        return self._encode(self._model.encode_document, texts, prompt, show_progress)

    @staticmethod
    def _encode(
        encode: Any, texts: Sequence[str], prompt: str | None, show_progress: bool
    ) -> NDArray[np.float32]:
        own = {} if prompt is None else {"prompt": prompt}
        vectors = encode(
            list(texts),
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=show_progress,
            **own,
        )
        return np.asarray(vectors, dtype=np.float32)


def load_encoder(model: str, options: RankOptions) -> tuple[Encoder, dict[str, Any]]:
    """Open a model by folder or hub name.

    A retriever folder runs as it is served, by ONNX Runtime. Anything else runs by PyTorch in fp32: through
    our own loader where it can reproduce the model, else through sentence-transformers where that is
    installed. Code that comes with a model is never run and pickled weights are never read.

    Args:
        model: Folder, or name on the hub.
        options: Variant, device, prompts, and whether the hub may be asked.

    Returns:
        The encoder and what decides its vectors: kind, prompts, lengths.

    Raises:
        ModelFolderError: If there is no such model or nothing here can run it.
        ConfigError: If prompts are given for a retriever folder, which has its own.
    """
    local_only = not options.download
    folder = resolve_folder(model, local_files_only=local_only, patterns=[MANIFEST_NAME])
    if (folder / MANIFEST_NAME).is_file():
        if options.prompts is not None:
            raise ConfigError(
                f"{model} is a retriever folder, whose prompts are its own and checked at export. Leave the "
                "prompts out, or evaluate the model that it was exported from."
            )
        from stm_retriever import Embedder  # onnxruntime is loaded only by those who encode

        embedder = Embedder.load(
            model, variant=options.variant, device=options.device, local_files_only=local_only
        )
        about = {
            "kind": "retriever folder",
            "variant": options.variant,
            "fingerprint": embedder.fingerprint,
            "dimension": embedder.dimension,
            "max_length": embedder.max_length,
            "prompts": _prompts(embedder.prompts),
        }
        return embedder, about
    return _load_with_torch(model, options)


def _load_with_torch(model: str, options: RankOptions) -> tuple[Encoder, dict[str, Any]]:
    from stm_training.finetune.backbone import BackboneSpec, load_backbone
    from stm_training.finetune.source import resolve_source

    folder = resolve_source(model, revision=None, local_files_only=not options.download)
    device = _torch_device(options.device)
    try:
        backbone = load_backbone(BackboneSpec(str(folder), prompts=options.prompts))
    except ModelFolderError as error:
        if not _needs_sentence_transformers(folder) or find_spec("sentence_transformers") is None:
            raise
        return _load_sentence_transformer(folder, options, device, error)
    backbone.to(device)
    about = {
        "kind": "transformers",
        "dimension": backbone.dimension,
        "max_length": backbone.max_length,
        "pooling": backbone.pooling,
        "attention": backbone.attention,
        "prompts": _prompts(backbone.prompts),
    }
    return BackboneEncoder(backbone), about


def _needs_sentence_transformers(folder: Path) -> bool:
    """Whether it has that package's layout, and no weights that only pickle could read."""
    weights = [path for path in folder.rglob("*.bin") if not (path.parent / "model.safetensors").is_file()]
    return (folder / "modules.json").is_file() and not weights


def _load_sentence_transformer(
    folder: Path, options: RankOptions, device: str, cause: ModelFolderError
) -> tuple[Encoder, dict[str, Any]]:
    from sentence_transformers import SentenceTransformer

    try:
        loaded = SentenceTransformer(
            str(folder), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelFolderError(
            f"{folder}: neither our loader ({cause}) nor sentence-transformers could read it: "
            f"{type(error).__name__}: {error}"
        ) from error
    prompts = options.prompts
    about = {
        "kind": "sentence-transformers",
        "max_length": loaded.max_seq_length,
        "prompts": dict(loaded.prompts) if prompts is None else _prompts(prompts),
    }
    return SentenceTransformerEncoder(loaded, prompts), about


def _torch_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _prompts(prompts: Prompts) -> dict[str, str]:
    return {"query": prompts.query, "document": prompts.document}
