"""Packed batches: the same vectors and gradients without padding, and models that refuse are left alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stm_training.finetune import block_attention as block_code
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.block_attention import Block, block_attention
from stm_training.finetune.packing import _BLOCK_COST, BatchLayout, block_cuts, pack
from tests.tiny_models import SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Sequence[Block],
    masks: Sequence[Tensor | None],
    scale: float,
) -> Tensor:
    """Text by text, as in the definition; masks are cut instead of hiding padding."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    rows = []
    start = 0
    for block, mask in zip(blocks, masks, strict=True):
        for text, length in enumerate(block.lengths):
            place = slice(start, start + length)
            scores = torch.einsum("qhd,khd->hqk", query[place], key[place]) * scale
            if mask is not None:
                scores = scores + mask.expand(len(block.lengths), -1, -1, -1)[text, :, :length, :length]
            rows.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[place]))
            start += length
    return torch.cat(rows)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("limits", [None, (50, 3)], ids=["whole", "cut and computed again"])
def test_attention_and_its_gradients_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, key_heads: int, limits: tuple[int, int] | None
) -> None:
    if limits is not None:
        monkeypatch.setattr(block_code, "_SCORES", limits[0])
        monkeypatch.setattr(block_code, "_KEPT_LENGTH", limits[1])
    random = torch.Generator().manual_seed(0)
    blocks = [Block(0, (7, 4)), Block(11, (3, 3, 2)), Block(19, (1, 1, 1)), Block(22, (2,))]
    lowest = float(torch.finfo(torch.bfloat16).min)
    causal = torch.full((1, 1, 7, 7), lowest).triu(1)
    own = torch.where(torch.rand(3, 1, 3, 3, generator=random) < 0.4, lowest, 0.0)
    own.diagonal(dim1=2, dim2=3).zero_()
    own[2, :, :, 2] = lowest  # the last text's padding
    masks = [causal, own, None, None]
    shapes = [(24, 4, 5), (24, key_heads, 5), (24, key_heads, 5)]
    weight = torch.randn(24, 4, 5, generator=random)
    inputs = [torch.randn(shape, generator=random) for shape in shapes]
    results = []
    for attend in (block_attention, plain_attention):
        given = [tensor.clone().requires_grad_() for tensor in inputs]
        out = attend(*given, blocks, masks, 0.4)
        (out * weight).sum().backward()
        results.append([out.detach(), *(tensor.grad for tensor in given)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [5, 40])
def test_attention_in_bfloat16_is_within_its_rounding(length: int) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2 * length, 2, 8, generator=random).bfloat16() for _ in range(3)]
    exact = [tensor.float().requires_grad_() for tensor in inputs]
    rounded = [tensor.clone().requires_grad_() for tensor in inputs]
    blocks, masks = [Block(0, (length, length))], [None]
    block_attention(*exact, blocks, masks, 0.35).square().sum().backward()
    out = block_attention(*rounded, blocks, masks, 0.35)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    for one, other in zip(rounded, exact, strict=True):
        assert one.grad is not None and other.grad is not None
        assert float((one.grad.float() - other.grad).norm() / other.grad.norm()) < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_cuts_cost_the_least_that_any_cuts_do(seed: int) -> None:
    lengths = -np.sort(-np.random.default_rng(seed).integers(1, 120, 9))

    def cost(cuts: Sequence[int]) -> int:
        parts = itertools.pairwise(cuts)
        return sum(int(lengths[first]) * (last - first) + _BLOCK_COST for first, last in parts)

    cuts = block_cuts(lengths)
    assert cuts[0] == 0 and cuts[-1] == 9 and cuts == sorted(set(cuts))
    inner = (chosen for size in range(9) for chosen in itertools.combinations(range(1, 9), size))
    assert cost(cuts) == min(cost([0, *chosen, 9]) for chosen in inner)


def test_a_row_laid_out_again_is_the_padded_batch() -> None:
    lengths = np.array([3, 90, 1, 88])
    padded = torch.arange(4 * 90).reshape(4, 90)
    layout = BatchLayout(lengths, 90, {"full_attention": torch.zeros(4, 1, 90, 90)})
    row = layout.to_row(padded)
    assert row.shape == (1, 182)
    assert [block.lengths for block in layout.blocks] == [(90, 88), (3, 1)]
    again = layout.to_padded(row[..., None])[..., 0]
    assert torch.equal(again, torch.where(torch.arange(90) < torch.tensor(lengths)[:, None], padded, 0))


