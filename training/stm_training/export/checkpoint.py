"""Writes the weights, the configuration and the tokenizer, as any transformers release reads them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm_retriever.errors import ConfigError
from stm_training.export.layout import write_json

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone

_SHARD_SIZE = "5GB"  # the hub's limit for comfortable downloads


def write_checkpoint(backbone: Backbone, folder: Path) -> None:
    """Writes config.json, model.safetensors (float32) and the tokenizer files; the backbone stays as it is.

    The configuration names the bare model class, so that no consumer builds a language-model head. A decoder
    that attends in both directions gets ``is_causal: false``, which transformers 5 honours.

    Args:
        backbone: The model; adapters must have been merged into it.
        folder: An existing folder.

    Raises:
        ConfigError: If adapters are still attached, or a special token is not in the vocabulary.
    """
    _refuse_adapters(backbone)
    _write_weights(backbone.model, folder)
    _write_config(backbone, folder / "config.json")
    (folder / "tokenizer.json").write_text(backbone.tokenizer_json, encoding="utf-8")
    _write_tokenizer_config(backbone, folder)


def _refuse_adapters(backbone: Backbone) -> None:
    attached = sorted(name for name, _ in backbone.model.named_parameters() if ".lora_" in name)
    if attached:
        raise ConfigError(
            f"The model still carries {len(attached)} adapter tensors (the first is {attached[0]!r}). "
            "A retriever folder holds plain weights, and other programs would load it without them. "
            "Merge the adapter into the weights first, then export."
        )


@contextmanager
def _unchanged_config(model: Any) -> Iterator[None]:
    """Undoes what save_pretrained sets in the configuration of the model it saves."""
    before = copy.copy(model.config.__dict__)
    try:
        yield
    finally:
        model.config.__dict__.clear()
        model.config.__dict__.update(before)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _write_weights(model: Any, folder: Path) -> None:
    # float32, whatever the model was trained in: the vectors that the goldens and the graph hold
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    with _unchanged_config(model), _no_progress_bar():
        model.save_pretrained(folder, state_dict=state, max_shard_size=_SHARD_SIZE)
    (folder / "generation_config.json").unlink(missing_ok=True)


def _write_config(backbone: Backbone, path: Path) -> None:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("_name_or_path", "auto_map"):  # a path of this machine; code that nobody should run
        config.pop(key, None)
    config["architectures"] = [type(backbone.model).__name__]
    config["dtype"] = "float32"
    if config.get("pad_token_id") is None:
        config["pad_token_id"] = backbone.pad_token_id
    config.update(_attention_settings(backbone, config))
    write_json(path, config)


def _is_decoder(backbone: Backbone) -> bool:
    """Whether the architecture was trained on the next token, so that its own mask is causal."""
    from stm_training.finetune.text_model import is_encoder

    return not is_encoder(backbone.model.config)


def _attention_settings(backbone: Backbone, config: dict[str, Any]) -> dict[str, bool]:
    """What transformers' own forward must be told to attend as this backbone does."""
    if not _is_decoder(backbone):
        return {}
    bidirectional = backbone.attention == "bidirectional"
    # Gemma 3 has a mode of its own (EmbeddingGemma), with another window than is_causal: false would give.
    own_mode = "use_bidirectional_attention"
    if config.get(own_mode):
        return {} if bidirectional else {own_mode: False}
    if bidirectional or "is_causal" in config:
        return {"is_causal": not bidirectional}
    return {}


def _write_tokenizer_config(backbone: Backbone, folder: Path) -> None:
    """Writes settings under which transformers 4 and 5 take tokenizer.json as it is.

    A model's own tokenizer class would rebuild the tokenizer, and drop the end-of-text token again.
    """
    named: dict[str, str] = {"pad_token": _token(backbone, backbone.pad_token_id)}
    if backbone.eos_token_id is not None:
        named["eos_token"] = _token(backbone, backbone.eos_token_id)
    unknown = json.loads(backbone.tokenizer_json).get("model", {}).get("unk_token")
    if isinstance(unknown, str):
        named["unk_token"] = unknown
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": backbone.max_length,
        "padding_side": "right",  # exact for every pooling and position scheme, unlike left
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **named,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", named)  # fastembed and transformers 4 look for it


def _token(backbone: Backbone, token_id: int) -> str:
    from tokenizers import Tokenizer

    token = Tokenizer.from_str(backbone.tokenizer_json).id_to_token(token_id)
    if token is None:
        raise ConfigError(
            f"Token id {token_id} is named as a padding or end-of-text token and is not in the vocabulary. "
            "Padded batches would be wrong. Export from a folder whose tokenizer.json belongs to the model."
        )
    return str(token)
