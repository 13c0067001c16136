"""Batches: no document or query twice, the same for the same seed, every row once per pass."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_retriever.errors import ConfigError, TrainingError
from stm_training.data.pair_file import PairFile
from stm_training.data.records import Pair
from stm_training.data.writing import write_pairs
from stm_training.finetune.first_fit import first_fit
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


def test_a_known_document_under_another_wording_is_no_negative_either() -> None:
    known = known_positives([Pair("q", "as published", positive_id="d1"), Pair("r", "other")])
    texts, ids = ["as abridged", "as abridged"], ["d1", None]
    assert false_negatives(["q", "r"], texts, known, ids) == [[True, False], [False, False]]
    assert len(known["q"]) == 1
    assert len(known["never asked"]) == 0


def mixed_pairs(sizes: dict[str, int], *, documents: int | None = None) -> list[Pair]:
    """Pairs of several sources, one source behind the other."""
    return [
        Pair(f"{source} {n}", f"text {source} {n % (documents or size)}", source=source)
        for source, size in sizes.items()
        for n in range(size)
    ]


PAIRS = st.lists(
    st.tuples(
        st.integers(0, 8), st.integers(0, 8), st.sampled_from([None, "x", "y"]), st.sampled_from("ab")
    ).map(
        lambda row: Pair(
            f"q{row[0]}", f"d{row[1]}", query_id=row[2] and f"{row[2]}{row[0] // 2}", source=row[3]
        )
    ),
    min_size=4,
    max_size=60,
)
MODES = st.fixed_dictionaries(
    {"homogeneous": st.booleans(), "source_temperature": st.sampled_from([None, 1.0, 2.0, 50.0])}
)


def sampler_or_none(pairs: list[Pair], **settings: Any) -> NoDuplicatesBatchSampler | None:
    try:
        return NoDuplicatesBatchSampler(pairs, **settings)
    except TrainingError:
        return None


@settings(max_examples=150, deadline=None)
@given(pairs=PAIRS, mode=MODES, size=st.integers(2, 5), seed=st.integers(0, 3), steps=st.integers(0, 25))
def test_in_every_mode_batches_are_full_and_free_of_conflicts_and_resume_gives_the_rest(
    pairs: list[Pair], mode: dict[str, Any], size: int, seed: int, steps: int
) -> None:
    given_ = {"batch_size": size, "seed": seed, **mode}
    sampler = sampler_or_none(pairs, **given_, steps=steps)
    if sampler is None:
        return
    batches = list(sampler)
    assert len(batches) == len(sampler) == steps
    for batch in batches:
        rows = [pairs[row] for row in batch]
        assert len(rows) == size
        for values in ([row.query for row in rows], [row.positive for row in rows]):
            assert len(set(values)) == size
        ids = [row.query_id for row in rows if row.query_id is not None]
        assert len(ids) == len(set(ids))
        assert not mode["homogeneous"] or len({row.source for row in rows}) == 1
    for skipped in {0, 1, steps // 2, max(0, steps - 1), steps, steps + 3}:
        fresh = NoDuplicatesBatchSampler(pairs, **given_, steps=steps)
        assert list(fresh.after(skipped)) == batches[skipped:]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(6, 11)), max_size=50),
    size=st.integers(2, 6),
)
def test_batches_take_the_earliest_rows_that_go_together(rows: list[tuple[int, int]], size: int) -> None:
    keys = np.array(rows, np.uint64).reshape(-1, 2)
    left, expected = list(range(len(rows))), []
    while True:
        batch: list[int] = []
        for row in left:
            if len(batch) < size and not any(set(rows[row]) & set(rows[other]) for other in batch):
                batch.append(row)
        if len(batch) < size:
            break
        expected.append(batch)
        left = [row for row in left if row not in batch]
    assert first_fit(np.arange(len(rows)), keys, size).tolist() == expected


def test_a_document_with_half_of_the_rows_stands_once_in_nearly_every_batch() -> None:
    pairs = [Pair(f"q{n}", f"d{0 if n % 2 else n}") for n in range(60_000)]
    batches = NoDuplicatesBatchSampler(pairs, batch_size=4, seed=0).epoch(0)
    # three rows of other documents with one of the frequent document
    assert 9_990 <= len(batches) <= 10_000
    assert max(sum(row % 2 for row in batch) for batch in batches) == 1


def test_homogeneous_batches_come_from_each_source_as_often_as_its_rows_fill_one() -> None:
    pairs = mixed_pairs({"a": 80, "b": 43, "c": 8})
    sampler = NoDuplicatesBatchSampler(pairs, batch_size=8, seed=0, homogeneous=True)
    sources = [pairs[batch[0]].source for batch in sampler]
    assert Counter(sources) == {"a": 10, "b": 5, "c": 1}
    assert len({row for batch in sampler for row in batch}) == 16 * 8
    assert sources != sorted(sources)  # shuffled together


@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize(("temperature", "share"), [(1.0, 1 / 11), (2.0, 1 / (1 + 10**0.5)), (1000.0, 0.5)])
def test_sources_are_drawn_by_their_size_to_the_power_of_one_over_the_temperature(
    homogeneous: bool, temperature: float, share: float
) -> None:
    pairs = mixed_pairs({"large": 4000, "small": 400})
    sampler = NoDuplicatesBatchSampler(
        pairs, batch_size=4, seed=1, steps=2000, homogeneous=homogeneous, source_temperature=temperature
    )
    sources = Counter(pairs[row].source for batch in sampler for row in batch)
    draws = 2000 if homogeneous else 8000
    noise = (share * (1 - share) / draws) ** 0.5
    assert sources["small"] / 8000 == pytest.approx(share, abs=4 * noise)


@pytest.mark.parametrize("homogeneous", [False, True])
def test_each_source_goes_through_passes_of_its_own_over_all_epochs(homogeneous: bool) -> None:
    pairs = mixed_pairs({"large": 90, "small": 20})
    sampler = NoDuplicatesBatchSampler(
        pairs, batch_size=5, seed=2, steps=100, homogeneous=homogeneous, source_temperature=4.0
    )
    taken = Counter(row for batch in sampler for row in batch)
    for rows in (range(90), range(90, 110)):
        counts = [taken[row] for row in rows]
        # a source's rows come equally often, but for a pass that is under way, and (mixed) for the few rows
        # that are left at the end of an epoch
        assert max(counts) - min(counts) <= (1 if homogeneous else 3)
    assert min(taken[row] for row in range(90, 110)) > 2 * max(taken[row] for row in range(90))


def test_sources_that_cannot_fill_their_batches_are_an_error_with_counts() -> None:
    pairs = [*mixed_pairs({"large": 40}), *mixed_pairs({"small": 12}, documents=3)]
    with pytest.raises(
        TrainingError, match=r"1 of 2 sources .*'small': 12 pairs, 3 of which go together, 8 "
    ):
        NoDuplicatesBatchSampler(pairs, batch_size=8, seed=0, homogeneous=True)
    # half of each batch of 8 would be of the small source
    with pytest.raises(TrainingError, match=r"'small': 12 pairs, 3 of which .*lower source_temperature"):
        NoDuplicatesBatchSampler(pairs, batch_size=8, seed=0, source_temperature=1e9 + 1)
    assert len(NoDuplicatesBatchSampler(pairs, batch_size=8, seed=0, source_temperature=1.0)) > 0


def test_a_temperature_of_zero_is_an_error() -> None:
    with pytest.raises(ConfigError, match="source_temperature is 0"):
        NoDuplicatesBatchSampler(pairs_of(9), batch_size=2, seed=0, source_temperature=0)


def test_rows_that_fill_no_batch_are_told_by_number(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [*pairs_of(8), *(Pair(f"more {n}", "text 0", positive_id="0") for n in range(8))]
    NoDuplicatesBatchSampler(pairs, batch_size=4, seed=0)
    assert "of 16 pairs fill no batch of 4" in caplog.text
    caplog.clear()
    NoDuplicatesBatchSampler(pairs_of(18), batch_size=4, seed=0)
    assert caplog.text == ""


def test_pairs_on_disk_give_the_batches_of_pairs_in_memory(tmp_path: Path) -> None:
    pairs = mixed_pairs({"a": 40, "b": 20})
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    on_disk = NoDuplicatesBatchSampler(PairFile(tmp_path / "pairs.jsonl"), batch_size=4, seed=0)
    assert list(on_disk) == list(NoDuplicatesBatchSampler(pairs, batch_size=4, seed=0))


def test_another_process_with_another_hash_seed_sees_the_same_batches() -> None:
    code = (
        "from stm_training.data.records import Pair\n"
        "from stm_training.finetune.sampler import NoDuplicatesBatchSampler\n"
        "pairs = [Pair(f'q{n}', f'd{n % 7}', source='ab'[n % 2]) for n in range(40)]\n"
        "print(list(NoDuplicatesBatchSampler(pairs, batch_size=3, seed=5, source_temperature=2.0)))"
    )
    pairs = [Pair(f"q{n}", f"d{n % 7}", source="ab"[n % 2]) for n in range(40)]
    here = list(NoDuplicatesBatchSampler(pairs, batch_size=3, seed=5, source_temperature=2.0))
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == str(here)