def packed_and_padded(folder: Path) -> tuple[Backbone, Backbone]:
    packed, padded = (load_backbone(BackboneSpec(str(folder))) for _ in range(2))
    assert pack(packed)
    return packed, padded


def batch(backbone: Backbone, side: str = "right") -> tuple[Tensor, Tensor]:
    texts = [*SENTENCES, *(sentence[:9] for sentence in SENTENCES)]
    ids, mask = backbone.tokenizer.pad(backbone.tokenizer.encode(texts, "document"), side)  # type: ignore[arg-type]
    return torch.from_numpy(ids), torch.from_numpy(mask)


class Counting(nn.Linear):
    """Keeps the number of tokens that it was last given."""

    def forward(self, input: Tensor) -> Tensor:
        """As ever."""
        self.tokens = input.numel() // input.shape[-1]
        return super().forward(input)


def counting_layer(backbone: Backbone) -> Counting:
    layer = next(module for module in backbone.model.modules() if isinstance(module, nn.Linear))
    layer.__class__ = Counting
    assert isinstance(layer, Counting)
    return layer


def test_layers_see_no_padding(tmp_path: Path) -> None:
    packed, padded = packed_and_padded(build_tiny_model("bert", tmp_path))
    first, second = counting_layer(packed), counting_layer(padded)
    ids, mask = batch(packed)
    states, vectors = packed(ids, mask)
    expected_states, expected = padded(ids, mask)
    tokens = int(mask.sum())
    assert first.tokens == tokens
    assert second.tokens == ids.numel() > 1.4 * tokens
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(states[mask == 1], expected_states[mask == 1], rtol=1e-4, atol=1e-4)
    assert not states[mask == 0].any()


def test_hooks_inside_of_the_model_see_the_padded_batch(tmp_path: Path) -> None:
    packed, _ = packed_and_padded(build_tiny_model("bert", tmp_path))
    layer = counting_layer(packed)
    ids, mask = batch(packed)
    vectors = packed(ids, mask)[1]
    assert layer.tokens < ids.numel()
    with layer.register_forward_hook(lambda *of_the_call: None):
        watched = packed(ids, mask)[1]
        assert layer.tokens == ids.numel()
    torch.testing.assert_close(watched, vectors, rtol=1e-5, atol=2e-6)


def test_texts_in_a_row_do_not_see_each_other(tmp_path: Path) -> None:
    packed, _ = packed_and_padded(build_tiny_model("modernbert", tmp_path))
    ids, mask = batch(packed)
    together = packed(ids, mask)[1]
    for row in (0, 5, 12):
        alone = packed(ids[row : row + 1], mask[row : row + 1])[1][0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=2e-6)


def test_a_batch_padded_on_the_left_runs_as_it_is(tmp_path: Path) -> None:
    packed, padded = packed_and_padded(build_tiny_model("qwen3", tmp_path))
    ids, mask = batch(packed, "left")
    assert torch.equal(packed(ids, mask)[1], padded(ids, mask)[1])


def test_the_models_attention_code_is_put_back_even_after_an_error(tmp_path: Path) -> None:
    packed, padded = packed_and_padded(build_tiny_model("bert", tmp_path))
    ids, mask = batch(packed)
    code = packed.model.config._attn_implementation
    with pytest.raises(IndexError):
        packed(ids + 100_000, mask)
    assert packed.model.config._attn_implementation == code == padded.model.config._attn_implementation
    torch.testing.assert_close(packed(ids, mask)[1], padded(ids, mask)[1], rtol=1e-5, atol=2e-6)


def test_a_model_whose_attention_does_more_is_left_alone(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2Model

    build_tiny_model("gemma", tmp_path)  # for its tokenizer
    config = Gemma2Config(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_logit_softcapping=0.5, sliding_window=6, pad_token_id=0,
        eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    Gemma2Model(config).save_pretrained(tmp_path)
    backbone = load_backbone(BackboneSpec(str(tmp_path)))
    ids, mask = batch(backbone)
    before = backbone(ids, mask)[1]
    assert not pack(backbone)
    assert not backbone.model._forward_hooks and not backbone.model._forward_pre_hooks
    assert torch.equal(backbone(ids, mask)[1], before)
