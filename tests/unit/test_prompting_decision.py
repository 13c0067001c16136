"""The choice of a prompt: better on other queries, or the plain one stays."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stm_training.prompting.decision import Scored, decide
from stm_training.prompting.settings import PromptSearchSection

N = 60


def scored(prompt: str, search: float, decided: float | NDArray[np.float64]) -> Scored:
    if isinstance(decided, float):  # queries differ as they do; the mean stays
        decided = decided + np.where(np.arange(N) % 2, 0.1, -0.1)
    return Scored(prompt, "list", np.full(N, search), decided)


def choose(*others: Scored, **settings: int) -> tuple[str, str]:
    prompt, reason, _, _ = decide(
        [scored("plain", 0.5, 0.5), *others], PromptSearchSection(bootstrap_samples=500, **settings), seed=0
    )
    return prompt, reason


def test_a_prompt_that_is_better_on_both_halves_is_taken() -> None:
    prompt, reason = choose(scored("better", 0.6, 0.6))
    assert prompt == "better"
    assert "+10.00 points" in reason


def test_a_prompt_that_is_better_only_on_the_half_that_found_it_is_not_taken() -> None:
    assert choose(scored("lucky", 0.9, 0.5))[0] == "plain"


def test_a_prompt_that_is_worse_on_the_half_that_ranks_is_not_even_tested() -> None:
    prompt, reason = choose(scored("late", 0.4, 0.9))
    assert prompt == "plain"
    assert "none of 1 other prompts scores higher" in reason


def test_a_gain_that_could_be_chance_keeps_the_plain_prompt() -> None:
    noise = np.random.default_rng(0).normal(0.52, 0.3, N)
    prompt, reason = choose(scored("noisy", 0.6, noise))
    assert prompt == "plain"
    assert "no other prompt is surely better" in reason


def test_equal_scores_keep_the_plain_prompt_even_if_it_is_longer() -> None:
    assert choose(scored("", 0.5, 0.5))[0] == "plain"


def test_of_two_that_cannot_be_told_apart_the_shorter_is_taken() -> None:
    shorter = scored("short", 0.69, 0.7)
    longer = scored("much longer", 0.70, np.random.default_rng(0).normal(0.71, 0.2, N))
    prompt, reason = choose(longer, shorter)
    assert prompt == "short"
    assert "a longer prompt" in reason
    assert choose(scored("much longer", 0.7, 0.9), shorter)[0] == "much longer"


def test_the_level_is_shared_among_the_finalists() -> None:
    others = [scored(f"prompt {number}", 0.6 + number / 100, 0.6) for number in range(5)]
    settings = PromptSearchSection(bootstrap_samples=500, finalists=4)
    _, _, table, level = decide([scored("plain", 0.5, 0.5), *others], settings, seed=0)
    assert level == pytest.approx(1 - 0.05 / 4)
    assert [one.prompt for one in table if one.finalist] == [f"prompt {n}" for n in (1, 2, 3, 4)]
    assert table[0].interval is None
    assert all(one.interval is not None and one.dev is not None for one in table[1:])


def test_among_many_prompts_that_do_nothing_but_noise_the_plain_one_is_nearly_always_kept() -> None:
    settings = PromptSearchSection(bootstrap_samples=500)
    changed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        base = rng.uniform(0, 1, (2, N))
        noise = rng.normal(0, 0.2, (40, 2, N))
        others = [Scored(f"prompt {n}", "random", *(base + noise[n])) for n in range(40)]
        prompt, *_ = decide([Scored("", "plain", *base), *others], settings, seed=seed)
        changed += prompt != ""
    assert changed <= 4  # the level allows 1 in 40; testing all 40 on the same queries would change most
