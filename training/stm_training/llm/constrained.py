"""Decoding that cannot leave a JSON schema, through llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stm_retriever.errors import LLMError, require

if TYPE_CHECKING:
    import torch

_CLOSING = frozenset(b'"]}')
_SPARE = 16  # tokens, beyond what a schema's own keys take, kept to bring an answer to its end


class JsonGrammar:
    """Makes logits processors for one model; the costly part, reading the tokenizer, is done once.

    Args:
        tokenizer: A fast tokenizer of transformers.
        vocabulary: Width of the model's logits, which may be more than the tokenizer's size.
        eos_token_ids: What ends an answer.

    Raises:
        MissingExtraError: If llguidance is not installed.
        LLMError: If llguidance does not know this kind of tokenizer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, eos_token_ids: Sequence[int]) -> None:
        self._guidance = require("llguidance", extra="train", purpose="JSON from a model in this process")
        hf = require("llguidance.hf", extra="train", purpose="JSON from a model in this process")
        self.eos_token_ids = tuple(eos_token_ids)
        try:
            self.tokens = hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(eos_token_ids))
        except ValueError as error:
            message = (
                f"llguidance cannot read this model's tokenizer ({str(error)[:120]}), so its JSON cannot be "
                "guaranteed. Set constrained to false: answers are then parsed and, if unusable, asked again."
            )
            raise LLMError(message) from error
        self._texts: list[bytes] | None = None

    def processor(self, schema: Mapping[str, Any], max_tokens: int) -> JsonProcessor:
        """A processor for one answer of at most ``max_tokens`` tokens."""
        # Without this a model may write white space for ever.
        strict = {**schema, "x-guidance": {"whitespace_flexible": False}}
        grammar = self._guidance.LLMatcher.grammar_from_json_schema(strict)
        matcher = self._guidance.LLMatcher(self.tokens, grammar, log_level=0)
        if matcher.is_error():
            message = (
                f"llguidance cannot follow the JSON schema ({matcher.get_error()[:200]}). Simplify "
                "the schema, or load the model without constrained decoding."
            )
            raise LLMError(message)
        return JsonProcessor(self, matcher, max_tokens, reserve=_SPARE + len(json.dumps(_names_in(schema))))

    def text(self, token: int) -> bytes:
        """A token's bytes."""
        if self._texts is None:
            self._texts = [self.tokens.decode_bytes([one]) for one in range(self.tokens.vocab_size)]
        return self._texts[token]


class JsonProcessor:
    """A logits processor (transformers' call signature) for a batch of one row.

    When only the reserve is left of the answer's tokens, it picks what closes the JSON itself: an answer
    that was cut off in the middle of a string would be lost.

    Args:
        grammar: Tokens and their texts.
        matcher: llguidance's state.
        max_tokens: Longest answer.
        reserve: Tokens kept for the end.
    """

    def __init__(self, grammar: JsonGrammar, matcher: Any, max_tokens: int, *, reserve: int) -> None:
        self._grammar = grammar
        self._matcher = matcher
        self._left = max_tokens
        self._reserve = reserve
        self._seen: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Forbid what the schema does not allow.

        Args:
            input_ids: int64 (1, length): prompt and what was written so far.
            scores: float (1, vocabulary).

        Returns:
            float (1, vocabulary), ``-inf`` for what is forbidden.
        """
        if self._seen is not None:
            for token in input_ids[0, self._seen :].tolist():
                self._matcher.consume_token(token)
                self._left -= 1
        self._seen = input_ids.shape[1]
        allowed = self._allowed(scores.shape[1])
        if self._left <= self._reserve:
            allowed = np.array([self._closing(allowed)])
        keep = scores.new_full(scores.shape, float("-inf"))
        keep[0, allowed] = scores[0, allowed]
        return keep

    def _allowed(self, width: int) -> np.ndarray[Any, Any]:
        """Ids of the tokens that may come next."""
        if self._matcher.is_error():
            message = f"llguidance lost the JSON schema: {self._matcher.get_error()[:200]}"
            raise LLMError(message)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.flatnonzero(np.unpackbits(bits, bitorder="little")[:width])

    def _closing(self, allowed: np.ndarray[Any, Any]) -> int:
        """The token that brings the answer nearest to its end."""
        ids = [int(token) for token in allowed]
        for eos in self._grammar.eos_token_ids:
            if eos in ids:
                return eos
        closing = [token for token in ids if self._closes(token)]
        # Where nothing closes, the keys that are still required come next: the longest stretch of them.
        return max(closing or ids, key=lambda token: len(self._grammar.text(token)))

    def _closes(self, token: int) -> bool:
        text = self._grammar.text(token)
        return bool(text) and set(text) <= _CLOSING


def _names_in(schema: Any) -> list[str]:
    """All keys that a schema speaks of, at any depth."""
    if isinstance(schema, Mapping):
        found = list(schema.get("properties", {})) if isinstance(schema.get("properties"), Mapping) else []
        return found + [name for value in schema.values() for name in _names_in(value)]
    if isinstance(schema, (list, tuple)):
        return [name for value in schema for name in _names_in(value)]
    return []
