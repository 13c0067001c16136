"""Mining equals a plain loop over its definition: rank every document, exclude, skip, judge, take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stm_training.data.records import Pair, Passage
from stm_training.mining.mine import mine_negatives
from stm_training.mining.nearest import DenseScorer, rank_columns, top_columns
from stm_training.mining.rules import share_threshold
from stm_training.mining.settings import MineSection


@dataclass
class Case:
    pairs: list[Pair]
    passages: list[Passage]
    queries: dict[str, NDArray[np.float32]]
    documents: dict[str, NDArray[np.float32]]

    def mine(self, section: MineSection, seed: int = 0) -> dict[str, list[str]]:
        mined, _ = mine_negatives(
            self.pairs,
            self.passages,
            section,
            encode_query=lambda texts: np.stack([self.queries[text] for text in texts]),
            encode_document=lambda texts: np.stack([self.documents[text] for text in texts]),
            seed=seed,
        )
        return {pair.query: list(pair.negatives) for pair in mined}

    def score(self, query: str, document: str) -> float:
        return sum(
            float(a) * float(b) for a, b in zip(self.queries[query], self.documents[document], strict=True)
        )


def unit(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_case(seed: int, *, queries: int = 9, documents: int = 60, pull: float = 1.0) -> Case:
    """Every third document is a piece of one of five parents; some queries have two positives."""
    rng = np.random.default_rng(seed)
    texts = [f"text {place}" for place in range(documents)]
    vectors = unit(rng, documents, 6)
    passages = [
        Passage(f"d{place}", text, parent_id=f"parent {place % 5}" if place % 3 == 0 else None)
        for place, text in enumerate(texts)
    ]
    pairs, query_vectors = [], {}
    for number in range(queries):
        positives = rng.permutation(documents)[: 1 + number % 2]
        query_vectors[f"query {number}"] = unit(rng, 6) * 0.5 + pull * vectors[positives[0]]
        query_vectors[f"query {number}"] /= np.linalg.norm(query_vectors[f"query {number}"])
        pairs += [
            Pair(f"query {number}", texts[place], positive_id=f"d{place}") for place in positives.tolist()
        ]
    return Case(pairs, passages, query_vectors, dict(zip(texts, vectors, strict=True)))


def by_definition(case: Case, section: MineSection) -> dict[str, list[str]]:
    by_text = {passage.text: passage for passage in case.passages}
    positive_scores = [case.score(pair.query, pair.positive) for pair in case.pairs]
    band = section.band
    if section.band_quantiles is not None:
        low, high = (float(np.quantile(positive_scores, share)) for share in section.band_quantiles)
        band = (low, high)
    mined = {}
    for query in dict.fromkeys(pair.query for pair in case.pairs):
        positives = [pair.positive for pair in case.pairs if pair.query == query]
        families = {by_text[text].parent_id or by_text[text].id for text in positives}
        lowest = min(case.score(query, text) for text in positives)
        ranked = sorted(
            (
                passage.text
                for passage in case.passages
                if passage.text not in positives and (passage.parent_id or passage.id) not in families
            ),
            key=lambda text: -case.score(query, text),
        )
        window = ranked[section.skip_top : section.max_rank]
        passed = [text for text in window if allowed(case.score(query, text), lowest, band, section)]
        mined[query] = passed[: section.num_negatives]
    return mined


def allowed(score: float, positive: float, band: tuple[float, float] | None, section: MineSection) -> bool:
    if band is not None and not band[0] <= score <= band[1]:
        return False
    if section.absolute_margin is not None and not score < positive - section.absolute_margin:
        return False
    share = section.positive_share
    return share is None or score < positive - (1 - share) * abs(positive)


SECTIONS = {
    "nearest": MineSection(preset="ranks", skip_top=0, pool=None, num_negatives=4),
    "rank range": MineSection(preset="ranks", skip_top=3, max_rank=9, pool=None, num_negatives=6),
    "whole corpus": MineSection(preset="ranks", skip_top=0, max_rank=None, pool=None, num_negatives=40),
    "band": MineSection(preset="refine", band=(-0.2, 0.4), skip_top=2, num_negatives=3, max_rank=None),
    "quantiles": MineSection(band_quantiles=(0.0, 0.7), skip_top=1, num_negatives=3, max_rank=30),
    "share": MineSection(preset="margin", positive_share=0.8, pool=None, num_negatives=5),
    "absolute": MineSection(
        preset="margin", positive_share=None, absolute_margin=0.2, pool=None, num_negatives=5
    ),
    "all": MineSection(
        skip_top=2,
        max_rank=25,
        band_quantiles=(0.05, 0.95),
        positive_share=0.9,
        absolute_margin=0.05,
        num_negatives=4,
    ),
}


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("pull", [1.0, -0.4], ids=["positives above 0", "positives below 0"])
def test_mined_texts_are_those_of_the_definition(name: str, pull: float) -> None:
    section, case = SECTIONS[name], make_case(seed=3, pull=pull)
    if pull < 0:  # almost everything is nearer than such a positive: look at the whole corpus
        section = section.model_copy(update={"max_rank": None})
        assert all(case.score(pair.query, pair.positive) < 0 for pair in case.pairs[:1])

    expected = by_definition(case, section)

    assert any(expected.values())
    assert case.mine(section) == expected


@pytest.mark.parametrize("seed", range(4))
def test_bands_and_margins_together_hold_on_other_corpora(seed: int) -> None:
    case = make_case(seed=seed, queries=15, documents=90)

    assert case.mine(SECTIONS["all"]) == by_definition(case, SECTIONS["all"])


@given(
    positive=st.floats(-1, 1, width=32),
    share=st.floats(0.01, 1),
)
def test_the_share_threshold_never_lies_above_the_positive_whatever_its_sign(
    positive: float, share: float
) -> None:
    threshold = float(share_threshold(np.array([positive], dtype=np.float32), share)[0])

    assert threshold <= positive
    assert math.isclose(threshold, positive - (1 - share) * abs(positive), abs_tol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    count=st.integers(1, 700),
    k=st.integers(1, 40),
    decimals=st.integers(0, 6),
)
def test_top_columns_are_those_of_a_full_stable_sort(
    seed: int, rows: int, count: int, k: int, decimals: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.standard_normal((rows, count)), decimals).astype(np.float32)  # few decimals: ties
    scores[rng.random((rows, count)) < 0.2] = -np.inf

    columns, values = top_columns(scores, k)

    for row, found, value in zip(scores, columns, values, strict=True):
        order = [place for place in np.argsort(-row, kind="stable") if np.isfinite(row[place])][:k]
        assert found[: len(order)].tolist() == order
        np.testing.assert_array_equal(value[: len(order)], row[order])
        assert np.isneginf(value[len(order) :]).all()


def assert_rough_finds_what_exact_finds(seed: int, spread: float, k: int, pull: float) -> None:
    from stm_training.mining.bfloat16 import Bfloat16Scorer

    rng = np.random.default_rng(seed)
    centre = unit(rng, 16)
    documents = centre + spread * unit(rng, 400, 16)
    documents = np.ascontiguousarray(documents / np.linalg.norm(documents, axis=1, keepdims=True))
    sideways = unit(rng, 11, 16)
    sideways -= (sideways @ centre)[:, None] * centre
    queries = (pull * centre + sideways).astype(np.float32)
    queries = np.ascontiguousarray(queries / np.linalg.norm(queries, axis=1, keepdims=True))
    starts = np.arange(12) * 2
    excluded = np.array([rng.permutation(390)[:2] for _ in range(11)]).reshape(-1)

    (exact,) = rank_columns(DenseScorer(queries, documents, 390), k, starts, excluded)
    (found,) = rank_columns(Bfloat16Scorer(queries, documents, 390), k, starts, excluded)

    np.testing.assert_allclose(found.scores, exact.scores, atol=1e-6)
    taken = np.take_along_axis(queries @ documents.T, found.columns, axis=1)
    np.testing.assert_allclose(taken, found.scores, atol=1e-6)
    assert found.columns.max() < 390
    assert all(len(set(row)) == k for row in found.columns.tolist())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.001, 0.05, 0.3, 1.0]),
    k=st.integers(1, 30),
    pull=st.sampled_from([-1.0, 0.1, 0.3, 1.0]),
)
def test_rough_bfloat16_products_lose_no_candidate(seed: int, spread: float, k: int, pull: float) -> None:
    """Down to documents that bfloat16 cannot tell apart, and with scores below 0."""
    assert_rough_finds_what_exact_finds(seed, spread, k, pull)


@pytest.mark.parametrize("seed", range(40))
def test_rough_scores_that_are_mostly_rounding_error_lose_no_candidate(seed: int) -> None:
    assert_rough_finds_what_exact_finds(seed, spread=0.02, k=10, pull=0.1)


@pytest.mark.parametrize(("columns_per_block", "scores_per_block"), [(7, 20), (64, 64), (1000, 10_000)])
def test_cutting_queries_and_corpus_into_blocks_changes_nothing(
    columns_per_block: int, scores_per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    queries, documents = unit(rng, 23, 5), unit(rng, 150, 5)
    excluded = np.array([rng.permutation(150)[:3] for _ in range(23)])
    starts = np.arange(24) * 3
    monkeypatch.setattr("stm_training.mining.nearest._COLUMNS_PER_BLOCK", columns_per_block)
    monkeypatch.setattr("stm_training.mining.nearest._SCORES_PER_BLOCK", scores_per_block)

    found = list(rank_columns(DenseScorer(queries, documents, 150), 12, starts, excluded.reshape(-1)))

    scores = queries @ documents.T
    near = set()
    for query, row in enumerate(scores):
        own = excluded[query].tolist()
        ranked = [place for place in np.argsort(-row, kind="stable") if place not in own][:12]
        block = next(b for b in found if b.start <= query < b.start + len(b.columns))
        assert block.columns[query - block.start].tolist() == ranked
        near |= {(query, column) for column in own if row[column] >= row[ranked[-1]]}
    assert near == {
        (block.start + row, column)
        for block in found
        for row, column in zip(block.excluded_rows.tolist(), block.excluded_columns.tolist(), strict=True)
    }
    assert near
