"""Training of all weights: which they are, the folder they are saved to, and their change by training."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from stm_retriever.errors import MergeError, ModelFolderError
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone


def train_all_weights(backbone: Backbone) -> None:
    """Make every weight on the way to a vector trainable.

    The pooler head of BERT's family is not on it and stays as it is.
    """
    for name, value in backbone.model.named_parameters():
        value.requires_grad_(name.split(".")[0] != "pooler")


def save_model(backbone: Backbone, folder: Path) -> None:
    """Save weights, tokenizer, pooling and prompts as a folder that sentence-transformers and we can load.

    The folder appears whole or not at all.

    Args:
        backbone: The trained model, without adapter.
        folder: Where to save; an older folder of that name is replaced.
    """
    from stm_training.export.checkpoint import write_checkpoint
    from stm_training.export.layout import write_layout

    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_checkpoint(backbone, fresh)
        write_layout(
            fresh,
            prompts=backbone.prompts,
            pooling=backbone.pooling,
            dimension=backbone.dimension,
            max_length=backbone.max_length,
        )
        fresh.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def full_weight_deltas(model_dir: Path, base: Backbone) -> dict[str, Tensor]:
    """The change of each weight of a fully trained model, as :func:`~.lora.full_deltas` gives an adapter's.

    Args:
        model_dir: Folder that :func:`save_model` wrote.
        base: The backbone that it was trained from, without an adapter attached.

    Returns:
        Name of a parameter of ``base.model`` -> its change, float32 on the CPU; weights that are not trained
        (a pooler head) are left out.

    Raises:
        ModelFolderError: If the folder is missing or damaged.
        MergeError: If it does not fit the base.
    """
    if not (model_dir / "config.json").is_file():
        message = f"{model_dir} holds no trained model (no config.json). Train it again with: stm-train run"
        raise ModelFolderError(message)
    trained = dict(load_backbone(BackboneSpec(str(model_dir))).model.named_parameters())
    weights = dict(base.model.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    odd = sorted(
        name
        for name in shapes.keys() | trained.keys()
        if name not in trained or tuple(trained[name].shape) != shapes.get(name)
    )
    if odd:
        theirs = tuple(trained[odd[0]].shape) if odd[0] in trained else "no such weight"
        message = (
            f"The model {model_dir} differs from the base {base.spec.source} in {len(odd)} weights' shapes: "
            f"{odd[0]} is {theirs} there and {shapes.get(odd[0], 'no such weight')} in the base. Use the "
            f"base that it was trained from."
        )
        raise MergeError(message)
    with torch.no_grad():
        return {
            name: trained[name].float().cpu() - value.float().cpu()
            for name, value in weights.items()
            if name.split(".")[0] != "pooler"
        }
