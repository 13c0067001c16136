"""Maximal marginal relevance chooses what LangChain's own function chooses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.vectorstores.utils import maximal_marginal_relevance as langchains

from stm_retriever import ConfigError
from stm_retriever.mmr import maximal_marginal_relevance


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 25),
    k=st.integers(1, 30),
    lambda_mult=st.floats(0, 1),
)
def test_the_choice_is_that_of_langchain(seed: int, count: int, k: int, lambda_mult: float) -> None:
    draw = np.random.default_rng(seed)
    query, vectors = draw.standard_normal(8), draw.standard_normal((count, 8))
    expected = langchains(query, vectors.tolist(), lambda_mult=lambda_mult, k=k)
    assert maximal_marginal_relevance(query, vectors, k=k, lambda_mult=lambda_mult) == expected


def test_a_twin_of_the_first_choice_comes_last() -> None:
    vectors = [[1.0, 0.1], [1.0, 0.1], [0.6, -0.8]]
    assert maximal_marginal_relevance([1.0, 0.0], vectors, k=3, lambda_mult=0.3) == [0, 2, 1]


def test_lambda_1_is_the_order_of_nearness() -> None:
    draw = np.random.default_rng(3)
    query, vectors = draw.standard_normal(6), draw.standard_normal((12, 6))
    nearness = vectors @ query / np.linalg.norm(vectors, axis=1)
    chosen = maximal_marginal_relevance(query, vectors, k=5, lambda_mult=1.0)
    assert chosen == np.argsort(-nearness)[:5].tolist()


@pytest.mark.parametrize("lambda_mult", [-0.1, 1.1, float("nan")])
def test_a_lambda_outside_0_and_1_is_an_error(lambda_mult: float) -> None:
    with pytest.raises(ConfigError, match="lambda_mult"):
        maximal_marginal_relevance([1.0], [[1.0]], k=1, lambda_mult=lambda_mult)
