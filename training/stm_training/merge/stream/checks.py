"""Refuse members that are not of one kind with the base, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stm_retriever.errors import ConfigError, MergeError
from stm_training.merge.stream.folders import AdapterFolder, ModelFolder
from stm_training.merge.stream.tokenizers_alike import tokenizer_difference

# What changes a vector although the weights have the same names and shapes. Shapes come last: they are
# compared tensor by tensor, but "vocab_size 400 and 500" says more than a list of them.
_ARCHITECTURE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "position_embedding_type",
    "layer_types",
    "sliding_window",
    "rope_theta",
    "type_vocab_size",
)
_SHOWN = 5


def check_model(base: ModelFolder, member: ModelFolder) -> list[str]:
    """Compare a full member with the base.

    Returns:
        What is worth saying although it is allowed.

    Raises:
        MergeError: If the architecture, the tokenizer, the pooling or the tensors differ.
    """
    _check_architecture(base, member)
    check_tokenizer(base, member.name, member.model)
    _check_pooling(base, member)
    return _check_tensors(base, member)


def check_adapter(base: ModelFolder, member: AdapterFolder) -> None:
    """Compare what an adapter's folder brings beside its factors with the base.

    Raises:
        MergeError: If it brings another tokenizer.
    """
    check_tokenizer(base, member.name, member.path)


def _check_architecture(base: ModelFolder, member: ModelFolder) -> None:
    left, right = base.config, member.config
    known = [
        key for key in _ARCHITECTURE if key in left and key in right
    ]  # releases differ in what they write
    differing = [f"{key} {left[key]} and {right[key]}" for key in known if left[key] != right[key]]
    if _unmasked(left) != _unmasked(right):
        names = {True: "bidirectional", False: "causal"}
        differing.append(f"attention {names[_unmasked(left)]} and {names[_unmasked(right)]}")
    if differing:
        message = (
            f"The base {base.path} and member {member.name!r} ({member.path}) are different models: "
            f"{'; '.join(differing[:_SHOWN])}. Weights can be merged only between models of one "
            f"architecture that were trained from one base."
        )
        raise MergeError(message)


def _unmasked(config: dict[str, Any]) -> bool:
    return config.get("is_causal") is False or bool(config.get("use_bidirectional_attention"))


def check_tokenizer(base: ModelFolder, name: str, folder: Path) -> None:
    """Compare the tokenizer in a member's folder, if there is one, with the base's.

    Raises:
        MergeError: If it differs.
    """
    difference = tokenizer_difference(base.model, folder)
    if difference is not None:
        message = (
            f"The tokenizers of the base {base.path} and of member {name!r} ({folder}) differ: {difference}. "
            f"A row of the embedding would stand for different tokens, or texts would end differently. Use "
            f"members of one base; where only the end of the text differs, export the base first (stm-train "
            f"export) and give that folder as the base."
        )
        raise MergeError(message)


def _check_pooling(base: ModelFolder, member: ModelFolder) -> None:
    for what, left, right in (
        ("pooling", base.settings.pooling, member.settings.pooling),
        ("lower-casing", *(_lowercase(folder) for folder in (base, member))),
    ):
        if left is not None and right is not None and left != right:
            message = (
                f"The base {base.path} has {what} {left}, member {member.name!r} ({member.path}) has "
                f"{right}; a mean of their weights was trained for neither. Merge models that read vectors "
                f"the same way."
            )
            raise MergeError(message)


def _lowercase(folder: ModelFolder) -> bool | None:
    return folder.settings.lowercase if folder.has_layout else None


def _check_tensors(base: ModelFolder, member: ModelFolder) -> list[str]:
    left, right = base.names, member.names
    heads = left.heads | right.heads
    missing = sorted(left.stored.keys() - right.stored.keys())
    extra = sorted(right.stored.keys() - left.stored.keys())
    gone = [name for name in missing if _needed(base, name, heads)]
    added = [name for name in extra if _needed(member, name, heads)]
    shapes = [
        f"{key} {one.shape} and {other.shape}"
        for key in left.stored
        if (one := base.stored(key)) and (other := member.stored(key)) and one.shape != other.shape
    ]
    if gone or added or shapes:
        found = [
            f"{len(items)} {what}: {', '.join(items[:_SHOWN])}"
            for what, items in (("missing", gone), ("extra", added), ("of another shape", shapes))
            if items
        ]
        message = (
            f"Member {member.name!r} ({member.path}) does not have the tensors of the base {base.path} - "
            f"{'; '.join(found)}. They are different models, or the folder is incomplete. Use members that "
            f"were trained from this base."
        )
        raise MergeError(message)
    notes = []
    if missing:
        notes.append(f"{member.name} lacks {_listed(missing)}: the base's numbers stand in for its own")
    if extra:
        notes.append(f"{member.name} has {_listed(extra)}, which the base lacks: left out")
    return notes


def _needed(folder: ModelFolder, key: str, heads: frozenset[str]) -> bool:
    """Whether a vector depends on it; heads, poolers and buffers (position ids) come and go with releases."""
    stored = folder.stored(key)
    tied = key == "lm_head.weight" and bool(folder.config.get("tie_word_embeddings", True))
    return not (key in heads or tied or key.startswith("pooler.") or stored is None or not stored.is_float)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


def settings_folder(
    base: ModelFolder, members: Sequence[ModelFolder], prompts_from: str | None
) -> tuple[ModelFolder, list[str]]:
    """Choose whose prompts, pooling files and lengths the merged folder gets.

    Args:
        base: The base.
        members: The full members.
        prompts_from: ``base``, a member's name, or ``None`` to refuse where they differ.

    Returns:
        The folder to copy those files from, and what is worth saying.

    Raises:
        MergeError: If prompts or poolings differ and nothing was chosen.
        ConfigError: If the choice names no full member.
    """
    speaking = [member for member in members if member.has_layout]
    _check_members_pooling(speaking)
    if prompts_from is not None:
        return _chosen([base, *members], prompts_from), []
    different = [member for member in speaking if member.settings.prompts != base.settings.prompts]
    if different:
        shown = "; ".join(_prompts(folder) for folder in [base, *different][:_SHOWN])
        message = (
            f"The prompts differ: {shown}. The merged model would be used with prompts that some of its "
            f"members were not trained with. Choose whose it keeps: --prompts-from base, or a member's name."
        )
        raise MergeError(message)
    if speaking and not base.has_layout:
        pooling = speaking[0].settings.pooling
        note = (
            f"the base does not say how vectors are read ({speaking[0].name}: {pooling} pooling), so the "
            f"merged folder does not say it either; --prompts-from {speaking[0].name} would take its files"
        )
        return base, [note]
    return base, []


def _check_members_pooling(speaking: Sequence[ModelFolder]) -> None:
    found = {folder.settings.pooling: folder for folder in speaking if folder.settings.pooling is not None}
    if len(found) > 1:
        shown = "; ".join(f"{folder.name}: {pooling}" for pooling, folder in found.items())
        message = (
            f"The members have different pooling - {shown}; a mean of their weights was trained for none of "
            f"them. Merge models that read vectors the same way."
        )
        raise MergeError(message)


def _chosen(folders: Sequence[ModelFolder], name: str) -> ModelFolder:
    for folder in folders:
        if folder.name == name:
            return folder
    known = [folder.name for folder in folders]
    message = f"--prompts-from {name!r}: choose one of {known}, which are full model folders."
    raise ConfigError(message)


def _prompts(folder: ModelFolder) -> str:
    prompts = folder.settings.prompts
    return f"{folder.name!r} has query {prompts.query!r}, document {prompts.document!r}"
