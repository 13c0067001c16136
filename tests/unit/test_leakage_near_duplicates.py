"""Near duplicates by MinHash: recall and false alarms on planted copies, and agreement with comparing all."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_training.data import leakage
from stm_training.data.leakage import normalise, tokens
from stm_training.leakage.join import Matches, Prepared, near_duplicates
from stm_training.leakage.minhash import BANDS, ROWS, band_keys
from stm_training.leakage.shingles import Shingler

WORDS = [f"word{number}" for number in range(3000)]


def shingle_set(text: str) -> set[tuple[str, str, str]]:
    words = tokens(text)
    return {(a, b, c) for (a, b), (_, c) in pairwise(pairwise(words))}


def jaccard(left: str, right: str) -> float:
    ours, theirs = shingle_set(left), shingle_set(right)
    return len(ours & theirs) / len(ours | theirs) if ours and theirs else 0.0


def join(left: list[str], right: list[str], threshold: float = 0.8) -> Matches:
    shingler = Shingler()
    return near_duplicates(Prepared(shingler(left)), Prepared(shingler(right)), threshold=threshold)


def document(drawn: random.Random) -> list[str]:
    """80 to 300 words, some far more frequent than others."""
    return [WORDS[int(len(WORDS) * drawn.random() ** 3)] for _ in range(drawn.randint(80, 300))]


def edited(words: list[str], edits: int, drawn: random.Random) -> str:
    """A copy with words replaced, dropped and put in."""
    copy = list(words)
    for _ in range(edits):
        place = drawn.randrange(len(copy))
        copy[place : place + drawn.randint(0, 1)] = drawn.sample(WORDS, drawn.randint(0, 1))
    return " ".join(copy).capitalize() + "."


def test_planted_near_duplicates_of_long_documents_are_found_without_false_alarms() -> None:
    drawn = random.Random(8)
    originals = [document(drawn) for _ in range(3000)]
    copies = [edited(words, drawn.randint(0, len(words) // 12), drawn) for words in originals]
    texts = [" ".join(words) for words in originals]
    true = np.array([jaccard(*pair) for pair in zip(texts, copies, strict=True)])
    planted, harder = true >= 0.8, (true < 0.8) & (true > 0.5)
    assert planted.sum() > 1000, "the border must be well covered"
    assert ((true >= 0.8) & (true < 0.85)).sum() > 100
    assert harder.sum() > 100, "and so must what lies just below it"
    unrelated = [" ".join(document(drawn)) for _ in range(7000)]

    matches = join(texts, [*copies, *unrelated])

    right = np.arange(3000)
    found = matches.right[:3000] == right
    assert found[planted].mean() >= 0.99
    assert (matches.left[planted] == right[planted]).mean() >= 0.99
    false_alarms = int((matches.right[:3000][~planted] >= 0).sum() + (matches.right[3000:] >= 0).sum())
    assert false_alarms <= 1, f"of {(~planted).sum() + 7000} texts that have no near duplicate"
    np.testing.assert_allclose(matches.right_jaccard[:3000][found], true[found])


def test_recall_at_the_border_is_what_the_formula_of_bands_says() -> None:
    """Sets of exactly Jaccard .8 meet in a band as often as independent hashes would: the family is good."""
    drawn = random.Random(0)
    met = []
    shingler = Shingler()
    for _ in range(1500):
        common = [f"c{drawn.getrandbits(60)}" for _ in range(82)]  # 80 shingles in common, 10 on each side
        left = common + [f"l{drawn.getrandbits(60)}" for _ in range(10)]
        right = common + [f"r{drawn.getrandbits(60)}" for _ in range(10)]
        sets = shingler([" ".join(left), " ".join(right)])
        assert sets.sizes.tolist() == [90, 90]  # 80 of 100: .8
        keys = band_keys(sets, threads=1)
        met.append((keys[0] == keys[1]).sum())
    share = np.array(met).mean() / BANDS
    assert share == pytest.approx(0.8**ROWS, abs=0.02)
    assert (np.array(met) > 0).mean() >= 0.995


SMALL = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=9).map(" ".join), min_size=1, max_size=8
)


@settings(max_examples=60)
@given(SMALL, SMALL, st.sampled_from([0.5, 0.8, 1.0]))
def test_nothing_is_found_below_the_threshold_and_equal_sets_always_are(
    left: list[str], right: list[str], threshold: float
) -> None:
    matches = join(left, right, threshold)
    for place, partner in enumerate(matches.right):
        best = max(jaccard(other, right[place]) for other in left)
        if partner >= 0:
            assert matches.right_jaccard[place] == pytest.approx(jaccard(left[partner], right[place]))
            assert matches.right_jaccard[place] >= threshold - 1e-9
        else:
            assert best < 1, "equal sets share every key"
    for place, partner in enumerate(matches.left):
        if partner >= 0:
            assert matches.left_jaccard[place] == pytest.approx(jaccard(left[place], right[partner]))
        else:
            assert max(jaccard(left[place], other) for other in right) < 1


def test_many_copies_of_one_boilerplate_are_one_comparison_and_all_are_found() -> None:
    boilerplate = " ".join(WORDS[:100])
    matches = join([boilerplate] * 2000 + ["another text of five words"], [boilerplate.upper()] * 2000)
    assert (matches.right == 0).all()
    assert (matches.left[:2000] == 0).all()
    assert matches.left[2000] == -1


def test_a_family_of_texts_that_all_resemble_each_other_gets_a_partner_each() -> None:
    drawn = random.Random(3)
    words = document(drawn)[:120]
    left, right = ([edited(words, 2, drawn) for _ in range(300)] for _ in range(2))
    true = [[jaccard(one, other) >= 0.8 for other in left[:5]] for one in right]
    matches = join(left, right)
    assert all(any(row) for row in true), "the family must be close"
    assert (matches.right >= 0).mean() >= 0.99
    assert (matches.left >= 0).mean() >= 0.99


def test_texts_of_fewer_than_three_words_have_no_shingles_and_no_partner() -> None:
    sets = Shingler()(["", "one", "one two", "one two three", "...", "one two three two one"])
    assert sets.sizes.tolist() == [0, 0, 0, 1, 0, 3]
    matches = join(["", "one two"], ["", "one two"])
    assert matches.right.tolist() == [-1, -1]
    assert join([], ["one two three"]).right.tolist() == [-1]
    assert join(["one two three"], []).left.tolist() == [-1]


def test_scripts_without_spaces_are_compared_by_their_characters() -> None:
    text = "気管支喘息は気道の慢性的な炎症によって起こる病気であり、咳や息切れを伴うことが多い。"
    matches = join([text], [text.replace("多い", "ある"), "糖尿病は血糖値が高い状態が続く病気である。"], 0.7)
    assert matches.right.tolist() == [0, -1]


@given(st.text(max_size=60))
def test_the_fast_path_of_ascii_reads_the_same_words(text: str) -> None:
    plain = text.encode("ascii", "ignore").decode("ascii")
    slow = leakage._TOKEN.findall(plain.casefold())
    assert tokens(plain) == slow
    # the path that other characters take: a full-width letter is added, and taken off again
    if slow:
        assert normalise(plain) == normalise(plain + " ｚ").removesuffix(" z")


def test_shingles_do_not_cross_from_one_text_to_the_next() -> None:
    sets = Shingler()(["one two", "three four five", "six"])
    assert sets.sizes.tolist() == [0, 1, 0]


def test_the_order_of_words_matters_and_their_number_does_not() -> None:
    sets = Shingler()(["a b c a b c a b c", "c b a", "a b c a b"])
    ours, theirs, third = (set(sets.hashes[slice(*bounds)]) for bounds in pairwise(sets.starts))
    assert len(ours) == 3  # abc bca cab, each once
    assert not ours & theirs
    assert third == ours
