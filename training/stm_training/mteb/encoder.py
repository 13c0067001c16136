"""A retriever folder as an encoder of mteb 2."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from mteb.types import Licenses, PromptType
from numpy.typing import NDArray

from stm_retriever.embedder import Embedder
from stm_retriever.folder import MANIFEST_NAME, TOKENIZER_NAME, Manifest, Prompts
from stm_retriever.types import Role
from stm_training.mteb.names import training_datasets

_log = logging.getLogger(__name__)
_ORGANISATION = "stm-retriever"
_OPEN_NAMES = re.compile(r"[\w.-]+/[\w.-]+")


class StmEncoder:
    """Encodes for mteb with the folder's own prompts, or with instructions by task.

    Queries get the query prompt; documents, and the texts of tasks that know no roles (clustering,
    classification, similarity), the document prompt.

    Fulfils mteb's ``EncoderProtocol``.

    Args:
        embedder: A loaded retriever folder, of float32 precision.
        query_prompts: What to put before queries instead of the folder's prompt, by task name; tasks that are
            not named keep the folder's.
        document_prompt: What to put before documents instead of the folder's prompt.
        instructions: What the two are called in the results' metadata, for instance ``"paper"``: figures with
            other prompts are kept apart.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        query_prompts: Mapping[str, str] | None = None,
        document_prompt: str | None = None,
        instructions: str | None = None,
    ) -> None:
        self.model = embedder
        self._query_prompts = dict(query_prompts or {})
        self._document_prompt = document_prompt
        self._opened = {embedder.prompts: embedder}
        self.mteb_model_meta = model_meta(embedder, instructions=instructions)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Encode batches of a task.

        Args:
            inputs: Batches with a list of texts under ``"text"``.
            task_metadata: Of the task; its name chooses the instruction, if there are any.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Query or document; None for tasks without roles.
            **kwargs: ``show_progress_bar``; the rest of mteb's options (batch size) is not needed.

        Returns:
            float32 (texts, dimension), rows of length 1. An empty text, which no model can say anything of,
            gets zeros, so that its similarity to everything is 0.
        """
        texts = [text for batch in inputs for text in cast("list[str]", batch["text"])]
        role: Role = "query" if prompt_type == PromptType.query else "document"
        embedder = self._embedder(task_metadata.name)
        filled = [place for place, text in enumerate(texts) if text.strip()]
        if len(filled) < len(texts):
            _log.warning(
                "%s: %d of %d texts are empty and get a vector of zeros",
                task_metadata.name,
                len(texts) - len(filled),
                len(texts),
            )
        vectors = np.zeros((len(texts), embedder.dimension), np.float32)
        encode = embedder.encode_query if role == "query" else embedder.encode_document
        vectors[filled] = encode(
            [texts[place] for place in filled], show_progress=bool(kwargs.get("show_progress_bar"))
        )
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of every vector with every other: a tensor (n, m)."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of vectors of one row: a tensor (n,)."""
        return pairwise_cos_sim(embeddings1, embeddings2)

    def _embedder(self, task: str) -> Embedder:
        own = self.model.prompts
        query = self._query_prompts.get(task, own.query)
        document = own.document if self._document_prompt is None else self._document_prompt
        prompts = Prompts(query=query, document=document)
        if prompts not in self._opened:
            self._opened = {own: self.model, prompts: with_prompts(self.model, prompts)}
        return self._opened[prompts]


def with_prompts(embedder: Embedder, prompts: Prompts) -> Embedder:
    """The same folder with other prompts, to measure what they are worth; nothing is written.

    The folder's goldens were made with its own prompts, so they are checked at the first load and not here.
    """
    manifest = embedder.manifest
    variants = {name: one.model_copy(update={"goldens": []}) for name, one in manifest.variants.items()}
    changed = {"prompts": prompts, "token_goldens": [], "vector_goldens": [], "variants": variants}
    return Embedder(
        embedder.path,
        manifest.model_copy(update=changed),
        variant=embedder.variant,
        device=embedder.device,
        engine=embedder.engine,
        dimension=embedder.dimension,
    )


def model_meta(embedder: Embedder, *, instructions: str | None = None) -> ModelMeta:
    """What mteb is told of a model.

    The revision is a hash of the files that make the vectors, because mteb takes a model of the same name and
    revision for the same model and would not run it again. Settings that change vectors (variant, dimension,
    instructions) are the experiment's, which mteb keeps in folders of their own.
    """
    manifest = embedder.manifest
    experiment = {
        "variant": None if embedder.variant == "fp32" else embedder.variant,
        "dimension": None if embedder.dimension == manifest.dimension else embedder.dimension,
        "engine": None if embedder.engine == "onnxruntime" else embedder.engine,
        "instructions": instructions,
    }
    declared = training_datasets(manifest.data)
    return ModelMeta.create_empty(
        {
            "name": _model_name(manifest.name),
            "revision": content_revision(embedder.path, manifest, embedder.variant),
            "max_tokens": manifest.max_length,
            "embed_dim": embedder.dimension,
            "license": _licence(manifest),
            "framework": ["ONNX", "Sentence Transformers"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": bool(manifest.prompts.query or manifest.prompts.document or instructions),
            "training_datasets": declared,
            "adapted_from": _base(manifest),
            "experiment_kwargs": {key: value for key, value in experiment.items() if value is not None}
            or None,
        }
    )


def content_revision(folder: Path, manifest: Manifest, variant: str) -> str:
    """Hash of the manifest, the tokenizer and a variant's files: 40 hexadecimal digits, as revisions have."""
    used = manifest.variants[variant]
    digest = hashlib.sha256()
    for name in (MANIFEST_NAME, TOKENIZER_NAME, used.file, *used.external_data):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:40]


def _model_name(name: str) -> str:
    if _OPEN_NAMES.fullmatch(name):
        return name
    return f"{_ORGANISATION}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"


def _base(manifest: Manifest) -> str | None:
    name = manifest.base.get("hub_name") or manifest.base.get("name")
    return str(name) if name and _OPEN_NAMES.fullmatch(str(name)) else None


def _licence(manifest: Manifest) -> str | None:
    """The licence as mteb names it; others it would refuse when it reads the results back."""
    known = set(get_args(Licenses))
    found = [licence.lower() for licence in manifest.licences if licence.lower() in known]
    return found[0] if found else None
