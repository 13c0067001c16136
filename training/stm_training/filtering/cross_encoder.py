"""A cross-encoder from transformers: query and passage read together, one relevance score out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, ModelFolderError, require
from stm_retriever.tokenization import token_budget_batches

_PURPOSE = "the reranker filter"
_LONGEST = 512  # where neither the caller nor the tokenizer says what the model can read


class CrossEncoder:
    """Scores (query, passage) pairs with a sequence-classification model.

    One label: its logit. Two labels: the logit of label 1 over that of label 0 (monoBERT's layout). Code
    from the model's folder is never run, nothing is downloaded.

    Args:
        model: Folder, or a hub name that the cache holds.
        max_length: Tokens per query and passage together; the passage is cut. ``None``: the model's own.
        token_budget: Padded tokens of a forward pass.

    Raises:
        ModelFolderError: If the folder holds no such model.
        ConfigError: If the model has more than two labels.
        MissingExtraError: If torch or transformers is not installed.
    """

    def __init__(self, model: str, *, max_length: int | None = None, token_budget: int = 8192) -> None:
        self._torch = require("torch", extra="train", purpose=_PURPOSE)
        transformers = require("transformers", extra="train", purpose=_PURPOSE)
        try:
            config = transformers.AutoConfig.from_pretrained(model, local_files_only=True)
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
            _check_is_cross_encoder(model, config)
            self._model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
                model, local_files_only=True, dtype=self._torch.float32
            )
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            message = (
                f"{model} cannot be read as a cross-encoder ({error}). Name a folder that transformers' "
                "AutoModelForSequenceClassification loads, for instance a downloaded "
                "cross-encoder/ms-marco-MiniLM-L6-v2."
            )
            raise ModelFolderError(message) from error
        self._model.eval()
        self._max_length = max_length or min(self._tokenizer.model_max_length, _LONGEST)
        self._token_budget = token_budget

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Relevance of each pair, (n,); texts of like length are scored together, the order is kept."""
        scores = np.zeros(len(pairs), dtype=np.float32)
        if not pairs:
            return scores
        queries, passages = [query for query, _ in pairs], [passage for _, passage in pairs]
        encoded = self._tokenizer(queries, passages, truncation="longest_first", max_length=self._max_length)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        for batch in token_budget_batches(lengths, self._token_budget):
            rows = {name: [values[index] for index in batch] for name, values in encoded.items()}
            inputs = self._tokenizer.pad(rows, return_tensors="pt")
            with self._torch.inference_mode():
                logits = self._model(**inputs).logits.float()
            relevance = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
            scores[batch] = relevance.numpy()
        return scores


def _check_is_cross_encoder(model: str, config: Any) -> None:
    """Refuse a classifier of many labels, and a model whose scoring head would be random."""
    architectures = list(getattr(config, "architectures", None) or [])
    if architectures and not any("SequenceClassification" in name for name in architectures):
        message = (
            f"{model} is a {', '.join(architectures)}: it has no scoring head, and one with random weights "
            "would drop pairs at random. Name a cross-encoder (AutoModelForSequenceClassification)."
        )
        raise ConfigError(message)
    if config.num_labels > 2:
        message = (
            f"{model} has {config.num_labels} labels; a cross-encoder for reranking has one (a score) or two "
            "(not relevant, relevant). Name another model."
        )
        raise ConfigError(message)
