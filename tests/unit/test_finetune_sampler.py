"""Batches: no document or query twice, the same for the same seed, every row once per pass."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_retriever.errors import ConfigError, TrainingError
from stm_training.data.records import Pair
from stm_training.finetune.pair_keys import false_negatives, known_positives
from stm_training.finetune.sampler import NoDuplicatesBatchSampler


def pairs_of(count: int, *, documents: int | None = None) -> list[Pair]:
    documents = documents or count
    return [
        Pair(
            query=f"query {number}",
            positive=f"text {number % documents}",
            positive_id=str(number % documents),
        )
        for number in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=8, max_size=60),
    size=st.integers(2, 6),
    seed=st.integers(0, 5),
)
def test_no_batch_holds_a_document_or_a_query_twice(
    rows: list[tuple[int, int]], size: int, seed: int
) -> None:
    pairs = [
        Pair(query=f"q{query}", positive=f"d{document}", positive_id=str(document))
        for query, document in rows
    ]
    try:
        sampler = NoDuplicatesBatchSampler(pairs, batch_size=size, seed=seed)
    except TrainingError:
        return
    seen: list[int] = []
    for batch in sampler:
        assert len(batch) == size
        assert len({pairs[row].query for row in batch}) == size
        assert len({pairs[row].positive for row in batch}) == size
        seen += batch
    assert len(seen) == len(set(seen))


def test_texts_that_differ_in_case_and_spaces_are_one_document() -> None:
    pairs = [Pair(query="a", positive="Fever  is\nhigh"), Pair(query="b", positive="fever is high")]
    with pytest.raises(TrainingError, match="2 pairs cannot fill one batch of 2"):
        NoDuplicatesBatchSampler(pairs, batch_size=2, seed=0)


def test_a_pass_takes_every_row_that_fills_a_batch_once() -> None:
    sampler = NoDuplicatesBatchSampler(pairs_of(23), batch_size=5, seed=3)
    rows = [row for batch in sampler for row in batch]
    assert len(sampler) == 4
    assert len(rows) == len(set(rows)) == 20


def test_few_documents_with_many_queries_still_fill_batches() -> None:
    sampler = NoDuplicatesBatchSampler(pairs_of(200, documents=10), batch_size=8, seed=0)
    assert sum(len(batch) for batch in sampler) >= 0.8 * 200


def test_the_same_seed_gives_the_same_batches_and_another_seed_others() -> None:
    first, again, other = (
        list(NoDuplicatesBatchSampler(pairs_of(50), batch_size=8, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_steps_run_over_as_many_passes_as_it_takes_in_new_orders() -> None:
    sampler = NoDuplicatesBatchSampler(pairs_of(20), batch_size=10, seed=0, steps=6)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 6
    assert batches[0] != batches[2]
    assert sorted(batches[0] + batches[1]) == sorted(batches[2] + batches[3]) == list(range(20))
    assert list(sampler) == batches  # and once more, from the beginning


def test_too_few_rows_are_an_error_with_the_numbers() -> None:
    with pytest.raises(TrainingError, match=r"3 pairs cannot fill one batch of 4 .*finds 3"):
        NoDuplicatesBatchSampler(pairs_of(3), batch_size=4, seed=0)


def test_a_batch_of_one_has_no_negatives_and_is_an_error() -> None:
    with pytest.raises(ConfigError, match="batch_size is 1"):
        NoDuplicatesBatchSampler(pairs_of(3), batch_size=1, seed=0)


def test_other_documents_of_the_same_query_are_no_negatives() -> None:
    pairs = [Pair(query="q", positive="a"), Pair(query="Q ", positive="b"), Pair(query="r", positive="c")]
    known = known_positives(pairs)
    assert false_negatives(["q", "r"], ["A", "b", "c"], known) == [[True, True, False], [False, False, True]]
