"""Run a model on a padded batch without the padding.

The texts are laid one after the other in a single row, the longest first, so that linear layers and norms see
no padding; attention works on blocks of texts of like length. The model's code and weights stay as they are,
and so does what it returns for the tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface

from stm_training.finetune.block_attention import Block, block_attention

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone

logger = logging.getLogger(__name__)

_NAME = "stm_blocks"
# A block's own cost (kernels that are started) in padded tokens' worth of attention.
_BLOCK_COST = 24
_FULL = "full_attention"
# What attention may be asked for beyond a mask; a model that asks is left alone.
_UNKNOWN = ("softcap", "s_aux", "position_bias")


def pack(backbone: Backbone) -> bool:
    """Make a backbone's model skip padding on CPUs, if a trial shows that its vectors stay the same.

    Batches padded on the left, on other devices, or under tracing go through the model as before, and so do
    all while modules inside of the model carry hooks: what looks on expects the model's own layout.

    Args:
        backbone: ``backbone.model`` gets hooks.

    Returns:
        Whether it skips padding now.
    """
    if backbone.device.type != "cpu":
        return False
    expected = _trial(backbone)
    packing = Packing(backbone.model.config)
    handles = packing.attach(backbone.model)
    atol = 1e-4 if backbone.model.dtype == torch.float32 else 5e-2
    try:
        same = torch.allclose(_trial(backbone), expected, atol=atol) and packing.batches == 1
    except Exception as error:  # whatever a model's code makes of attention that it does not know
        logger.debug("%s on a packed batch: %s", backbone.model_type, error)
        same = False
    if not same:
        logger.info("%s runs on padded batches: its code does not allow to skip padding", backbone.model_type)
        for handle in handles:
            handle.remove()
    return same


class BatchLayout:
    """Where the texts of a padded batch go.

    Args:
        lengths: (texts,) tokens of each text; the padding is on the right.
        width: Tokens of each text, padding included.
        masks: By kind of attention, what is added to its scores, (texts, 1, width, width).
    """

    def __init__(self, lengths: NDArray[np.int64], width: int, masks: Mapping[str, Tensor]) -> None:
        self.shape = (len(lengths), width)
        self.blocks: list[Block] = []
        # The model hands its masks on as they are, so these tell which of them a layer got.
        self.stand_ins = {kind: torch.zeros(1, 1, 1, 1) for kind in masks}
        self._masks: dict[str, list[Tensor | None]] = {kind: [] for kind in masks}
        order = np.argsort(-lengths, kind="stable")
        places, start = [], 0
        for first, last in pairwise(block_cuts(lengths[order])):
            rows, length = order[first:last], int(lengths[order[first]])
            self.blocks.append(Block(start, tuple(lengths[rows].tolist())))
            start += self.blocks[-1].tokens
            inside = np.arange(length) < lengths[rows][:, None]
            places.append((rows[:, None] * width + np.arange(length))[inside])
            for kind, mask in masks.items():
                own = mask[torch.from_numpy(rows), :, :length, :length]
                self._masks[kind].append(own if bool(own.any()) else None)
        self._places = torch.from_numpy(np.concatenate(places))

    def to_row(self, padded: Tensor) -> Tensor:
        """Bring (texts, width) into the order of the row, (1, tokens)."""
        return padded.expand(self.shape).reshape(-1)[self._places][None]

    def to_padded(self, row: Tensor) -> Tensor:
        """Bring (1, tokens, dimension) back to (texts, width, dimension); padding is 0."""
        flat = row.new_zeros(self.shape[0] * self.shape[1], row.shape[-1])
        return flat.index_copy(0, self._places, row[0]).view(*self.shape, -1)

    def masks(self, stand_in: Tensor, dtype: torch.dtype) -> list[Tensor | None]:
        """What is added to the blocks' scores; ``None`` where a block's texts see all of themselves.

        Raises:
            RuntimeError: If the model made a mask of its own.
        """
        for kind, known in self.stand_ins.items():
            if isinstance(stand_in, Tensor) and stand_in.data_ptr() == known.data_ptr():
                found = [mask if mask is None else mask.to(dtype) for mask in self._masks[kind]]
                self._masks[kind] = found  # all layers of a kind ask for the same type
                return found
        message = "The model attends with a mask of its own, so texts in one row would see each other."
        raise RuntimeError(message)


def is_traced() -> bool:
    """Whether torch is recording a graph, into which decisions on data do not belong."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def block_cuts(lengths: NDArray[np.int64]) -> list[int]:
    """Cut texts into blocks, each padded to its longest text, at the least total cost.

    Args:
        lengths: (texts,) tokens of each, longest first.

    Returns:
        Rising places; a block lies between each two of them, the first is 0 and the last all texts.
    """
    changes = np.flatnonzero(np.diff(lengths)) + 1
    places = np.concatenate([[0], changes, [len(lengths)]])
    longest = lengths[places[:-1]]  # of a block that begins at this place
    cost = np.zeros(len(places))
    begin = np.zeros(len(places), dtype=np.int64)
    for end in range(1, len(places)):
        totals = cost[:end] + (places[end] - places[:end]) * longest[:end] + _BLOCK_COST
        begin[end] = totals.argmin()
        cost[end] = totals[begin[end]]
    cuts = [len(places) - 1]
    while cuts[-1] > 0:
        cuts.append(int(begin[cuts[-1]]))
    return [int(places[cut]) for cut in reversed(cuts)]


