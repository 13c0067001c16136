from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Pair, Passage
from stm_training.mining.mine import mine_negatives
from stm_training.mining.report import MiningReport
from stm_training.mining.settings import MineSection

NEAREST = MineSection(preset="ranks", skip_top=0, pool=None, num_negatives=2)


def at(cosine: float) -> NDArray[np.float32]:
    """A vector with this cosine to the one query, which is (1, 0)."""
    return np.array([cosine, np.sqrt(1 - cosine**2)], dtype=np.float32)


def mine(
    pairs: Sequence[Pair],
    corpus: Sequence[tuple[Passage, float]],
    section: MineSection = NEAREST,
    seed: int = 0,
) -> tuple[list[Pair], MiningReport]:
    """Every query is (1, 0); a passage's number is its similarity to it; unknown texts are positives at 0.9."""
    cosines = {passage.content: cosine for passage, cosine in corpus}
    return mine_negatives(
        pairs,
        [passage for passage, _ in corpus],
        section,
        encode_query=lambda texts: np.tile(at(1.0), (len(texts), 1)),
        encode_document=lambda texts: np.stack([at(cosines.get(text, 0.9)) for text in texts]),
        seed=seed,
    )


def corpus(*cosines: float) -> list[tuple[Passage, float]]:
    return [(Passage(f"d{place}", f"document {place}"), cosine) for place, cosine in enumerate(cosines)]


def test_the_nearest_that_are_not_the_positive_come_nearest_first() -> None:
    (pair,), _ = mine([Pair("q", "document 0")], corpus(0.9, 0.3, 0.5, 0.4))

    assert pair.negatives == ("document 2", "document 3")


@pytest.mark.parametrize(
    "twin", ["The fever, of unknown cause.", "the FEVER of unknown cause", "The  fever\nof unknown cause"]
)
def test_a_positives_exact_or_normalised_duplicate_is_never_its_negative(twin: str) -> None:
    documents = [(Passage("copy", twin), 0.89), *corpus(0.2, 0.1)]

    (pair,), report = mine([Pair("q", "The fever, of unknown cause.")], documents)

    assert pair.negatives == ("document 0", "document 1")
    assert report.excluded["positive"] == report.excluded_near["positive"] == 1


def test_the_positive_is_found_by_its_id_where_its_text_was_changed() -> None:
    (pair,), _ = mine([Pair("q", "cut off ...", positive_id="d0")], corpus(0.9, 0.3, 0.2))

    assert "document 0" not in pair.negatives


def test_other_passages_of_the_positives_document_are_left_out() -> None:
    pieces = [(Passage(f"p{n}", f"piece {n}", parent_id="book"), 0.8) for n in range(3)]
    others = corpus(0.2, 0.1)

    by_id, report = mine([Pair("q", "piece 0", positive_id="p0")], pieces + others)
    by_text, _ = mine([Pair("q", "piece 0")], pieces + others)
    by_document, _ = mine([Pair("q", "a summary of the book", positive_id="book")], pieces + others)

    assert (
        by_id[0].negatives == by_text[0].negatives == by_document[0].negatives == ("document 0", "document 1")
    )
    assert report.excluded["same_parent"] == 2


def test_a_duplicate_brings_its_own_document_with_it() -> None:
    documents = [
        (Passage("a0", "shared disclaimer", parent_id="a"), 0.9),
        (Passage("b0", "Shared disclaimer!", parent_id="b"), 0.9),
        (Passage("b1", "more of b", parent_id="b"), 0.8),
        *corpus(0.2, 0.1),
    ]

    (pair,), _ = mine([Pair("q", "shared disclaimer", positive_id="a0")], documents)

    assert pair.negatives == ("document 0", "document 1")


def test_what_any_pair_calls_relevant_is_no_negative_of_that_query() -> None:
    pairs = [
        Pair("What is gout?", "document 0"),
        Pair("what is gout", "document 1"),
        Pair("other", "document 2"),
    ]

    mined, _ = mine(pairs, corpus(0.9, 0.8, 0.7, 0.6, 0.5))

    assert mined[0].negatives == mined[1].negatives == ("document 2", "document 3")
    assert mined[2].negatives == ("document 0", "document 1")


