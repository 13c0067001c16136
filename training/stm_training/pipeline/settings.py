"""What the recipe says, in the terms of the packages that do the work."""

from __future__ import annotations

from pathlib import Path

from stm_retriever.folder import Prompts
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.source import resolve_source
from stm_training.recipe import Recipe

# Packages whose source decides a stage's output: changed code runs again.
MODEL_CODE = (
    "stm_training.finetune.backbone",
    "stm_training.finetune.attention",
    "stm_training.finetune.pooling",
    "stm_retriever.tokenization",
)


def backbone_spec(recipe: Recipe) -> BackboneSpec:
    """What to load as the base."""
    base = recipe.base
    prompts = base.prompts
    return BackboneSpec(
        source=base.source,
        revision=base.revision,
        local_files_only=not base.download,
        pooling=base.pooling,
        attention=base.attention,
        max_length=base.max_length,
        prompts=None if prompts is None else Prompts(query=prompts.query, document=prompts.document),
    )


def base_path(recipe: Recipe) -> Path:
    """Where the base lies, without reading its weights into memory."""
    base = recipe.base
    return resolve_source(base.source, revision=base.revision, local_files_only=not base.download)


def load_base(recipe: Recipe) -> Backbone:
    """The untouched base."""
    return load_backbone(backbone_spec(recipe))


def base_name(recipe: Recipe) -> str:
    """How the base is called on the card."""
    return recipe.base.name or recipe.base.source
