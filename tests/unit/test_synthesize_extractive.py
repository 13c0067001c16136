"""Pairs without any language model."""

from __future__ import annotations

import pytest

from stm_retriever.errors import ConfigError
from stm_training.data.records import Passage
from stm_training.synthesize.extractive import ExtractiveGenerator
from stm_training.synthesize.run import synthesize

TEXT = (
    "The wheezing of bronchospasm is heard with a stethoscope on most of the days. "
    "The salbutamol inhaler opens the airways of the lung within a few minutes. "
    "The patients who smoke should be told that the smoke makes it worse. "
    "The doctor will see them again after some weeks to judge the effect."
)


def corpus(count: int = 30) -> list[Passage]:
    filler = [
        Passage(
            f"f{n}", f"The item number{n} of the list is about the thing{n} and the matter{n}.", f"Item {n}"
        )
        for n in range(count)
    ]
    return [Passage("asthma", TEXT, "Asthma attacks at night"), *filler]


def test_a_title_is_taken_out_of_its_positive() -> None:
    pair = ExtractiveGenerator.fit(corpus()).pair(corpus()[0], "title")
    assert pair is not None
    assert (pair.query, pair.positive) == ("Asthma attacks at night", TEXT)
    assert (pair.source, pair.kind, pair.positive_id) == ("extractive", "title", "asthma")


def test_a_title_that_several_documents_carry_gives_no_pair_but_pieces_of_one_document_may_share_it() -> None:
    shared = [Passage("a", TEXT, "Methods"), Passage("b", TEXT, "METHODS")]
    assert ExtractiveGenerator.fit(shared).pair(shared[0], "title") is None
    pieces = [
        Passage("a#0", TEXT, "Asthma at night", parent_id="a"),
        Passage("a#1", TEXT, "Asthma at night", parent_id="a"),
    ]
    assert ExtractiveGenerator.fit(pieces).pair(pieces[0], "title") is not None


def test_a_sentence_is_taken_out_of_its_positive_and_nothing_else_is() -> None:
    passage = corpus()[0]
    pair = ExtractiveGenerator.fit(corpus()).pair(passage, "sentence")
    assert pair is not None
    assert pair.query in TEXT
    assert pair.query not in pair.positive
    assert sorted((pair.positive + " " + pair.query).split()) == sorted(passage.content.split())


def test_a_passage_that_would_not_keep_enough_gives_no_sentence() -> None:
    short = Passage("s", "The inhaler opens the airways. It works for a few hours.")
    assert ExtractiveGenerator.fit([short]).pair(short, "sentence") is None


def test_keywords_are_the_words_that_are_rare_in_the_corpus() -> None:
    pair = ExtractiveGenerator.fit(corpus()).pair(corpus()[0], "keywords")
    assert pair is not None
    words = set(pair.query.lower().split())
    assert words & {"salbutamol", "bronchospasm", "wheezing", "asthma", "stethoscope", "inhaler"}
    assert not words & {"the", "of"}


def test_scripts_without_spaces_yield_keywords_and_sentences() -> None:
    text = (
        "糖尿病は血糖値が高くなる病気です。食事療法と運動療法が大切です。"
        "薬物治療が必要な場合もあります。合併症の予防が治療の目的です。"
    )
    passage = Passage("dm", text)
    result = synthesize([passage, Passage("x", "喘息は気道の病気です。吸入薬を使います。")])
    kinds = {pair.kind for pair in result.pairs if pair.positive_id == "dm"}
    assert {"keywords", "sentence"} <= kinds


def test_the_same_seed_gives_the_same_pairs_and_another_seed_other_sentences() -> None:
    passages = [Passage(str(n), TEXT.replace("The", f"The{n}"), f"T {n}") for n in range(20)]
    assert synthesize(passages, seed=1).pairs == synthesize(passages, seed=1).pairs
    assert synthesize(passages, seed=1).pairs != synthesize(passages, seed=2).pairs


def test_the_result_says_that_no_model_wrote_it_and_has_no_negatives() -> None:
    result = synthesize(corpus())
    assert set(result.sources) == {"extractive"}
    assert all(pair.negatives == () for pair in result.pairs)
    assert any("no language model" in note for note in result.notes)
    assert any("no hard negatives" in note for note in result.notes)


def test_kinds_that_need_a_model_are_refused_without_one() -> None:
    with pytest.raises(ConfigError, match=r"no model is configured.*title, keywords, sentence"):
        synthesize(corpus(), kinds=["question"])


def test_held_out_queries_are_dropped_and_counted() -> None:
    result = synthesize(corpus(), kinds=["title"], held_out_queries=["asthma attacks at NIGHT"])
    assert result.dropped["held_out"].examples == (("asthma", "Asthma attacks at night"),)
    assert all(pair.positive_id != "asthma" for pair in result.pairs)