def test_a_query_that_is_a_document_does_not_get_itself() -> None:
    documents = [(Passage("self", "An argument."), 1.0), *corpus(0.9, 0.3, 0.2)]

    (pair,), report = mine([Pair("an argument", "document 0")], documents)

    assert pair.negatives == ("document 1", "document 2")
    assert report.excluded["query_itself"] == 1


def test_duplicates_in_the_corpus_are_mined_once() -> None:
    documents = [*corpus(0.9, 0.5), (Passage("twin", "Document 1."), 0.5), (Passage("x", "else"), 0.1)]

    (pair,), report = mine([Pair("q", "document 0")], documents)

    assert pair.negatives == ("document 1", "else")
    assert (report.counts["passages"], report.counts["texts"]) == (4, 3)


def test_margins_are_measured_from_the_lowest_scoring_positive_of_a_query() -> None:
    section = MineSection(
        preset="margin", positive_share=None, absolute_margin=0.05, pool=None, num_negatives=3
    )
    pairs = [Pair("q", "document 0"), Pair("q", "document 1")]

    mined, report = mine(pairs, corpus(0.9, 0.6, 0.8, 0.58, 0.5, 0.4), section)

    assert mined[0].negatives == mined[1].negatives == ("document 4", "document 5")
    assert report.rules["absolute_margin"] == 2


def test_the_same_seed_draws_the_same_and_another_one_does_not() -> None:
    documents = corpus(0.9, *np.linspace(0.1, 0.8, 60))
    pairs = [Pair(f"q{n}", "document 0") for n in range(8)]
    section = MineSection(preset="ranks", skip_top=5, max_rank=40, pool=30, num_negatives=3)

    first, again, other = (mine(pairs, documents, section, seed)[0] for seed in (1, 1, 2))

    assert first == again
    assert first != other
    assert len({pair.negatives for pair in first}) > 1  # not the same draw for every query
    ranked = [f"document {place}" for place in range(60, 0, -1)]
    for pair in first:
        ranks = [ranked.index(text) + 1 for text in pair.negatives]
        assert ranks == sorted(ranks) and 6 <= min(ranks) <= max(ranks) <= 35


def test_own_negatives_are_kept_added_to_or_replaced() -> None:
    pairs = [Pair("q", "document 0", negatives=("by the LLM", "Document 1")), Pair("r", "document 0")]
    documents = corpus(0.9, 0.5, 0.4, 0.3)

    def mixed(mix: str) -> list[tuple[str, ...]]:
        section = NEAREST.model_copy(update={"mix": mix})
        return [pair.negatives for pair in mine(pairs, documents, section)[0]]

    mined = ("document 1", "document 2")
    assert mixed("keep") == [("by the LLM", "Document 1"), mined]
    assert mixed("add") == [("by the LLM", "Document 1", "document 2", "document 3"), mined]
    assert mixed("replace") == [mined, mined]


def test_mining_for_pairs_that_all_keep_their_own_needs_no_model() -> None:
    pairs = [Pair("q", "document 0", negatives=("own",))]
    passages = [passage for passage, _ in corpus(0.9, 0.5, 0.4, 0.3)]

    mined, report = mine_negatives(pairs, passages, NEAREST.model_copy(update={"mix": "keep"}))

    assert mined == pairs
    assert report.counts["mined"] == 0
    assert "0 negatives mined" in report.text()


def test_everything_else_of_a_pair_stays() -> None:
    pair = Pair("q", "document 0", query_id="q7", positive_id="d0", source="llm", kind="claim", prompt="p: ")

    (mined,), _ = mine([pair], corpus(0.9, 0.3, 0.2))

    assert Pair(**{**{name: getattr(mined, name) for name in Pair.__slots__}, "negatives": ()}) == pair


def test_bm25_mines_what_shares_words_and_nothing_else() -> None:
    passages = [
        Passage("a", "Gout is treated with colchicine."),
        Passage("b", "Gout attacks follow beer."),
        Passage("c", "Asthma is treated with steroids."),
        Passage("d", "Bridges rust."),
    ]
    section = MineSection(preset="ranks", miner="bm25", skip_top=0, pool=None, num_negatives=3)

    (pair,), report = mine_negatives([Pair("treated gout", passages[0].text)], passages, section)

    assert set(pair.negatives) == {passages[1].text, passages[2].text}
    assert (report.model, report.counts["queries_short"]) == ("bm25", 1)
    assert report.positives.quantile(0.5) > report.kept.quantile(1.0) > 0


