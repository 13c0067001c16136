"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685, section 4.1) through PEFT, and their full deltas."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stm_retriever.errors import MergeError, ModelFolderError, TrainingError
from stm_training.finetune.backbone import Backbone

_PREFIX = "base_model.model."
# Settings of PEFT that change what a delta is; none of ours sets them, an adapter from elsewhere may.
_UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")


def attach_lora(backbone: Backbone, *, rank: int = 16, alpha: int = 32, dropout: float = 0.05) -> None:
    """Freeze the base and put a trainable low-rank update beside each of its linear layers.

    ``backbone.model`` is wrapped in place. The adapter's weights are float32 whatever the base's type, and
    its update is zero until it is trained. Seed torch beforehand to repeat it. Layers run in our own code
    (:mod:`.fast_lora`) where that computes the same, and on CPUs batches run without their padding
    (:mod:`.packing`).

    Args:
        backbone: The backbone to adapt.
        rank: Rank of the two factors (STM: 16).
        alpha: The update is scaled by alpha / rank (STM: 32).
        dropout: Dropout before the factors; random masks cost as much as matrix products on a CPU.

    Raises:
        TrainingError: If the model has no linear layer.
    """
    from peft import LoraConfig, get_peft_model

    from stm_training.finetune.fast_lora import FastLoraLinear
    from stm_training.finetune.packing import pack

    targets = _linear_layers(backbone.model)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="FEATURE_EXTRACTION"
    )
    # Where one would look for the base again; null for models that were not loaded by name.
    config.base_model_name_or_path = backbone.spec.source
    config.revision = backbone.spec.revision
    config._register_custom_module({nn.Linear: FastLoraLinear})
    with warnings.catch_warnings():
        # PEFT asks transformers for a property that its next major release renames.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        backbone.model = get_peft_model(backbone.model, config)
    for module in backbone.model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # under autocast the cast to float32 is undone at once
    pack(backbone)


def save_adapter(backbone: Backbone, folder: Path) -> None:
    """Save the attached adapter in PEFT's format; the folder appears whole or not at all.

    Args:
        backbone: A backbone with an adapter attached.
        folder: Where to save; an older folder of that name is replaced.

    Raises:
        TrainingError: If no adapter is attached.
    """
    if not hasattr(backbone.model, "peft_config"):
        message = (
            f"No adapter is attached to {backbone.spec.source}, so there is none to save. Call attach_lora."
        )
        raise TrainingError(message)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        # Embeddings are never trained here, and the check whether they were would ask the hub.
        backbone.model.save_pretrained(fresh, safe_serialization=True, save_embedding_layers=False)
        _sort_targets(fresh / "adapter_config.json")
        (fresh / "README.md").unlink(missing_ok=True)  # PEFT's unfilled template
        fresh.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _sort_targets(file: Path) -> None:
    """PEFT writes the adapted layers in the order of a set, which differs from process to process."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def full_deltas(adapter_dir: Path, base: Backbone) -> dict[str, Tensor]:
    """Multiply an adapter's factors out to the full change of each weight.

    Merging must work on these: averaging the factors A and B of several adapters separately is another,
    meaningless update, because the mean of products is not the product of means.

    Args:
        adapter_dir: Folder in PEFT's format.
        base: The backbone that the adapter belongs to, without an adapter attached.

    Returns:
        Name of a parameter of ``base.model`` -> its change, (out, in) float32 on the CPU.

    Raises:
        ModelFolderError: If the folder is missing or damaged.
        MergeError: If the adapter does not fit the base, or is of a kind that is no plain low-rank update.
    """
    config, factors = _read_adapter(adapter_dir)
    used = [key for key in _UNSUPPORTED if config.get(key)]
    if used or config.get("bias", "none") != "none" or config.get("peft_type") != "LORA":
        message = (
            f"The adapter {adapter_dir} is a {config.get('peft_type')} with {used or config.get('bias')}; "
            f"only plain LoRA can be multiplied out. Merge it with PEFT and use the merged model."
        )
        raise MergeError(message)
    divisor = float(config["r"]) ** (0.5 if config.get("use_rslora") else 1.0)
    scale = float(config["lora_alpha"]) / divisor
    shapes = {name: tuple(value.shape) for name, value in base.model.named_parameters()}
    deltas: dict[str, Tensor] = {}
    for key in sorted(name for name in factors if name.endswith(".lora_A.weight")):
        name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") + ".weight"
        down, up = factors[key].double(), factors[key.replace(".lora_A.", ".lora_B.")].double()
        # Summed in float64 and rounded once: the same numbers as a merge that is streamed block by block.
        delta = ((up @ down) * scale).float()
        if config.get("fan_in_fan_out"):
            delta = delta.T.contiguous()
        if shapes.get(name) != tuple(delta.shape):
            message = (
                f"The adapter {adapter_dir} changes {name} with shape {tuple(delta.shape)}, but the base "
                f"{base.spec.source} has {shapes.get(name, 'no such weight')}; it was trained on "
                f"{config.get('base_model_name_or_path')}. Use that base."
            )
            raise MergeError(message)
        deltas[name] = delta
    return deltas


def bake_adapter(adapter_dir: Path, base: Backbone) -> None:
    """Add an adapter's full deltas to its base in place, for good; arguments and errors as full_deltas."""
    weights = dict(base.model.named_parameters())
    with torch.no_grad():
        for name, delta in full_deltas(adapter_dir, base).items():
            weights[name].add_(delta)


def _linear_layers(model: nn.Module) -> list[str]:
    names = [
        name
        for name, module in model.named_modules()
        # The pooler head of BERT's family is not on the way to our vectors: it would get no gradient.
        if isinstance(module, _linear_kinds()) and name.split(".")[0] != "pooler"
    ]
    if not names:
        message = f"{type(model).__name__} has no linear layer to put an adapter on. Use another base model."
        raise TrainingError(message)
    return names


def _linear_kinds() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, stored transposed

    return (nn.Linear, Conv1D)


def _read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        factors = load_file(folder / "adapter_model.safetensors")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        message = (
            f"{folder} is no adapter in PEFT's format: {error} It must hold adapter_config.json and "
            f"adapter_model.safetensors; train it again with: stm-train run"
        )
        raise ModelFolderError(message) from error
    return config, factors


def adapter_state(backbone: Backbone) -> dict[str, Tensor]:
    """The trainable weights by name, as a checkpoint stores them."""
    return {name: value for name, value in backbone.named_parameters() if value.requires_grad}


def load_adapter_state(backbone: Backbone, state: dict[str, Tensor]) -> None:
    """Put back what :func:`adapter_state` returned.

    Raises:
        TrainingError: If the names are not those of the attached adapter.
    """
    trainable = adapter_state(backbone)
    if set(state) != set(trainable):
        odd = sorted(set(state) ^ set(trainable))
        message = (
            f"The checkpoint's adapter has other weights than the attached one ({len(odd)} differ, for "
            f"instance {odd[:2]}), so training cannot be resumed from it. Remove the checkpoint folder and "
            f"start again."
        )
        raise TrainingError(message)
    with torch.no_grad():
        for name, value in state.items():
            trainable[name].copy_(value)
