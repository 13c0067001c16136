"""Which merges a search tries."""

from __future__ import annotations

from stm_training.pipeline.candidates import describe, merge_candidates
from stm_training.recipe import MergeSection

EXPERTS = ["expert:a", "expert:b"]


def test_a_small_grid_is_tried_whole_without_the_empty_merge() -> None:
    section = MergeSection(methods=("task_arithmetic",), weights=(0.0, 0.5, 1.0), trials=100)
    found = {describe(merge) for merge in merge_candidates(section, EXPERTS, seed=0)}
    assert len(found) == 3 * 3 - 1
    assert "task_arithmetic(a=0.5)" in found  # half of one expert, half of the base
    assert not any("=0)" in name or "=0," in name for name in found)


def test_a_large_grid_is_sampled_by_the_seed_and_equal_weights_take_at_most_half() -> None:
    section = MergeSection(trials=6)
    first = merge_candidates(section, EXPERTS, seed=1)
    assert first == merge_candidates(section, EXPERTS, seed=1)
    assert first != merge_candidates(section, EXPERTS, seed=2)
    assert len(first) == 6
    equal = [m for m in first if len(m.weights) == 2 and len(set(m.weights.values())) == 1]
    assert len(equal) == 3


def test_linear_weights_add_up_to_one_and_repeats_are_dropped() -> None:
    section = MergeSection(methods=("linear",), weights=(0.0, 0.5, 1.0), trials=100)
    merges = merge_candidates(section, EXPERTS, seed=0)
    names = [describe(merge) for merge in merges]
    assert len(names) == len(set(names)) == 5  # a, b, half and half, one third each way
    for merge in merges:
        assert abs(sum(merge.weights.values()) - 1) < 1e-3


def test_ties_is_tried_at_every_density() -> None:
    section = MergeSection(methods=("ties",), weights=(1.0,), densities=(0.2, 0.8), trials=10)
    names = {describe(merge) for merge in merge_candidates(section, EXPERTS, seed=0)}
    assert names == {"ties(a=1, b=1; density 0.2)", "ties(a=1, b=1; density 0.8)"}
