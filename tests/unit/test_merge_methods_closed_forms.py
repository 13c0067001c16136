"""Each merge method against its formula, written out in numpy; DARE by its distribution over seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stm_training.merge.methods import Block, merge_block
from stm_training.merge.recipe import MergeRecipe

Vector = NDArray[np.float64]
RNG = np.random.default_rng(3)
SHAPE = (12, 25)
SIZE = 300
COMMON = RNG.normal(size=SHAPE)
BASE = RNG.normal(size=SHAPE)
DELTAS = [0.7 * (COMMON + RNG.normal(size=SHAPE)) for _ in range(3)]  # wide angles, and deltas that agree
NAMES = ("a", "b", "c")
WEIGHTS = {"a": 0.2, "b": 0.5, "c": 0.9}


def ours(recipe: MergeRecipe, *, name: str = "weight") -> Vector:
    deltas = [torch.tensor(DELTAS[NAMES.index(expert)], dtype=torch.float32) for expert in recipe.weights]
    block = Block(torch.tensor(BASE, dtype=torch.float32), deltas)
    return merge_block(block, recipe, name=name).double().numpy()


def close(left: Vector, right: Vector) -> bool:
    return bool(np.allclose(left, right, atol=2e-6, rtol=0))


def largest(delta: Vector, count: int) -> Vector:
    order = np.argsort(-np.abs(delta).ravel(), kind="stable")
    kept = np.zeros(delta.size)
    kept[order[:count]] = delta.ravel()[order[:count]]
    return kept.reshape(delta.shape)


def elected(parts: list[Vector], weights: list[float]) -> Vector:
    merged = np.zeros(SHAPE)
    for spot in np.ndindex(SHAPE):
        values = [weight * part[spot] for part, weight in zip(parts, weights, strict=True)]
        sign = np.sign(sum(values))
        agreeing = [place for place, value in enumerate(values) if value * sign > 0]
        if agreeing:
            share = sum(abs(weights[place]) for place in agreeing)
            merged[spot] = sum(values[place] for place in agreeing) / share
    return merged


def arc(first: Vector, second: Vector, position: float) -> Vector:
    cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
    angle = np.arccos(cosine)
    return (np.sin((1 - position) * angle) * first + np.sin(position * angle) * second) / np.sin(angle)


@pytest.mark.parametrize("base_weight", [0.0, 0.4])
def test_linear_is_the_weighted_mean_of_the_members(base_weight: float) -> None:
    members = [BASE, *(BASE + delta for delta in DELTAS)]
    expected = np.average(members, axis=0, weights=[base_weight, *WEIGHTS.values()])
    assert close(ours(MergeRecipe(method="linear", weights=WEIGHTS, base_weight=base_weight)), expected)


def test_task_arithmetic_is_the_base_plus_the_weighted_sum() -> None:
    weights = {"a": 0.2, "b": -0.5, "c": 1.9}
    expected = BASE + sum(weight * delta for weight, delta in zip(weights.values(), DELTAS, strict=True))
    assert close(ours(MergeRecipe(method="task_arithmetic", weights=weights)), expected)


@pytest.mark.parametrize("density", [{"a": 0.1, "b": 0.5, "c": 0.9}, {"a": 1.0, "b": 1.0, "c": 0.01}])
def test_ties_trims_elects_and_averages(density: dict[str, float]) -> None:
    parts = [largest(delta, round(density[name] * SIZE)) for name, delta in zip(NAMES, DELTAS, strict=True)]
    expected = BASE + 0.8 * elected(parts, list(WEIGHTS.values()))
    assert close(ours(MergeRecipe(method="ties", weights=WEIGHTS, density=density, scale=0.8)), expected)


def test_ties_of_one_trimmed_expert_is_what_was_kept_of_it() -> None:
    merged = ours(MergeRecipe(method="ties", weights={"b": 0.3}, density=0.25, scale=0.5))
    assert close(merged, BASE + 0.5 * largest(DELTAS[1], 75))


def test_breadcrumbs_drops_both_tails() -> None:
    density, gamma = {"a": 0.5, "b": 0.9, "c": 0.99}, {"a": 0.2, "b": 0.1, "c": 0.01}
    expected = BASE.copy()
    for name, delta in zip(NAMES, DELTAS, strict=True):
        dropped, kept = round(gamma[name] * SIZE), round(density[name] * SIZE)
        band = largest(delta, dropped + kept) - largest(delta, dropped)
        assert np.count_nonzero(band) == kept
        expected += 0.8 * WEIGHTS[name] * band
    recipe = MergeRecipe(method="breadcrumbs", weights=WEIGHTS, density=density, gamma=gamma, scale=0.8)
    assert close(ours(recipe), expected)


def test_slerp_of_two_is_the_arc_and_of_three_the_arcs_one_after_the_other() -> None:
    first, second, third = (BASE + delta for delta in DELTAS)
    two = arc(first, second, 0.5 / 0.7)
    assert close(ours(MergeRecipe(method="slerp", weights={"a": 0.2, "b": 0.5})), two)
    assert close(ours(MergeRecipe(method="slerp", weights=WEIGHTS)), arc(two, third, 0.9 / 1.6))
    turned = {name: WEIGHTS[name] for name in ("c", "a", "b")}
    expected = arc(arc(third, first, 0.2 / 1.1), second, 0.5 / 1.6)
    assert close(ours(MergeRecipe(method="slerp", weights=turned)), expected)
    assert not np.allclose(expected, arc(two, third, 0.9 / 1.6), atol=1e-3)


def test_slerp_takes_the_base_as_the_first_member() -> None:
    with_base = arc(arc(BASE, BASE + DELTAS[0], 0.2 / 0.5), BASE + DELTAS[1], 0.5)
    recipe = MergeRecipe(method="slerp", weights={"a": 0.2, "b": 0.5}, base_weight=0.3)
    assert close(ours(recipe), with_base)


@pytest.mark.parametrize("used", [("a", "b"), NAMES])
def test_model_stock_goes_as_far_as_the_angles_say(used: tuple[str, ...]) -> None:
    deltas = [DELTAS[NAMES.index(name)] for name in used]
    cosines = [
        (left * right).sum() / np.linalg.norm(left) / np.linalg.norm(right)
        for left, right in itertools.combinations(deltas, 2)
    ]
    cosine, count = np.mean(cosines), len(used)
    ratio = count * cosine / (1 + (count - 1) * cosine)
    assert 0.3 < ratio < 0.9
    expected = ratio * (BASE + np.mean(deltas, axis=0)) + (1 - ratio) * BASE
    assert close(ours(MergeRecipe(method="model_stock", weights=dict.fromkeys(used, 2.0))), expected)


def test_model_stock_stays_at_the_base_where_experts_have_nothing_in_common() -> None:
    base, delta = torch.tensor(BASE, dtype=torch.float32), torch.tensor(DELTAS[0], dtype=torch.float32)
    recipe = MergeRecipe(method="model_stock", weights={"a": 1.0, "b": 1.0})
    assert torch.equal(merge_block(Block(base, [delta, -delta]), recipe), base)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "model_stock"])
def test_experts_can_be_moved_towards_the_base_before_they_are_merged(method: str) -> None:
    moved = [
        arc(BASE, BASE + delta, position) - BASE
        for delta, position in zip(DELTAS, (0.25, 1, 0.6), strict=True)
    ]
    positions = {"a": 0.25, "b": 1.0, "c": 0.6}
    fields = {"density": 0.4} if method == "ties" else {}
    recipe = MergeRecipe.model_validate(
        {"method": method, "weights": WEIGHTS, "base_slerp": positions, **fields}
    )
    block = Block(torch.tensor(BASE).float(), [torch.tensor(delta).float() for delta in moved])
    by_hand = merge_block(block, recipe.model_copy(update={"base_slerp": None}))
    assert close(ours(recipe), by_hand.double().numpy())
    assert not close(ours(recipe), ours(recipe.model_copy(update={"base_slerp": None})))


def test_an_expert_moved_all_the_way_to_the_base_is_the_base() -> None:
    recipe = MergeRecipe(method="linear", weights={"a": 1.0, "b": 1.0}, base_slerp={"a": 0.0})
    assert close(ours(recipe), BASE + DELTAS[1] / 2)


def dare(method: str, seed: int, *, name: str = "weight", **fields: object) -> MergeRecipe:
    return MergeRecipe.model_validate({"method": method, "weights": {"a": 1.0}, "seed": seed, **fields})


def test_dare_keeps_the_stated_share_rescaled_and_its_mean_over_seeds_is_the_delta() -> None:
    density, seeds = 0.3, 600
    changes = np.stack([ours(dare("dare_linear", seed, density=density)) - BASE for seed in range(seeds)])
    kept = np.abs(changes) > 1e-6
    rescaled = np.broadcast_to(DELTAS[0] / density, changes.shape)
    assert np.allclose(changes[kept], rescaled[kept], rtol=1e-4, atol=1e-5)
    # Five standard deviations of a binomial share, for all draws, for each seed and for each number.
    for axis, count in ((None, SIZE * seeds), ((1, 2), SIZE), (0, seeds)):
        spread = 5 * np.sqrt(density * (1 - density) / count)
        assert np.all(np.abs(kept.mean(axis=axis) - density) < spread)
    off = (changes.mean(axis=0) - DELTAS[0]) / np.abs(DELTAS[0])
    assert np.abs(off).max() < 5 * np.sqrt((1 - density) / density / seeds)
    assert abs(off.mean()) < 5 * np.sqrt((1 - density) / density / seeds / SIZE)


def test_dare_draws_anew_for_each_seed_parameter_and_expert() -> None:
    weights = {"a": 1.0, "b": 1.0}
    size = 100_000
    block = Block(torch.zeros(size), [torch.ones(size), 2 * torch.ones(size)])

    def drawn(seed: int, name: str) -> list[torch.Tensor]:
        recipe = MergeRecipe(method="dare_linear", weights=weights, density=0.5, seed=seed)
        merged = merge_block(block, recipe, name=name)  # 2 for a, 4 for b, 6 for both
        return [(merged == 2) | (merged == 6), merged >= 4]

    draws = [*drawn(0, "x"), *drawn(1, "x"), *drawn(0, "y")]
    for left, right in itertools.combinations(draws, 2):
        assert abs(float((left & right).float().mean()) - 0.25) < 0.01  # independent
    for draw in draws:  # and so are neighbours, and one tile from the next
        for shift in (1, 2, 4, 32768):
            assert abs(float((draw[shift:] & draw[:-shift]).float().mean()) - 0.25) < 0.01
    assert all(map(torch.equal, drawn(0, "x"), draws[:2]))


def test_dare_ties_elects_among_what_the_draw_left() -> None:
    weights, density = {"a": 0.5, "b": 1.0, "c": 0.8}, {"a": 0.5, "b": 0.25, "c": 1.0}
    parts = []
    for name in NAMES:
        alone = MergeRecipe(method="dare_linear", weights={name: 1.0}, density=density[name], seed=4)
        parts.append(ours(alone) - BASE)
    expected = BASE + 1.5 * elected([np.where(np.abs(p) > 1e-5, p, 0) for p in parts], list(weights.values()))
    recipe = MergeRecipe(method="dare_ties", weights=weights, density=density, seed=4, scale=1.5)
    assert np.allclose(ours(recipe), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_with_density_1_drops_nothing(method: str) -> None:
    plain = {"dare_linear": "task_arithmetic", "dare_ties": "ties"}[method]
    left = ours(MergeRecipe(method=method, weights=WEIGHTS))  # type: ignore[arg-type]
    assert np.array_equal(left, ours(MergeRecipe(method=plain, weights=WEIGHTS)))  # type: ignore[arg-type]
