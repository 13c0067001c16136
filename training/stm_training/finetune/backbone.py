"""One module that turns token ids into vectors, the same for training, parity checks and export."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stm_retriever.errors import ConfigError
from stm_retriever.folder import Prompts
from stm_retriever.tokenization import TextTokenizer
from stm_training.finetune.attention import AttentionPattern, position_ids, position_offset
from stm_training.finetune.pooling import Pooling, pool
from stm_training.finetune.source import SourceSettings, read_settings, resolve_source
from stm_training.finetune.text_model import is_encoder, load_text_model, most_tokens, read_config
from stm_training.finetune.tokenizer_json import PreparedTokenizer, prepare_tokenizer

Attention = Literal["causal", "bidirectional"]

# Where neither the recipe nor the folder says how long a text may be: the papers' training length.
_DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True)
class BackboneSpec:
    """What to load and how to read vectors from it.

    Attributes:
        source: Folder, or name on the Hugging Face hub.
        revision: Revision on the hub.
        local_files_only: Never download; a hub name must be in the local cache.
        pooling: ``auto``: the folder's own setting, else ``last`` for decoders and ``mean`` for encoders.
        attention: ``auto``: the folder's own setting, else ``causal`` for decoders.
        max_length: Tokens per text, special ones included; ``None``: the folder's own, at most 512 without.
        prompts: ``None``: those stored in the folder, if any.
    """

    source: str
    revision: str | None = None
    local_files_only: bool = True
    pooling: Literal["auto", "cls", "mean", "last"] = "auto"
    attention: Literal["auto", "causal", "bidirectional"] = "auto"
    max_length: int | None = None
    prompts: Prompts | None = None


class Backbone(nn.Module):
    """A bare transformers text model with its tokenizer, pooling and attention mode.

    Attributes:
        model: The transformers model without a head (wrapped by PEFT while an adapter is attached).
        tokenizer: Text to token ids, exactly as at serving.
        tokenizer_json: The tokenizer as a ``tokenizer.json``: appends the EOS token itself where last-token
            pooling reads it, and carries neither truncation nor padding.
        pooling: How token states become one vector.
        attention: The attention mode.
        prompts: Text before queries and documents.
        max_length: Tokens per text, special ones included.
        eos_token_id: The token that ends every text, or ``None`` where none is appended.
        pad_token_id: The padding token.
        dimension: Length of a vector.
        spec: What was asked for.
        model_type: Architecture name of transformers.
        path: The local folder that the weights came from.
    """

    def __init__(
        self,
        model: Any,
        *,
        spec: BackboneSpec,
        path: Path,
        prepared: PreparedTokenizer,
        pooling: Pooling,
        attention: Attention,
        prompts: Prompts,
        max_length: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.path = path
        self.pooling: Pooling = pooling
        self.attention: Attention = attention
        self.prompts = prompts
        self.max_length = max_length
        self.tokenizer_json = prepared.json
        self.eos_token_id = prepared.eos_token_id
        self.pad_token_id = prepared.pad_token_id
        self.dimension = int(model.config.hidden_size)
        self.model_type = str(model.config.model_type)
        self.tokenizer = TextTokenizer.from_json(
            prepared.json,
            max_length=max_length,
            eos_token_id=prepared.eos_token_id,
            pad_token_id=prepared.pad_token_id,
            prompts=prompts,
        )
        self._pattern = AttentionPattern.of(model.config, causal=attention == "causal")
        self._offset = position_offset(model)
        self._accepts = frozenset(inspect.signature(model.forward).parameters)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch; padding may lie on either side.

        Args:
            input_ids: (batch, length) int64.
            attention_mask: (batch, length) int64, 1 for tokens and 0 for padding.

        Returns:
            The last hidden states (batch, length, dimension) and the unit-length vectors (batch, dimension)
            in float32.
        """
        extra: dict[str, Any] = {}
        if "position_ids" in self._accepts:
            extra["position_ids"] = position_ids(attention_mask, self._offset)
        if "token_type_ids" in self._accepts:
            extra["token_type_ids"] = torch.zeros_like(input_ids)
        if "use_cache" in self._accepts:
            extra["use_cache"] = False
        masks = self._pattern.masks(attention_mask, self.model.dtype)
        states = self.model(input_ids=input_ids, attention_mask=masks, **extra).last_hidden_state
        pooled = pool(states, attention_mask, self.pooling)
        return states, nn.functional.normalize(pooled, dim=-1)

    def train(self, mode: bool = True) -> Backbone:
        """Switch training mode; dropout acts in adapters only.

        The frozen base has no dropout of its own to learn against, and random masks over its activations
        cost as much as its matrix products on a CPU.
        """
        super().train(mode)
        if mode:
            self.model.eval()
            for name, module in self.model.named_modules():
                if name.rpartition(".")[2] == "lora_dropout":
                    module.train()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = next(self.model.parameters()).device
        return device


