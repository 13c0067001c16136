"""The members of a merge as changes of the base, computed for the piece at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stm_retriever.errors import MergeError
from stm_training.merge.stream.folders import AdapterFolder, ModelFolder
from stm_training.merge.stream.naming import find_target
from stm_training.merge.stream.pieces import Piece
from stm_training.merge.stream.room import Room
from stm_training.merge.stream.tensor_files import Stored, TensorFiles

_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# Settings of PEFT that make an update other than scale * B A.
_UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
)


class Member(Protocol):
    """One member; parameters go by their names in the bare model."""

    @property
    def name(self) -> str:
        """The member's name in the recipe."""

    @property
    def tensors(self) -> TensorFiles:
        """What it reads from."""

    def touches(self, key: str) -> bool:
        """Whether it may differ from the base there."""

    def read(self, key: str, piece: Piece, base: Tensor, room: Room) -> tuple[Tensor, Tensor | None]:
        """Its change of the base, and itself where that is exact; both float32, of the base's shape.

        They may lie in ``room``, and are overwritten by the next call with the same one.
        """


@dataclass(frozen=True)
class FullMember:
    """A member with all of its weights."""

    folder: ModelFolder

    @property
    def name(self) -> str:
        """The member's name in the recipe."""
        return self.folder.name

    @property
    def tensors(self) -> TensorFiles:
        """Its weights."""
        return self.folder.tensors

    def touches(self, key: str) -> bool:
        """Whether it has the parameter; without a head it leaves the base's alone."""
        return key in self.folder.names.stored

    def read(self, key: str, piece: Piece, base: Tensor, room: Room) -> tuple[Tensor, Tensor | None]:
        """See :class:`Member`."""
        own = room.copy(self.tensors.read(self.folder.names.stored[key], piece))
        return torch.sub(own, base, out=room.empty(base.shape)), own


@dataclass(frozen=True)
class AdapterMember:
    """A LoRA adapter, multiplied out for the rows at hand.

    The product is summed in float64 and rounded once, so that the size of a piece does not change its bits.

    Attributes:
        folder: The adapter.
        targets: Bare name of a parameter -> name of its factors without ``.lora_A.weight``.
        scale: Factor on the product.
        transposed: Whether the parameter is stored (in, out).
    """

    folder: AdapterFolder
    targets: dict[str, str]
    scale: float
    transposed: bool

    @property
    def name(self) -> str:
        """The member's name in the recipe."""
        return self.folder.name

    @property
    def tensors(self) -> TensorFiles:
        """Its factors."""
        return self.folder.tensors

    def touches(self, key: str) -> bool:
        """Whether it has factors for the parameter."""
        return key in self.targets

    def read(self, key: str, piece: Piece, base: Tensor, room: Room) -> tuple[Tensor, Tensor | None]:
        """See :class:`Member`."""
        down = self.tensors.whole(self.targets[key] + _DOWN)  # (rank, in)
        up = self.tensors.whole(self.targets[key] + _UP)  # (out, rank)
        left, right = (down.T, up.T) if self.transposed else (up, down)
        row, *column = piece.index
        rows = slice(row, row + 1) if isinstance(row, int) else row
        right = right[:, column[0]] if column else right
        change = (left[rows].double() @ right.double()) * self.scale
        return change.to(torch.float32).reshape(base.shape), None


def adapter_member(folder: AdapterFolder, base: ModelFolder) -> AdapterMember:
    """Match an adapter's factors with the base's parameters.

    Raises:
        MergeError: If it is no plain LoRA, or changes parameters that the base lacks or has in another shape.
    """
    _refuse_other_kinds(folder)
    config, stored = folder.config, folder.tensors.stored
    modules = sorted(name.removesuffix(_DOWN) for name in stored if name.endswith(_DOWN))
    expected = {module + end for module in modules for end in (_DOWN, _UP)}
    if not modules or expected != set(stored):
        odd = sorted(expected ^ set(stored))
        message = (
            f"Member {folder.name!r} ({folder.path}) holds {len(odd)} tensors that are no pair of LoRA "
            f"factors of a linear layer, for instance {odd[:3]}; leaving them out would make another model. "
            f"Merge it into its base with PEFT and use that folder as the member."
        )
        raise MergeError(message)
    transposed = bool(config.get("fan_in_fan_out"))
    targets: dict[str, str] = {}
    wrong: list[str] = []
    for module in modules:
        name = module.removeprefix(_PREFIX) + ".weight"
        key = find_target(name, base.names.stored)
        shape = _product_shape(stored[module + _UP], stored[module + _DOWN], transposed=transposed)
        found = None if key is None else base.stored(key)
        if key is None or found is None or found.shape != shape:
            wrong.append(f"{name} {shape} (base: {'none' if found is None else found.shape})")
        else:
            targets[key] = module
    if wrong:
        message = (
            f"Member {folder.name!r} ({folder.path}) changes {len(wrong)} of {len(modules)} weights that the "
            f"base {base.path} lacks or has in another shape: {'; '.join(wrong[:3])}. It was trained on "
            f"{config.get('base_model_name_or_path')}; give that model as the base."
        )
        raise MergeError(message)
    divisor = float(config["r"]) ** (0.5 if config.get("use_rslora") else 1.0)
    return AdapterMember(folder, targets, float(config["lora_alpha"]) / divisor, transposed)


def _product_shape(up: Stored, down: Stored, *, transposed: bool) -> tuple[int, ...] | None:
    if len(up.shape) != 2 or len(down.shape) != 2 or up.shape[1] != down.shape[0]:
        return None
    shape = (up.shape[0], down.shape[1])
    return shape[::-1] if transposed else shape


def _refuse_other_kinds(folder: AdapterFolder) -> None:
    config = folder.config
    used = [key for key in _UNSUPPORTED if config.get(key)]
    missing = [key for key in ("r", "lora_alpha") if not isinstance(config.get(key), int | float)]
    if config.get("peft_type") != "LORA" or used or missing or config.get("bias", "none") != "none":
        found = ", ".join(used) or ("no " + ", ".join(missing) if missing else f"bias {config.get('bias')}")
        message = (
            f"Member {folder.name!r} ({folder.path}) is a {config.get('peft_type')} adapter with {found}; "
            f"only plain LoRA can be multiplied out. Merge it into its base with PEFT and use that folder."
        )
        raise MergeError(message)
