"""What is looked at before a retriever folder leaves this machine: card, files, secrets, sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from stm_retriever.errors import ConfigError, DataError, ModelFolderError
from stm_retriever.folder import read_manifest

CARD = "README.md"
NOT_PUSHED = ("stage.json",)
"""Of ours, and of no use to anybody else: the record of a run's stage."""

LARGEST = 50_000_000_000  # bytes of one file that the hub takes
_LOOKED_INTO = 4_000_000  # bytes of a text file that are searched for secrets
_BINARY = (".onnx", ".onnx_data", ".safetensors", ".bin", ".faiss", ".data")
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".bin")
_SECRET_NAMES = re.compile(
    r"(^|/)(\.env.*|\.netrc|\.git|\.ssh|id_(rsa|ed25519).*|.*\.(pem|key|p12|pfx)|.*credentials.*)(/|$)"
)
_SECRETS = {
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{30,}"),
    "an OpenAI-like key": re.compile(rb"\bsk-[A-Za-z0-9_-]{20,}"),
    "an AWS key": re.compile(rb"\bAKIA[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{30,}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}


def check_folder(folder: Path) -> list[Path]:
    """Look at everything that would be uploaded; nothing is sent.

    Args:
        folder: A retriever folder.

    Returns:
        The files, relative to the folder, sorted.

    Raises:
        ModelFolderError: If it is no retriever folder.
        DataError: For a card that the hub would refuse.
        ConfigError: For a file that must not leave: a secret, a pickle, a link, or one that is too large.
    """
    read_manifest(folder)
    files = [path for path in sorted(_files(folder)) if path.name not in NOT_PUSHED]
    for path in files:
        _check_file(folder, path)
    check_card(folder / CARD)
    return [path.relative_to(folder) for path in files]


def check_card(path: Path) -> None:
    """Check a model card's metadata as far as that goes without the hub.

    Raises:
        ModelFolderError: If there is no card.
        DataError: If its metadata are missing, are no YAML, or lack what a reader of the hub goes by.
    """
    from huggingface_hub import ModelCard

    if not path.is_file():
        message = (
            f"{path} is missing: without a card nobody knows how to use the model. Run: stm-train export"
        )
        raise ModelFolderError(message)
    try:
        data = ModelCard.load(path).data.to_dict()
    except (ValueError, OSError, TypeError) as error:  # its YAML errors are ValueErrors
        message = f"The metadata of {path} cannot be read, so the hub would refuse them: {error}"
        raise DataError(message) from error
    except Exception as error:  # of the YAML library that it happens to use
        message = f"The metadata of {path} are no YAML, so the hub would refuse them: {error}"
        raise DataError(message) from error
    missing = [key for key in ("library_name", "pipeline_tag", "tags") if not data.get(key)]
    if missing:
        message = (
            f"{path} lacks {', '.join(missing)} in its metadata, so the hub could not say what the model is "
            f"for. Write the card anew with: stm-train export"
        )
        raise DataError(message)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_symlink():
            message = (
                f"{path} is a link; what it leads to may be anything. Replace it by a copy, or remove it."
            )
            raise ConfigError(message)
        if path.is_file():
            yield path


def _check_file(folder: Path, path: Path) -> None:
    name, size = path.relative_to(folder).as_posix(), path.stat().st_size
    if _SECRET_NAMES.search(name):
        message = f"{name} looks like a secret by its name, so nothing was uploaded. Move it out of {folder}."
        raise ConfigError(message)
    if path.suffix in _PICKLES:
        message = (
            f"{name} is of a kind that holds pickles ({path.suffix}), which run code when they are loaded, "
            f"and the folder needs none. Move it out of {folder}."
        )
        raise ConfigError(message)
    if size > LARGEST:
        message = (
            f"{name} has {size} bytes; the hub takes at most {LARGEST}. Export with smaller weight files."
        )
        raise ConfigError(message)
    if path.suffix in _BINARY:
        return
    with path.open("rb") as handle:
        content = handle.read(_LOOKED_INTO)
    for what, pattern in _SECRETS.items():
        if pattern.search(content):
            message = f"{name} holds {what}, so nothing was uploaded. Take it out, and make a new one."
            raise ConfigError(message)