def load_backbone(spec: BackboneSpec, *, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load a base model from a folder or the hub's cache.

    The weights must be safetensors; code that comes with a model is never run.

    Args:
        spec: What to load and how to read vectors from it.
        dtype: Floating type of the weights; training and export use float32.

    Returns:
        The backbone in evaluation mode.

    Raises:
        ModelFolderError: If there is no such model, or it cannot be read as a text embedder.
        ConfigError: If the spec contradicts the model.
    """
    path = resolve_source(spec.source, revision=spec.revision, local_files_only=spec.local_files_only)
    settings = read_settings(path)
    folder = path / settings.model_path
    config = read_config(folder)
    pooling = _choose_pooling(spec, settings, config)
    attention = _choose_attention(spec, settings, config)
    prepared = prepare_tokenizer(
        folder, config, lowercase=settings.lowercase, needs_eos=pooling == "last", eos=settings.eos_token_id
    )
    model = load_text_model(folder, config, dtype)
    return Backbone(
        model,
        spec=spec,
        path=path,
        prepared=prepared,
        pooling=pooling,
        attention=attention,
        prompts=spec.prompts or settings.prompts,
        max_length=_choose_max_length(spec, settings, prepared, most_tokens(model)),
    ).eval()


def _choose_pooling(spec: BackboneSpec, settings: SourceSettings, config: Any) -> Pooling:
    if spec.pooling != "auto":
        return spec.pooling
    if settings.pooling is not None:
        return settings.pooling
    return "mean" if is_encoder(config) else "last"


def _choose_attention(spec: BackboneSpec, settings: SourceSettings, config: Any) -> Attention:
    if is_encoder(config):
        if spec.attention == "causal":
            message = (
                f"attention is 'causal', but {spec.source} is an encoder ({config.model_type}), which was "
                f"trained with bidirectional attention. Use attention 'auto' or 'bidirectional'."
            )
            raise ConfigError(message)
        return "bidirectional"
    if spec.attention != "auto":
        return spec.attention
    if settings.attention is not None:
        return settings.attention
    unmasked = getattr(config, "is_causal", True) is False or getattr(
        config, "use_bidirectional_attention", False
    )
    return "bidirectional" if unmasked else "causal"


def _choose_max_length(
    spec: BackboneSpec, settings: SourceSettings, prepared: PreparedTokenizer, limit: int | None
) -> int:
    if spec.max_length is not None:
        if limit is not None and spec.max_length > limit:
            message = (
                f"max_length is {spec.max_length}, but {spec.source} has positions for {limit} tokens only. "
                f"Set max_length to {limit} or less."
            )
            raise ConfigError(message)
        if spec.max_length < 4:
            message = f"max_length is {spec.max_length}; special tokens alone take up to 3. Set 4 or more."
            raise ConfigError(message)
        return spec.max_length
    if settings.max_length is not None:
        return min(settings.max_length, limit or settings.max_length)
    known = [_DEFAULT_MAX_LENGTH, limit, prepared.model_max_length]
    return min(value for value in known if value is not None)


__all__ = ["Attention", "Backbone", "BackboneSpec", "load_backbone"]
