"""Find a base model and read the settings that its folder stores (sentence-transformers layout, ours)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stm_retriever.errors import ModelFolderError, require
from stm_retriever.folder import MANIFEST_NAME, Prompts, read_manifest
from stm_training.finetune.pooling import Pooling

# What a download takes: never pickled weights, other frameworks' weights, or code.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # jinja: a chat template
_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_POOLING_NAMES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}


@dataclass(frozen=True)
class SourceSettings:
    """What a model folder says about itself beyond its weights; ``None`` where it is silent."""

    model_path: str = ""
    pooling: Pooling | None = None
    attention: Literal["causal", "bidirectional"] | None = None
    prompts: Prompts = field(default_factory=Prompts)
    max_length: int | None = None
    lowercase: bool = False
    eos_token_id: int | None = None


def resolve_source(source: str, *, revision: str | None, local_files_only: bool) -> Path:
    """Turn a folder or a hub name into a local folder.

    Raises:
        ModelFolderError: If there is no such folder, and no such model in the cache or on the hub.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") != 1 or path.exists()
    if looks_like_path:
        message = (
            f"There is no model folder at {source}. Give a folder with config.json and model.safetensors, "
            f"or a Hugging Face name like 'organisation/name'."
        )
        raise ModelFolderError(message)
    hub = require("huggingface_hub", extra="train", purpose="finding a model by its hub name")
    try:
        return Path(
            hub.snapshot_download(
                source, revision=revision, local_files_only=local_files_only, allow_patterns=_WANTED
            )
        )
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        where = "the local Hugging Face cache" if local_files_only else "the Hugging Face hub"
        remedy = "allow a download (base.download: true)" if local_files_only else "check name and revision"
        message = (
            f"{source!r} (revision {revision or 'main'}) is neither a folder nor in {where}: "
            f"{type(error).__name__}. Give a local folder, or {remedy}."
        )
        raise ModelFolderError(message) from error


def read_settings(folder: Path) -> SourceSettings:
    """Read pooling, prompts, attention and lengths from a folder.

    A retriever folder of ours says everything in its manifest; a sentence-transformers folder in
    ``modules.json`` and the files that it names; a plain transformers folder says nothing.

    Raises:
        ModelFolderError: If the folder asks for something that we cannot do: its vectors would differ.
    """
    if (folder / MANIFEST_NAME).is_file():
        manifest = read_manifest(folder)
        return SourceSettings(
            pooling=manifest.pooling,
            attention=manifest.attention,
            prompts=manifest.prompts,
            max_length=manifest.max_length,
            eos_token_id=manifest.eos_token_id,
        )
    if not (folder / "modules.json").is_file():
        return SourceSettings()
    modules = _modules(folder)
    transformer = modules["Transformer"]
    lengths = _read_json(folder / transformer / "sentence_bert_config.json", missing={})
    prompts = _prompts(folder)
    pooling = _pooling(folder / modules["Pooling"] / "config.json", prompts) if "Pooling" in modules else None
    return SourceSettings(
        model_path=transformer,
        pooling=pooling,
        prompts=prompts,
        max_length=lengths.get("max_seq_length"),
        lowercase=bool(lengths.get("do_lower_case", False)),
    )


def _modules(folder: Path) -> dict[str, str]:
    listed = _read_json(folder / "modules.json")
    modules = {str(entry["type"]).rpartition(".")[2]: str(entry.get("path", "")) for entry in listed}
    unknown = sorted(set(modules) - {"Transformer", "Pooling", "Normalize"})
    if unknown or "Transformer" not in modules:
        message = (
            f"{folder / 'modules.json'} lists the modules {sorted(modules)}; only Transformer, Pooling and "
            f"Normalize can be reproduced, so the vectors would differ. Use a base without {unknown}."
        )
        raise ModelFolderError(message)
    return modules


def _pooling(path: Path, prompts: Prompts) -> Pooling:
    config = _read_json(path)
    if not config.get("include_prompt", True) and (prompts.query or prompts.document):
        message = (
            f"{path} leaves the prompt's tokens out of pooling (include_prompt: false), which is not "
            f"supported: the vectors would differ. Use another base, or set its prompts to empty strings."
        )
        raise ModelFolderError(message)
    if "pooling_mode" in config:  # the schema of sentence-transformers >= 5.4
        modes = config["pooling_mode"]
        chosen = [modes] if isinstance(modes, str) else list(modes)
        known = [_POOLING_NAMES[mode] for mode in chosen if mode in _POOLING_NAMES]
    else:
        chosen = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        known = [_POOLING_FLAGS[key] for key in chosen if key in _POOLING_FLAGS]
    if len(chosen) != 1 or len(known) != 1:
        message = (
            f"{path} asks for pooling {chosen}; exactly one of cls, mean and last is supported. "
            f"Use another base."
        )
        raise ModelFolderError(message)
    return known[0]


def _prompts(folder: Path) -> Prompts:
    stored = _read_json(folder / "config_sentence_transformers.json", missing={}).get("prompts") or {}
    document = next((stored[key] for key in ("document", "passage", "corpus") if stored.get(key)), "")
    return Prompts(query=stored.get("query") or "", document=document)


def _read_json(path: Path, *, missing: Any = None) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if missing is not None:
            return missing
        message = f"{path} is missing, so the model folder is incomplete. Copy or download the folder again."
        raise ModelFolderError(message) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        message = f"{path} is not valid JSON ({error}). Copy or download the model folder again."
        raise ModelFolderError(message) from error
