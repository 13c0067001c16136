"""One tokenizer file for training and serving: ends texts with EOS, without truncation or padding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, processors

from stm_retriever.errors import ModelFolderError

# Tokenizers without a limit store a number like 1e30.
_NO_LIMIT = 1_000_000
_PROBES = ("a", "b c")


@dataclass(frozen=True)
class PreparedTokenizer:
    """A tokenizer as it will be saved, and the ids that matter.

    Attributes:
        json: Content of ``tokenizer.json``.
        eos_token_id: The token that ends every text, or ``None`` where last-token pooling does not need one.
        pad_token_id: The padding token; any id would do, because padding is masked.
        model_max_length: The tokenizer's own limit, if it has one.
    """

    json: str
    eos_token_id: int | None
    pad_token_id: int
    model_max_length: int | None


def prepare_tokenizer(
    folder: Path, config: Any, *, lowercase: bool, needs_eos: bool, eos: int | None = None
) -> PreparedTokenizer:
    """Read a folder's tokenizer and make its EOS explicit.

    ``add_eos_token`` in ``tokenizer_config.json`` is ignored by many fast tokenizers, so that last-token
    pooling would read an arbitrary token. Here the post-processor itself appends EOS iff it is absent.

    Args:
        folder: Folder of the tokenizer.
        config: Configuration of the model, for token ids that the tokenizer does not name.
        lowercase: Put texts in lower case first (``do_lower_case`` of sentence-transformers).
        needs_eos: Whether texts must end with EOS, as last-token pooling wants.
        eos: The EOS id, where a manifest states it.

    Raises:
        ModelFolderError: If there is no tokenizer, or an EOS is needed and none is known.
    """
    tokenizer, named = _read_tokenizer(folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if lowercase:
        steps = [normalizers.Lowercase()]
        if tokenizer.normalizer is not None:
            steps.append(tokenizer.normalizer)
        tokenizer.normalizer = normalizers.Sequence(steps)
    end = appended_token(tokenizer)
    if needs_eos and end is None:
        end = _first_known(eos, named.get("eos"), _one_id(getattr(config, "eos_token_id", None)))
        if end is None or tokenizer.id_to_token(end) is None:
            message = (
                f"Last-token pooling reads the token that ends a text, but neither the tokenizer nor the "
                f"config.json in {folder} names an EOS token that is in the vocabulary (found {end!r}). "
                f"Set eos_token in tokenizer_config.json, or use pooling 'mean'."
            )
            raise ModelFolderError(message)
        _append_token(tokenizer, end)
    pad = _first_known(
        named.get("pad"), _one_id(getattr(config, "pad_token_id", None)), end, named.get("eos"), 0
    )
    limit = named.get("limit")
    return PreparedTokenizer(
        json=tokenizer.to_str(),
        eos_token_id=end if needs_eos else None,
        pad_token_id=pad if pad is not None and pad >= 0 else 0,
        model_max_length=limit if limit is not None and limit < _NO_LIMIT else None,
    )


def appended_token(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer itself puts at the end of every text, if any."""
    ends: set[int | None] = set()
    for probe in _PROBES:
        bare = tokenizer.encode(probe, add_special_tokens=False).ids
        full = tokenizer.encode(probe).ids
        appended = bool(full) and full[-len(bare) :] != bare
        ends.add(full[-1] if appended else None)
    return ends.pop() if len(ends) == 1 else None


def _append_token(tokenizer: Tokenizer, token_id: int) -> None:
    token = str(tokenizer.id_to_token(token_id))
    ending = processors.TemplateProcessing(
        single=f"$A {token}", pair=f"$A $B {token}", special_tokens=[(token, token_id)]
    )
    before = tokenizer.post_processor
    tokenizer.post_processor = ending if before is None else processors.Sequence([before, ending])


def _read_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, int | None]]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return _convert_tokenizer(folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises the base class
        message = f"{path} is no file of the tokenizers library: {error}. Copy the model folder again."
        raise ModelFolderError(message) from error
    settings = _read_settings(folder / "tokenizer_config.json")
    named = {role: _token_id(tokenizer, settings.get(f"{role}_token")) for role in ("eos", "pad")}
    limit = settings.get("model_max_length")
    return tokenizer, {**named, "limit": int(limit) if limit is not None else None}


def _convert_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, int | None]]:
    """Let transformers build a fast tokenizer from an older vocabulary file."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        message = f"{folder} has no tokenizer.json, and none can be made from its other files: {error}"
        raise ModelFolderError(message) from error
    named = {"eos": loaded.eos_token_id, "pad": loaded.pad_token_id, "limit": int(loaded.model_max_length)}
    return tokenizer, named


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        message = f"{path} is not valid JSON ({error}). Copy the model folder again."
        raise ModelFolderError(message) from error
    return settings


def _token_id(tokenizer: Tokenizer, named: Any) -> int | None:
    """Id of a token that is stored by name or as ``{"content": name}``."""
    name = named.get("content") if isinstance(named, dict) else named
    return tokenizer.token_to_id(name) if isinstance(name, str) else None


def _one_id(value: Any) -> int | None:
    if isinstance(value, list):
        return int(value[0]) if value else None
    return None if value is None else int(value)


def _first_known(*candidates: int | None) -> int | None:
    return next((candidate for candidate in candidates if candidate is not None), None)
