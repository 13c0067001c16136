"""Load the bare transformers model of a folder, and what its configuration says about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from stm_retriever.errors import ModelFolderError
from stm_training.finetune.attention import position_offset


def read_config(folder: Path) -> Any:
    """Read ``config.json``.

    Raises:
        ModelFolderError: If it is missing, unknown to transformers, or not of a text encoder or decoder.
    """
    if not (folder / "config.json").is_file():
        message = (
            f"{folder} has no config.json, so it is no transformers model. "
            f"Give a folder with config.json, model.safetensors and tokenizer.json."
        )
        raise ModelFolderError(message)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        message = (
            f"transformers cannot read {folder / 'config.json'}: {error} Models that bring their own code "
            f"are never run; use one whose architecture transformers knows."
        )
        raise ModelFolderError(message) from error
    if getattr(config, "is_encoder_decoder", False) or hasattr(config, "vision_config"):
        message = (
            f"{folder} is a {config.model_type} model; only plain text encoders and decoders can become "
            f"retrievers. Use one of those (BERT, ModernBERT, XLM-R, Qwen3, Llama, Gemma, ... families)."
        )
        raise ModelFolderError(message)
    return config


def is_encoder(config: Any) -> bool:
    """Whether the architecture is trained by filling in masked tokens, as opposed to the next token."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def load_text_model(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """Load the weights into the model without a head.

    Raises:
        ModelFolderError: If there are no safetensors weights, or they do not fill the model.
    """
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": _attention_code(config)}
    try:
        with _quiet_transformers():
            model, report = AutoModel.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,  # never pickled weights
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        message = (
            f"The weights in {folder} cannot be loaded: {error} The folder needs model.safetensors "
            f"(pickled weights are not read)."
        )
        raise ModelFolderError(message) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        message = (
            f"{folder} lacks {len(missing)} weights of its {config.model_type} model, for instance "
            f"{missing[:3]}; they would be random. Copy or download the model again."
        )
        raise ModelFolderError(message)
    return model.eval()


def most_tokens(model: Any) -> int | None:
    """How many tokens the model has positions for, or ``None`` if it does not say."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return None if positions is None else int(positions) - position_offset(model)


def _attention_code(config: Any) -> str:
    model_class: type[nn.Module] | None = AutoModel._model_mapping.get(type(config), None)
    # Gemma 2 caps its attention logits, which the fused kernel cannot.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) and not capped else "eager"


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the load report about heads that we do not use; what matters to us is checked."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
