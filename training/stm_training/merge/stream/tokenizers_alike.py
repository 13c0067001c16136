"""Whether two folders cut texts into the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stm_training.merge.stream.folders import read_json

_JSON = "tokenizer.json"
# Of tokenizers without the file above, in the order of what says most.
_OTHERS = (
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_STEPS = ("normalizer", "pre_tokenizer", "post_processor")


def tokenizer_difference(base: Path, member: Path) -> str | None:
    """Say how a member's tokenizer differs from the base's.

    Truncation, padding and the order of keys do not count: they are set anew by whoever loads the folder.

    Args:
        base: The base's model folder.
        member: The member's.

    Returns:
        What differs, or ``None``; also where a folder brings no tokenizer, as training checkpoints may.

    Raises:
        ModelFolderError: If a ``tokenizer.json`` is not valid.
    """
    left, right = base / _JSON, member / _JSON
    if left.is_file() and right.is_file():
        same = left.read_bytes() == right.read_bytes()
        return None if same else _compare(read_json(left), read_json(right))
    for name in _OTHERS:
        left, right = base / name, member / name
        if left.is_file() and right.is_file() and left.read_bytes() != right.read_bytes():
            return f"{name} holds other bytes"
    return None


def _compare(base: dict[str, Any], member: dict[str, Any]) -> str | None:
    left, right = _vocabulary(base), _vocabulary(member)
    if left != right:
        names = sorted(token for token in left.keys() | right.keys() if left.get(token) != right.get(token))
        shown = ", ".join(f"{token!r}: {left.get(token)} and {right.get(token)}" for token in names[:3])
        return (
            f"the vocabularies have {len(left)} and {len(right)} tokens, {len(names)} with another id or "
            f"none ({shown})"
        )
    for part, one, other in (
        ("merges", _merges(base), _merges(member)),
        ("model", _model(base), _model(member)),
        *((step, _plain(base.get(step)), _plain(member.get(step))) for step in _STEPS),
    ):
        if one != other:
            return f"the {part} differs: {_short(one)} and {_short(other)}"
    return None


def _vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # unigram: pairs of token and score, which is compared as well
        tokens = {f"{token} {score}": place for place, (token, score) in enumerate(vocabulary)}
    else:
        tokens = dict(vocabulary)
    added = {item["content"]: item["id"] for item in tokenizer.get("added_tokens", [])}
    return tokens | added


def _merges(tokenizer: dict[str, Any]) -> list[tuple[str, ...]]:
    # "a b" in older files, ["a", "b"] in newer ones
    merges = tokenizer.get("model", {}).get("merges") or []
    return [tuple(item.split(" ")) if isinstance(item, str) else tuple(item) for item in merges]


def _model(tokenizer: dict[str, Any]) -> Any:
    settings = dict(tokenizer.get("model", {}))
    for key in ("vocab", "merges"):
        settings.pop(key, None)
    return _plain(settings)


def _plain(value: Any) -> Any:
    """Without what says the same as leaving it out; releases of the library differ in that."""
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, False, "", [], {})}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
