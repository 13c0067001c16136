"""Folders to merge: a tiny base in any type and layout, members near it, adapters on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny_models import build_tiny_model

SINGLE = "model.safetensors"
PROMPTS = {"query": "find: ", "document": "text: "}


def build_base(
    folder: Path, family: str = "qwen3", *, dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    """A tiny model with prompts, its weights in ``dtype``."""
    build_tiny_model(family, folder, prompts=PROMPTS, **config)
    rewrite(folder, {name: value.to(dtype) for name, value in load_file(folder / SINGLE).items()})
    return folder


def build_member(base: Path, folder: Path, seed: int, *, size: float = 0.05) -> Path:
    """A copy of the base, every number moved a little."""
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)

    def moved(value: Tensor) -> Tensor:
        noise = size * torch.randn(value.shape, generator=generator)
        return (value.float() + noise).to(value.dtype) if value.is_floating_point() else value

    rewrite(folder, {name: moved(value) for name, value in load_file(folder / SINGLE).items()})
    return folder


def build_adapter(
    base: Path, folder: Path, seed: int, *, rank: int = 4, only: str = "proj", **config: Any
) -> Path:
    """A random LoRA adapter, as PEFT saves it, on the weights whose name holds ``only``."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, Tensor] = {}
    for name, value in load_file(base / SINGLE).items():
        if only in name and value.ndim == 2:
            module = "base_model.model." + name.removesuffix(".weight")
            factors[f"{module}.lora_A.weight"] = torch.randn(rank, value.shape[1], generator=generator)
            factors[f"{module}.lora_B.weight"] = 0.05 * torch.randn(value.shape[0], rank, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Replace a folder's weights."""
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / SINGLE, {"format": "pt"}
    )


def change_tensor(folder: Path, name: str, value: Tensor | None) -> None:
    """Replace, add or - with ``None`` - remove one tensor."""
    tensors = load_file(folder / SINGLE)
    tensors.pop(name, None)
    rewrite(folder, tensors | ({} if value is None else {name: value}))


def change_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | values), encoding="utf-8")


def shard(folder: Path, parts: int = 3) -> None:
    """Spread a folder's weights over several files with an index."""
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    mapped: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        chosen = {name: tensors[name] for name in names[part::parts]}
        save_file(chosen, folder / file, {"format": "pt"})
        mapped |= dict.fromkeys(chosen, file)
    (folder / SINGLE).unlink()
    index = {"metadata": {"total_size": 0}, "weight_map": mapped}
    (folder / f"{SINGLE}.index.json").write_text(json.dumps(index), encoding="utf-8")


def load_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, from one file or shards."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= load_file(path)
    return found
