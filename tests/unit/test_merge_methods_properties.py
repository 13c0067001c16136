"""What holds for every merge method: blocks, order and lone members never change a bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stm_training.merge.methods import METHODS, Block, WholeParameter, merge_block, merge_parameter
from stm_training.merge.methods.cuts import Taken, find_cuts
from stm_training.merge.recipe import READS, MergeRecipe

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 3 * 32768 + 4321  # several tiles, and a piece of one
NAMES = ("a", "b", "c")
FEW = settings(max_examples=12, deadline=None)
METHOD_NAMES = sorted(METHODS)


def numbers(count: int, *, seed: int, size: int = SIZE, coarse: bool = False) -> list[Tensor]:
    """Deltas with a common part; ``coarse``: with many equal magnitudes and zeros, as bf16 gives them."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(size, generator=generator)
    found = [0.01 * (common + torch.randn(size, generator=generator)) for _ in range(count)]
    return [(delta * 400).round() / 400 for delta in found] if coarse else found


def recipe_of(method: str, weights: dict[str, float], **fields: object) -> MergeRecipe:
    if "density" in READS[method]:  # type: ignore[index]
        fields = {"density": {name: 0.2 + 0.2 * place for place, name in enumerate(sorted(weights))}} | fields
    if method == "breadcrumbs":
        fields = {"gamma": 0.05} | fields
    return MergeRecipe.model_validate({"method": method, "weights": weights, **fields})


def in_blocks(base: Tensor, deltas: Sequence[Tensor], cuts: Sequence[int], recipe: MergeRecipe) -> Tensor:
    edges = [0, *sorted(cuts), len(base)]

    def blocks() -> Iterator[Block]:
        for begin, end in itertools.pairwise(edges):
            if begin < end:
                yield Block(base[begin:end], [delta[begin:end] for delta in deltas], begin)

    return torch.cat(list(merge_parameter("layers.1.mlp.weight", blocks, len(base), recipe, 3)))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("method", METHOD_NAMES)
@FEW
@given(
    cuts=st.lists(st.integers(0, SIZE), max_size=6),
    seed=st.integers(0, 1000),
    base_slerp=st.sampled_from([None, {"b": 0.4}]),
)
def test_the_size_of_blocks_never_changes_a_bit(
    method: str, coarse: bool, cuts: list[int], seed: int, base_slerp: dict[str, float] | None
) -> None:
    base, *deltas = numbers(4, seed=seed, coarse=coarse)
    recipe = recipe_of(method, {"b": 0.4, "a": 0.7, "c": 0.5}, base_slerp=base_slerp)
    whole = WholeParameter(Block(base, deltas))
    (expected,) = merge_parameter("layers.1.mlp.weight", whole, SIZE, recipe, 3)
    assert torch.equal(in_blocks(base, deltas, cuts, recipe), expected)
    assert not torch.equal(expected, base)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"slerp"}))
@FEW
@given(order=st.permutations(NAMES), seed=st.integers(0, 1000), size=st.integers(1, 3000))
def test_the_order_of_experts_never_changes_a_bit(
    method: str, order: list[str], seed: int, size: int
) -> None:
    base, *deltas = numbers(4, seed=seed, size=size)
    experts = dict(zip(NAMES, deltas, strict=True))
    weights = {"a": 0.31, "b": 0.77, "c": 1.9}
    expected = merge_block(Block(base, deltas), recipe_of(method, weights))
    moved = recipe_of(method, {name: weights[name] for name in order})
    assert torch.equal(merge_block(Block(base, [experts[name] for name in order]), moved), expected)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"model_stock"}))
@FEW
@given(
    place=st.integers(0, 2),
    values=st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 4), min_size=1, max_size=50),
)
def test_a_member_with_weight_1_comes_back_bit_for_bit_when_others_have_0(
    method: str, place: int, values: list[tuple[float, ...]]
) -> None:
    # Full models: adding the rounded difference back would miss bits where base and member are far apart.
    base, *members = torch.tensor(values).T.contiguous()
    block = Block(base, [member - base for member in members], members=members)
    weights = {name: float(number == place) for number, name in enumerate(NAMES)}
    assert torch.equal(merge_block(block, MergeRecipe(method=method, weights=weights)), members[place])  # type: ignore[arg-type]


def test_adding_a_rounded_difference_back_would_not_have_been_enough() -> None:
    base, member = torch.tensor([1.0]), torch.tensor([1e-8])
    assert not torch.equal(base + (member - base), member)


@FEW
@given(weight=st.floats(0.01, 50), seed=st.integers(0, 1000), method=st.sampled_from(["ties", "dare_ties"]))
def test_ties_with_density_1_and_one_expert_is_that_expert_whatever_its_weight(
    weight: float, seed: int, method: str
) -> None:
    base, delta = numbers(2, seed=seed, size=777)
    recipe = MergeRecipe(method=method, weights={"a": weight})  # type: ignore[arg-type]
    assert torch.equal(merge_block(Block(base, [delta]), recipe), base + delta)


@FEW
@given(seed=st.integers(0, 1000), method=st.sampled_from(METHOD_NAMES))
def test_experts_that_change_nothing_give_the_base(seed: int, method: str) -> None:
    (base,) = numbers(1, seed=seed, size=500)
    recipe = recipe_of(method, {"a": 0.5, "b": 1.0})
    assert torch.equal(merge_block(Block(base, [torch.zeros(500)] * 2), recipe), base)


@FEW
@given(
    values=st.lists(
        st.sampled_from([0.0, 1.0, -1.0, 2.0, -2.0, 2.5, 1e-40, -3.0, 1e30]), min_size=1, max_size=60
    ),
    data=st.data(),
)
def test_cuts_take_exactly_the_k_largest_and_of_equals_the_first(
    values: list[float], data: st.DataObject
) -> None:
    delta = torch.tensor(values)
    size = len(values)
    count = data.draw(st.integers(0, size))
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, size), max_size=3))), size]
    blocks = [
        Block(delta[begin:end], [delta[begin:end]], begin)
        for begin, end in itertools.pairwise(edges)
        if begin < end
    ]
    cut = find_cuts(lambda: iter(blocks), size, [(0, count)])[0, count]
    taken = torch.cat([Taken(cut, block).of(block.deltas[0]) for block in blocks])
    order = np.argsort(-np.abs(delta.numpy()), kind="stable")
    expected = np.zeros(size, np.float32)
    expected[order[:count]] = delta.numpy()[order[:count]]
    assert np.array_equal(taken.numpy(), expected)


def test_the_input_is_never_written_to() -> None:
    base, *deltas = numbers(4, seed=0, size=1000)
    copies = [tensor.clone() for tensor in (base, *deltas)]
    for method in METHOD_NAMES:
        for fields in ({}, {"base_slerp": 0.5}):
            recipe = recipe_of(method, dict.fromkeys(NAMES, 0.5), **fields)
            merge_block(Block(base, deltas), recipe)
    assert all(map(torch.equal, copies, (base, *deltas)))
