"""What a search may set, and that every point of it is a merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from stm_retriever.errors import ConfigError
from stm_training.merge.recipe import Method
from stm_training.merge.search.grid import grid_candidates, random_candidates
from stm_training.merge.search.job import SearchJob
from stm_training.merge.search.records import recipe_key
from stm_training.merge.search.settings import SearchSection
from stm_training.merge.search.space import Space

METHODS: tuple[Method, ...] = get_args(Method)
EXPERTS = ("expert:a", "expert:b", "expert:c")


def section(**changes: Any) -> SearchSection:
    return SearchSection.model_validate(changes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_expert", [False, True])
def test_every_random_draw_of_every_method_is_a_valid_merge_of_the_experts(
    method: Method, per_expert: bool
) -> None:
    settings = section(
        methods=(method,),
        densities=(0.1, 1.0),
        density_per_expert=per_expert,
        base_weights=(0.0, 1.0),
        base_slerps=(0.5, 1.0),
        depth_slopes=(-0.5, 0.5),
    )
    found = random_candidates(Space(settings, EXPERTS), seed=1, most=50)
    assert len(found) == len({recipe_key(recipe) for _, recipe in found})
    assert len(found) == 50 or method == "model_stock"
    for _, recipe in found:
        assert recipe.method == method
        assert set(recipe.weights) <= set(EXPERTS)
        assert any(recipe.weights.values())


def test_a_small_grid_is_listed_whole_and_holds_no_merge_twice() -> None:
    space = Space(section(methods=("linear", "task_arithmetic"), weights=(0.0, 0.5, 1.0)), EXPERTS[:2])
    merges = [recipe for _, recipe in grid_candidates(space, seed=0, most=1000)]
    linear = {tuple(sorted(m.weights.items())) for m in merges if m.method == "linear"}
    assert len([m for m in merges if m.method == "task_arithmetic"]) == 3 * 3 - 1
    assert len(linear) == len([m for m in merges if m.method == "linear"]) == 5  # by ratio


def test_equal_weights_come_first_and_take_at_most_half_of_the_trials() -> None:
    space = Space(section(), EXPERTS)
    merges = [recipe for _, recipe in grid_candidates(space, seed=3, most=10)]
    equal = [len(m.weights) == 3 and len(set(m.weights.values())) == 1 for m in merges]
    assert equal[:5] == [True] * 5
    assert not any(equal[5:])


def test_a_grid_of_millions_is_sampled_without_being_listed_and_repeats_by_its_seed() -> None:
    settings = section(methods=("dare_ties",), weights=tuple(n / 100 for n in range(100)))
    space = Space(settings, EXPERTS)
    first = grid_candidates(space, seed=5, most=20)
    assert first == grid_candidates(space, seed=5, most=20)
    assert first != grid_candidates(space, seed=6, most=20)
    assert len(first) == 20


def test_negligible_drawn_weights_leave_an_expert_out_but_never_all_of_them() -> None:
    space = Space(section(methods=("task_arithmetic",)), EXPERTS)
    point = {"method": "task_arithmetic", "weight:expert:a": 0.03, "weight:expert:b": 0.4}
    assert dict(space.recipe(point | {"weight:expert:c": 0.0}).weights) == {"expert:b": 0.4}
    nothing = {"method": "task_arithmetic"} | {f"weight:{name}": 0.004 for name in EXPERTS}
    assert dict(space.recipe(nothing).weights) == {"expert:a": 0.01}


def test_a_steep_slope_downwards_is_not_taken_for_none() -> None:
    space = Space(section(methods=("linear",), depth_slopes=(-0.5, 0.0, 0.5)), EXPERTS[:2])
    point = {"method": "linear", "weight:expert:a": 0.5, "weight:expert:b": 0.5, "linear:base_weight": 0.0}
    assert space.recipe(point | {"linear:depth_slope": -0.42}).curve == (1.42, 0.58)


def test_breadcrumbs_density_leaves_room_for_the_dropped_tail() -> None:
    space = Space(section(methods=("breadcrumbs",), gammas=(0.1,), densities=(1.0,)), EXPERTS)
    recipe = space.recipe(grid_candidates(space, seed=0, most=1)[0][0])
    assert (recipe.gamma, recipe.density) == (0.1, 0.9)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": (0.0,)},
        {"weights": (-0.1, 0.5)},
        {"densities": (0.0, 0.5)},
        {"depth_slopes": (1.0,)},
        {"base_slerps": (0.0,)},
        {"gammas": (1.0,)},
        {"trials": 0},
        {"test_queries": ()},
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section(**changes)


def test_a_search_without_experts_or_with_one_twice_is_refused() -> None:
    for experts in ((), ("a", "a")):
        with pytest.raises(ConfigError, match="different names"):
            Space(section(), experts)
    with pytest.raises(ConfigError, match="model_stock"):
        Space(section(methods=("model_stock",)), ("a",))


def test_the_study_is_named_by_what_decides_its_trials_and_by_nothing_else(tmp_path: Path) -> None:
    def name(inputs: str = "x", **changes: Any) -> str:
        return SearchJob(section(**changes), EXPERTS, tmp_path, inputs).study

    assert name() == name(trials=99) == name(processes=2) == name(storage="other.db")
    assert len({name(), name("y"), name(seed=4), name(guard_penalty=0.5), name(weights=(0.0, 1.0))}) == 5
