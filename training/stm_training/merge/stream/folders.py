"""What the folders of a merge say about themselves: settings and weights, or an adapter's factors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stm_retriever.errors import ModelFolderError
from stm_retriever.folder import MANIFEST_NAME
from stm_training.finetune.source import SourceSettings, read_settings
from stm_training.merge.stream.naming import Names, bare_names
from stm_training.merge.stream.tensor_files import Stored, TensorFiles, weight_files

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LAYOUT = "modules.json"
PROMPTS_FILE = "config_sentence_transformers.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model with all of its weights, in the sentence-transformers or the plain transformers layout.

    Attributes:
        name: For messages and records: ``base``, or the member's name.
        path: The folder.
        model: The folder of the configuration and the weights: ``path``, or one inside of it.
        settings: Pooling, prompts and lengths, as far as the folder says.
        config: What its ``config.json`` holds.
        tensors: Its weights, open for reading.
        names: Their names in the bare model.
    """

    name: str
    path: Path
    model: Path
    settings: SourceSettings
    config: dict[str, Any]
    tensors: TensorFiles = field(repr=False)
    names: Names = field(repr=False)

    @property
    def has_layout(self) -> bool:
        """Whether the folder says how vectors are read: modules, pooling, prompts."""
        return (self.path / LAYOUT).is_file() or (self.path / MANIFEST_NAME).is_file()

    def stored(self, key: str) -> Stored | None:
        """A parameter by its name in the bare model."""
        name = self.names.stored.get(key)
        return None if name is None else self.tensors.stored[name]


@dataclass(frozen=True)
class AdapterFolder:
    """A LoRA adapter in PEFT's format.

    Attributes:
        name: The member's name.
        path: The folder.
        config: What ``adapter_config.json`` holds.
        tensors: The factors, open for reading.
    """

    name: str
    path: Path
    config: dict[str, Any]
    tensors: TensorFiles = field(repr=False)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter instead of a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def open_model(name: str, path: Path) -> ModelFolder:
    """Read a model folder's settings and open its weights.

    Raises:
        ModelFolderError: If something is missing or damaged, or its vectors cannot be reproduced.
    """
    if is_adapter(path):
        message = (
            f"{path} (the base) is a LoRA adapter without a model. Give the model that it was trained on as "
            f"the base, and the adapter as a member."
        )
        raise ModelFolderError(message)
    settings = read_settings(path)
    # A retriever folder's manifest does not say where the model lies; it lies at the top.
    model = path / settings.model_path
    config = read_json(model / "config.json")
    if config.get("quantization_config"):
        message = (
            f"{model / 'config.json'} describes quantised weights, whose stored numbers cannot be averaged. "
            f"Merge the model in the floating type that it was quantised from."
        )
        raise ModelFolderError(message)
    tensors = TensorFiles(weight_files(model))
    return ModelFolder(name, path, model, settings, config, tensors, bare_names(tensors.stored))


def open_adapter(name: str, path: Path) -> AdapterFolder:
    """Read an adapter's configuration and open its factors.

    Raises:
        ModelFolderError: If something is missing or damaged.
    """
    config = read_json(path / ADAPTER_CONFIG)
    weights = path / ADAPTER_WEIGHTS
    if not weights.is_file():
        message = (
            f"{path} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS} (pickled weights are never read). Save "
            f"the adapter with safe_serialization=True, or train it again with: stm-train run"
        )
        raise ModelFolderError(message)
    return AdapterFolder(name, path, config, TensorFiles([weights]))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelFolderError: If the file is missing or no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = (
            f"{path} is missing, so {path.parent} is no model folder. Give a folder with config.json and "
            f"model.safetensors, or with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}."
        )
        raise ModelFolderError(message) from error
    except (OSError, ValueError) as error:
        message = f"{path} is not valid JSON ({error}). Copy or download the folder again."
        raise ModelFolderError(message) from error
    if not isinstance(document, dict):
        message = f"{path} holds a {type(document).__name__} instead of an object. Download the folder again."
        raise ModelFolderError(message)
    return document