def test_both_miners_take_turns_and_the_model_judges() -> None:
    documents = [
        (Passage("p", "gout colchicine"), 0.9),
        (Passage("v1", "bridges"), 0.6),
        (Passage("v2", "rivers"), 0.5),
        (Passage("w1", "gout gout beer"), 0.2),
        (Passage("w2", "gout asthma steroids"), 0.1),
        (Passage("near", "gout colchicine dose"), 0.88),
    ]
    rules = {"preset": "margin", "pool": None, "miner": "both", "num_negatives": 4, "max_rank": 4}

    (pair,), report = mine([Pair("gout", "gout colchicine")], documents, MineSection(**rules))

    # The model finds "gout colchicine dose" first, which comes too close to the positive.
    assert pair.negatives == ("gout gout beer", "bridges", "gout asthma steroids", "rivers")
    assert report.rules["positive_share"] == 1


def test_more_negatives_than_the_corpus_holds_is_an_error_with_the_numbers() -> None:
    section = MineSection(preset="ranks", skip_top=2, pool=None, num_negatives=5)

    with pytest.raises(
        DataError, match=r"num_negatives is 5, but at most 3 .* 6 different texts .* 2 nearest"
    ):
        mine([Pair("q", "document 0")], corpus(0.9, 0.1, 0.2, 0.3, 0.4, 0.5), section)
    with pytest.raises(DataError, match="corpus is empty"):
        mine([Pair("q", "document 0")], [])


def test_rules_that_nothing_passes_are_an_error_that_names_the_counts() -> None:
    section = MineSection(preset="margin", absolute_margin=0.5, positive_share=None, pool=None)

    with pytest.raises(DataError, match="no candidate of any of the 1 queries") as caught:
        mine([Pair("q", "document 0")], corpus(0.9, 0.8, 0.7), section)
    assert "2  100.0 %  too close to the positive: not below it by the margin" in str(caught.value)


def test_queries_that_find_too_few_get_fewer_and_are_counted() -> None:
    section = MineSection(preset="margin", positive_share=0.5, pool=None, num_negatives=2)

    mined, report = mine([Pair("q", "document 0")], corpus(0.8, 0.7, 0.3), section)

    assert mined[0].negatives == ("document 2",)
    assert (report.counts["queries_short"], report.counts["queries_without"]) == (1, 0)


def test_vectors_that_cannot_be_compared_are_refused() -> None:
    passages = [passage for passage, _ in corpus(0.9, 0.1, 0.2, 0.3)]
    pairs = [Pair("q", "document 0")]

    def mine_with(query: object, document: object) -> None:
        mine_negatives(
            pairs,
            passages,
            NEAREST,
            encode_query=lambda texts: np.array([query] * len(texts)),
            encode_document=lambda texts: np.array([document] * len(texts)),
        )

    with pytest.raises(ConfigError, match=r"length 2\.000, not 1"):
        mine_with([1.0, 0.0], [2.0, 0.0])
    with pytest.raises(DataError, match=r"query vector of 'q' is not finite"):
        mine_with([np.nan, 0.0], [1.0, 0.0])
    with pytest.raises(ConfigError, match="query vectors have 3 dimensions and document vectors 2"):
        mine_with([1.0, 0.0, 0.0], [1.0, 0.0])
    with pytest.raises(ConfigError, match="no model encodes them"):
        mine_negatives(pairs, passages, NEAREST)


def test_progress_ends_at_the_number_of_queries() -> None:
    seen: list[tuple[int, int]] = []
    passages = [passage for passage, _ in corpus(0.9, 0.1, 0.2, 0.3)]
    mine_negatives(
        [Pair(f"q{n}", "document 0") for n in range(5)],
        passages,
        NEAREST,
        encode_query=lambda texts: np.tile(at(1.0), (len(texts), 1)),
        encode_document=lambda texts: np.tile(at(0.5), (len(texts), 1)),
        progress=lambda done, total: seen.append((done, total)),
    )

    assert seen[-1] == (5, 5)
