from __future__ import annotations

import os
from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate.bm25 import BM25

DOCUMENTS = {
    "asthma": "Inhaled corticosteroids are the mainstay of asthma treatment.",
    "gout": "Gout is treated with colchicine and allopurinol.",
    "flu": "Influenza vaccination prevents severe influenza.",
}


def shared_data() -> Path:
    given = os.environ.get("STM_DATA")
    return Path(given) if given else Path(__file__).parents[2].parent / "shared" / "data"


def test_the_document_that_shares_words_comes_first() -> None:
    run = BM25(DOCUMENTS).search({"q": "how is gout treated"})

    assert run["q"][0][0] == "gout"
    assert run["q"][0][1] > 0


def test_words_meet_by_their_stem_and_stop_words_count_for_nothing() -> None:
    run = BM25(DOCUMENTS).search({"stem": "vaccinations", "stop": "is the with of"})

    assert [name for name, _ in run["stem"]] == ["flu"]
    assert run["stop"] == []


def test_documents_without_a_shared_word_are_not_returned() -> None:
    run = BM25(DOCUMENTS).search({"q": "colchicine", "nothing": "zebra", "empty": ""})

    assert [name for name, _ in run["q"]] == ["gout"]
    assert run["nothing"] == run["empty"] == []


def test_the_querys_own_document_is_dropped_only_on_request() -> None:
    index = BM25(DOCUMENTS)

    assert [name for name, _ in index.search({"gout": "gout"})["gout"]] == ["gout"]
    assert index.search({"gout": "gout"}, exclude_self=True)["gout"] == []


def test_equal_scores_come_by_descending_id_and_are_cut_at_k() -> None:
    index = BM25({"b": "fever rash", "c": "fever rash", "a": "fever rash", "x": "cough"})

    assert [name for name, _ in index.search({"q": "fever"}, k=2)["q"]] == ["c", "b"]


def test_searching_twice_gives_the_same_even_after_dropping_a_document() -> None:
    index = BM25(DOCUMENTS)
    first = index.search({"gout": "gout asthma influenza"})
    index.search({"gout": "gout asthma influenza"}, exclude_self=True)

    assert index.search({"gout": "gout asthma influenza"}) == first


def test_a_corpus_that_cannot_be_indexed_is_refused() -> None:
    with pytest.raises(DataError, match="corpus is empty"):
        BM25({})
    with pytest.raises(DataError, match="none of the 2 documents"):
        BM25({"a": "the of", "b": "?"})


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="k is 0"):
        BM25(DOCUMENTS).search({"q": "gout"}, k=0)


@pytest.mark.skipif(
    not (shared_data() / "scifact").is_dir(), reason="needs SciFact: set STM_DATA to its parent folder"
)
def test_bm25_reaches_its_published_figure_on_scifact() -> None:
    from stm_training.data.reading import read_beir
    from stm_training.evaluate.metrics import mean, ndcg_at_k
    from stm_training.evaluate.systems import run_bm25

    collection = read_beir(shared_data() / "scifact", "test", allow_title_only=True)

    assert mean(ndcg_at_k(run_bm25(collection), collection.qrels)) == pytest.approx(0.687, abs=0.005)
