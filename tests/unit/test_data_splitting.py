"""Splitting long documents: limits, borders, offsets, coverage."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Passage
from stm_training.data.sentences import units_of
from stm_training.data.splitting import CountTokens, split_passages


def words(texts: list[str]) -> list[int]:
    """Two special tokens, and one token per word."""
    return [2 + len(text.split()) for text in texts]


def characters(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def subwords(texts: list[str]) -> list[int]:
    """Like WordPiece: long words are cut, but beyond 20 characters a word is one unknown token."""
    return [
        2 + sum(1 if len(w) > 20 else -(-len(w) // 4) for w in re.findall(r"\w+|[^\w\s]", t)) for t in texts
    ]


def check(parent: Passage, pieces: list[Passage], count: CountTokens, max_tokens: int) -> None:
    covered = [False] * len(parent.text)
    for piece in pieces:
        assert piece.start is not None
        assert piece.end is not None
        assert piece.parent_id == parent.id
        assert piece.text == parent.text[piece.start : piece.end]
        assert piece.text.strip()
        assert count([piece.content])[0] <= max_tokens
        covered[piece.start : piece.end] = [True] * (piece.end - piece.start)
    assert all(done or parent.text[place].isspace() for place, done in enumerate(covered))
    starts = [piece.start for piece in pieces]
    ends = [piece.end for piece in pieces]
    assert starts == sorted(set(starts))  # type: ignore[type-var]
    assert ends == sorted(set(ends))  # type: ignore[type-var]
    assert len({piece.id for piece in pieces}) == len(pieces)


TEXTS = st.text(
    st.one_of(
        st.sampled_from("ab cdeXYZ.!?\n\n\n#-  \t"),
        st.sampled_from("糖尿病は。、ไทยabc é\u0301👩\u200d⚕️।"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=400,
)


@settings(max_examples=150, deadline=None)
@given(
    text=TEXTS,
    title=st.sampled_from(["", "Title", "A long title of several words that has to be shortened"]),
    count=st.sampled_from([words, characters, subwords]),
    max_tokens=st.integers(8, 40),
    overlap=st.integers(0, 7),
)
def test_pieces_cover_the_text_fit_the_limit_and_keep_exact_offsets(
    text: str, title: str, count: CountTokens, max_tokens: int, overlap: int
) -> None:
    parent = Passage("doc", text, title, {"k": 1})
    pieces = split_passages([parent], count_tokens=count, max_tokens=max_tokens, overlap_tokens=overlap)
    if count([parent.content])[0] <= max_tokens:
        assert pieces == [parent]
    else:
        check(parent, pieces, count, max_tokens)


def test_a_short_passage_is_left_as_it_is() -> None:
    passage = Passage("a", "Short.", "T")
    result = split_passages([passage], count_tokens=words, max_tokens=10)
    assert result[0] is passage


def test_sentences_stay_whole_and_the_title_is_carried() -> None:
    text = "One two three four. Five six seven eight. Nine ten eleven twelve. Thirteen fourteen."
    pieces = split_passages([Passage("a", text, "My title", {"y": 1})], count_tokens=words, max_tokens=12)
    assert [p.text for p in pieces] == [
        "One two three four. Five six seven eight.",
        "Nine ten eleven twelve. Thirteen fourteen.",
    ]
    assert {(p.title, p.metadata["y"], p.parent_id) for p in pieces} == {("My title", 1, "a")}
    assert [p.id for p in pieces] == ["a#0", "a#1"]


def test_overlap_repeats_whole_sentences() -> None:
    text = "A b c d. E f. G h i j. K l. M n o p."
    pieces = split_passages([Passage("a", text)], count_tokens=words, max_tokens=10, overlap_tokens=3)
    assert [p.text for p in pieces] == ["A b c d. E f.", "E f. G h i j. K l.", "K l. M n o p."]


def test_sections_are_kept_whole_where_they_fit_and_headings_stay_with_their_text() -> None:
    text = "# First\nOne two three. Four five six.\n\n# Second\nSeven eight nine ten. Eleven twelve."
    pieces = split_passages([Passage("a", text)], count_tokens=words, max_tokens=14)
    assert [p.text.split("\n")[0] for p in pieces] == ["# First", "# Second"]


def test_a_heading_never_ends_a_piece() -> None:
    text = "One two three four five.\n\nShort heading\n\nSix seven eight nine ten eleven."
    pieces = split_passages([Passage("a", text)], count_tokens=words, max_tokens=10)
    assert [p.text for p in pieces] == [
        "One two three four five.",
        "Short heading\n\nSix seven eight nine ten eleven.",
    ]


@pytest.mark.parametrize("overlap", [0, 5])
@pytest.mark.parametrize("text", ["単語" * 500, "ภาษาไทย" * 200, "x" * 2000])
def test_text_without_spaces_or_stops_is_cut_by_tokens(text: str, overlap: int) -> None:
    parent = Passage("a", text)
    pieces = split_passages([parent], count_tokens=characters, max_tokens=50, overlap_tokens=overlap)
    check(parent, pieces, characters, 50)
    shared = [left.end - right.start for left, right in itertools.pairwise(pieces)]  # type: ignore[operator]
    assert set(shared) == {overlap}


def test_cjk_sentences_are_borders() -> None:
    text = "糖尿病は病気です。血糖値が高くなります。治療があります。"
    pieces = split_passages([Passage("a", text)], count_tokens=characters, max_tokens=20)
    assert [p.text for p in pieces] == ["糖尿病は病気です。血糖値が高くなります。", "治療があります。"]


def test_one_enormous_sentence_is_cut_at_words_with_overlap_in_words() -> None:
    parent = Passage("a", " ".join(f"w{n}" for n in range(1000)))
    pieces = split_passages([parent], count_tokens=words, max_tokens=52, overlap_tokens=10)
    check(parent, pieces, words, 52)
    assert len(pieces) == 25
    assert pieces[1].text.split()[0] == "w40"


def test_accents_and_joined_signs_are_not_torn_apart() -> None:
    pieces = split_passages([Passage("a", "e\u0301" * 40)], count_tokens=characters, max_tokens=7)
    assert all(not piece.text.startswith("\u0301") for piece in pieces)


def test_a_title_too_long_for_the_pieces_is_shortened_in_them() -> None:
    parent = Passage("a", "word " * 60, "t " * 30)
    pieces = split_passages([parent], count_tokens=words, max_tokens=20)
    check(parent, pieces, words, 20)
    assert 0 < len(pieces[0].title.split()) <= 9


def test_a_piece_of_a_piece_keeps_the_first_parent_and_its_offsets() -> None:
    whole = "A b c. D e f. G h i. J k l."
    piece = Passage("doc#1", whole[7:], parent_id="doc", start=7, end=len(whole))
    pieces = split_passages([piece], count_tokens=words, max_tokens=5)
    assert [(p.parent_id, whole[p.start : p.end]) for p in pieces] == [
        ("doc", "D e f."),
        ("doc", "G h i."),
        ("doc", "J k l."),
    ]


def test_limits_without_room_are_refused() -> None:
    with pytest.raises(ConfigError, match="overlap_tokens=5"):
        split_passages([Passage("a", "x")], count_tokens=words, max_tokens=5, overlap_tokens=5)
    with pytest.raises(ConfigError, match="no room for a single character"):
        split_passages([Passage("a", "x y z")], count_tokens=words, max_tokens=2)


def test_an_id_that_a_piece_would_take_is_an_error() -> None:
    passages = [Passage("a#0", "x"), Passage("a", "One two three. Four five six.")]
    with pytest.raises(DataError, match="'a#0' is used twice"):
        split_passages(passages, count_tokens=words, max_tokens=6)


def test_abbreviations_and_initials_do_not_end_sentences() -> None:
    text = "Dr. Smith et al. Found it, e.g. Asthma. See Fig. 2 by J. Doe. Done!"
    assert [text[u.start : u.end] for u in units_of(text)] == [
        "Dr. Smith et al. Found it, e.g. Asthma.",
        "See Fig. 2 by J. Doe.",
        "Done!",
    ]