class Packing:
    """The hooks that pack a model's batch before it runs, and lay its states out again after it.

    Args:
        config: The model's configuration, which names its attention code.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._code: list[str | None] = []
        self._layouts: list[BatchLayout | None] = []
        self.batches = 0
        """Number of batches that were packed."""

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Hook into a model; the handles take the hooks off again."""
        AttentionInterface.register(_NAME, _attention)
        return [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def _before(self, model: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, Any] | None:
        layout = None if args or _is_watched(model) else _layout(inputs)
        self._layouts.append(layout)
        if layout is None:
            return None
        _active.set((*_active.get(), layout))
        self._code.append(self._config._attn_implementation)
        self._config._attn_implementation = _NAME
        packed = dict(inputs)
        for name in {"input_ids", "position_ids", "token_type_ids"} & inputs.keys():
            packed[name] = layout.to_row(inputs[name])
        masks = layout.stand_ins
        packed["attention_mask"] = masks if isinstance(inputs["attention_mask"], dict) else masks[_FULL]
        self.batches += 1
        return args, packed

    def _after(self, model: nn.Module, args: Any, output: Any) -> Any:
        layout = self._layouts.pop()
        if layout is None:
            return output
        _active.set(_active.get()[:-1])
        self._config._attn_implementation = self._code.pop()
        if output is not None:  # the model raised an error otherwise
            output.last_hidden_state = layout.to_padded(output.last_hidden_state)
        return output


_active: ContextVar[tuple[BatchLayout, ...]] = ContextVar("stm_blocks", default=())


def _is_watched(model: nn.Module) -> bool:
    return any(
        inner._forward_hooks or inner._forward_pre_hooks for inner in model.modules() if inner is not model
    )


def _layout(inputs: Mapping[str, Any]) -> BatchLayout | None:
    """The layout of a batch, or ``None`` where it shall be left as it is."""
    ids, given = inputs.get("input_ids"), inputs.get("attention_mask")
    masks: dict[str, Any] = given if isinstance(given, dict) else {_FULL: given}
    full = masks.get(_FULL)
    if not (
        isinstance(ids, Tensor)
        and ids.device.type == "cpu"
        and isinstance(full, Tensor)
        and full.dim() == 4
        and isinstance(inputs.get("position_ids"), Tensor)  # the model's own would count along the row
        and not is_traced()
    ):
        return None
    # Every token sees itself, and padding is seen by none.
    tokens = full[:, 0].diagonal(dim1=1, dim2=2) == 0
    lengths = tokens.sum(dim=1)
    on_the_right = bool((tokens == (torch.arange(ids.shape[1]) < lengths[:, None])).all())
    if not on_the_right or int(lengths.min()) == 0:
        return None
    return BatchLayout(lengths.numpy(), ids.shape[1], masks)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, with (1, heads, tokens, width) tensors."""
    layout = _active.get()[-1]
    unknown = [name for name in _UNKNOWN if options.get(name) is not None]
    if unknown or dropout:
        message = f"Packed batches know no {unknown or 'dropout'} in attention."
        raise RuntimeError(message)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    out = block_attention(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layout.blocks,
        layout.masks(attention_mask, dtype),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        dtype=dtype,
    )
    return out[None], None


def _trial(backbone: Backbone) -> Tensor:
    """Vectors of three short texts of different lengths."""
    lengths = torch.tensor([5, 9, 3])
    mask = (torch.arange(9) < lengths[:, None]).long()
    vocabulary = backbone.model.get_input_embeddings().weight.shape[0]
    ids = torch.where(mask == 1, torch.arange(27).reshape(3, 9) % vocabulary, backbone.pad_token_id)
    with _evaluating(backbone), torch.no_grad():
        vectors: Tensor = backbone(ids, mask)[1]
    return vectors


@contextmanager
def _evaluating(backbone: Backbone) -> Iterator[None]:
    was_training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(was_training)
