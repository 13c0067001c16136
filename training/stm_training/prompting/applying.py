"""Put a query prompt where it counts: into what is loaded or in memory, and so into what is exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stm_retriever.folder import Prompts

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone, BackboneSpec


def with_query_prompt(model: BackboneSpec | Path | str, prompt: str) -> BackboneSpec:
    """What to load so that queries get this prompt; the document prompt stays the model's.

    A backbone loaded from it, and everything exported from that, carries the prompt: the manifest, the
    sentence-transformers files, the goldens, and with them every consumer of the folder.

    Args:
        model: A spec, a model folder, or a hub name in the local cache.
        prompt: Put before every query, verbatim.

    Returns:
        The spec; weights are not touched.

    Raises:
        ModelFolderError: If there is no such model.
    """
    from stm_training.finetune.backbone import BackboneSpec
    from stm_training.finetune.source import read_settings, resolve_source

    spec = model if isinstance(model, BackboneSpec) else BackboneSpec(str(model))
    stored = spec.prompts
    if stored is None:
        path = resolve_source(spec.source, revision=spec.revision, local_files_only=spec.local_files_only)
        stored = read_settings(path).prompts
    return dataclasses.replace(spec, prompts=Prompts(query=prompt, document=stored.document))


def set_query_prompt(backbone: Backbone, prompt: str) -> None:
    """Change the query prompt of a model in memory, for instance of a merged one before its export."""
    prompts = Prompts(query=prompt, document=backbone.prompts.document)
    backbone.prompts = prompts
    backbone.tokenizer.prompts = prompts


@contextmanager
def query_prompt(backbone: Backbone, prompt: str) -> Iterator[None]:
    """Encode queries with another prompt for a while."""
    before = backbone.prompts.query
    set_query_prompt(backbone, prompt)
    try:
        yield
    finally:
        set_query_prompt(backbone, before)
