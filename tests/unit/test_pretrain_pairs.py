"""Pairs from raw text: what belongs together, nothing held out, nothing twice, the same for the same seed."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stm_retriever.errors import DataError
from stm_training.data.pair_file import PairFile
from stm_training.data.records import Pair, Passage, SkippedRow
from stm_training.data.splitting import split_passages
from stm_training.finetune.sampler import NoDuplicatesBatchSampler
from stm_training.pretrain.documents import stream_documents, whole_documents
from stm_training.pretrain.seen import SeenKeys
from stm_training.pretrain.settings import PretrainSection
from stm_training.pretrain.spans import body_of, first_words, passages_of, word_spans
from stm_training.pretrain.write import PretrainReport, write_pretraining_pairs

SHARED = Path(os.environ.get("STM_DATA", Path(__file__).parents[3] / "shared" / "data"))


def sentence(topic: str, number: int, words: int = 9) -> str:
    return (
        f"The {topic} story goes on with " + " ".join(f"{topic}{number}x{n}" for n in range(words - 6)) + "."
    )


def document(number: int, sentences: int = 12) -> Passage:
    topic = f"topic{number}"
    text = " ".join(sentence(topic, n) for n in range(sentences))
    return Passage(id=f"d{number}", title=f"All about the {topic}", text=text)


def written(
    tmp_path: Path, documents: list[Passage], *, seed: int = 0, **given_: Any
) -> tuple[list[Pair], PretrainReport]:
    held_out = given_.pop("held_out", ())
    section = PretrainSection.model_validate(given_)
    report = write_pretraining_pairs(
        documents, section, tmp_path / "pairs.jsonl", seed=seed, held_out=held_out
    )
    return list(PairFile(report.path)), report


def only(kind: str) -> dict[str, float]:
    return {"title": 0, "neighbours": 0, "crops": 0, kind: 1}


def test_titles_find_their_bodies(tmp_path: Path) -> None:
    documents = [document(n) for n in range(5)]
    pairs, report = written(tmp_path, documents, weights=only("title"), words_per_pair=1)
    assert [(pair.query, pair.positive, pair.positive_id) for pair in pairs] == [
        (passage.title, passage.text, passage.id) for passage in documents
    ]
    assert {(pair.source, pair.kind) for pair in pairs} == {("raw_text", "title")}
    assert report == PretrainReport(tmp_path / "pairs.jsonl", 5, {"title": 5}, 5, 5, {}, False)


def test_neighbours_are_passages_side_by_side_each_query_once(tmp_path: Path) -> None:
    passage = document(0, sentences=20)
    pairs, _ = written(
        tmp_path, [passage], weights=only("neighbours"), passage_words=(5, 30), words_per_pair=1
    )
    passages = passages_of(passage.text, 5, 30)
    sides = {frozenset(side) for side in pairwise(passages)}
    assert {frozenset((pair.query, pair.positive)) for pair in pairs} == sides
    assert len(pairs) == len(sides) == len({pair.query for pair in pairs}) == 6


def test_crops_are_stretches_of_one_document_within_the_lengths(tmp_path: Path) -> None:
    documents = [document(n, sentences=30) for n in range(6)]
    pairs, report = written(tmp_path, documents, weights=only("crops"), crop_words=(4, 20), words_per_pair=20)
    texts = {passage.id: passage.text for passage in documents}
    lengths = set()
    for pair in pairs:
        assert pair.query != pair.positive
        for text in (pair.query, pair.positive):
            assert text in texts[pair.positive_id or ""]
            lengths.add(len(text.split()))
    assert min(lengths) >= 4 and max(lengths) <= 20 and len(lengths) > 8
    assert report.pairs >= 6 * 30 * 9 // 20 - 3  # one per twenty words, save for crops that came twice


def test_crops_of_a_long_document_come_from_near_each_other(tmp_path: Path) -> None:
    text = " ".join(f"w{n}" for n in range(20_000))
    pairs, _ = written(
        tmp_path, [Passage("d", text)], weights=only("crops"), crop_words=(5, 10), words_per_pair=100
    )
    starts = [(int(pair.query.split()[0][1:]), int(pair.positive.split()[0][1:])) for pair in pairs]
    assert max(abs(query - positive) for query, positive in starts) < 40
    assert min(starts)[0] < 1000 and max(starts)[0] > 19_000  # and from everywhere in it


def test_kinds_come_by_their_weights_where_a_document_has_them(tmp_path: Path) -> None:
    documents = [document(n, sentences=60) for n in range(60)]
    weights = {"title": 0, "neighbours": 1, "crops": 3}
    _, report = written(
        tmp_path, documents, weights=weights, words_per_pair=60, passage_words=(5, 10), crop_words=(5, 20)
    )
    assert report.kinds["crops"] / report.pairs == pytest.approx(0.75, abs=0.07)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    documents = [document(n) for n in range(20)]
    contents = []
    for seed in (1, 1, 2):
        written(tmp_path, documents, seed=seed)
        contents.append((tmp_path / "pairs.jsonl").read_bytes())
    assert contents[0] == contents[1] != contents[2]
    alone, _ = written(tmp_path, documents[7:8], seed=1)
    among, _ = written(tmp_path, documents, seed=1)
    assert alone == [pair for pair in among if pair.positive_id == "d7"]  # whatever else is in the corpus


def test_held_out_queries_and_documents_are_in_no_pair(tmp_path: Path) -> None:
    documents = [document(n) for n in range(6)]
    held_out = ["ALL about - the topic2?", documents[4].text.upper(), documents[5].content]
    pairs, report = written(tmp_path, documents, held_out=held_out, words_per_pair=10)
    assert {pair.positive_id for pair in pairs} == {"d0", "d1", "d2", "d3"}
    assert documents[2].title not in {pair.query for pair in pairs}
    assert documents[3].title in {pair.query for pair in pairs}
    assert report.dropped["documents held out"] == 2
    assert report.dropped["pairs held out"] == 1
    assert report.documents == 6 and report.used == 4


def test_texts_that_come_again_give_pairs_once(tmp_path: Path) -> None:
    first = document(0)
    again = replace(first, id="copy", text=first.text.upper().replace(" ", "\n"))
    namesake = replace(document(1), title=first.title)
    pairs, report = written(tmp_path, [first, again, namesake], weights=only("title"))
    assert [pair.positive_id for pair in pairs] == ["d0"]
    assert report.dropped == {"documents repeated": 1, "queries repeated": 1}
    with pytest.raises(DataError, match=r"gave no pair .*queries equal to their positive"):
        written(tmp_path, [Passage("d", "ha " * 40)], weights=only("neighbours"), passage_words=(20, 20))


def test_a_corpus_without_a_pair_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    before, _ = written(tmp_path, [document(0)])
    with pytest.raises(DataError, match=r"2 documents gave no pair .*\(2 documents without a pair\)"):
        written(tmp_path, [Passage("a", "too short"), Passage("b", "", title="Only a title that is long")])
    assert list(PairFile(tmp_path / "pairs.jsonl")) == before


def test_the_limit_stops_reading(tmp_path: Path) -> None:
    read: list[str] = []

    def corpus() -> Iterator[Passage]:
        for n in range(1000):
            read.append(f"d{n}")
            yield document(n)

    report = write_pretraining_pairs(corpus(), PretrainSection(limit=15), tmp_path / "pairs.jsonl", seed=0)
    assert report.pairs == len(PairFile(report.path)) == sum(report.kinds.values()) == 15
    assert report.limited and len(read) < 20 and report.used <= report.documents < 20


def test_pieces_of_a_split_document_are_one_document_again(tmp_path: Path) -> None:
    documents = [document(n, sentences=30) for n in range(3)]
    pieces = split_passages(
        documents,
        count_tokens=lambda texts: [len(text.split()) for text in texts],
        max_tokens=60,
        overlap_tokens=15,
    )
    assert len(pieces) > 9
    together = list(whole_documents(pieces))
    assert [(passage.id, passage.text) for passage in together] == [
        (passage.id, passage.text) for passage in documents
    ]
    pairs, _ = written(tmp_path, pieces)
    assert {pair.positive_id for pair in pairs} == {"d0", "d1", "d2"}


def test_no_batch_of_pretraining_opposes_a_document_to_itself(tmp_path: Path) -> None:
    written(tmp_path, [document(n) for n in range(30)], words_per_pair=20)
    pairs = PairFile(tmp_path / "pairs.jsonl")
    for batch in NoDuplicatesBatchSampler(pairs, batch_size=8, seed=0):
        assert len({pairs[row].positive_id for row in batch}) == 8


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        corpus = (document(n, sentences=20) for n in range(count))
        tracemalloc.start()
        write_pretraining_pairs(corpus, PretrainSection(words_per_pair=200), tmp_path / "pairs.jsonl", seed=0)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(20)  # whatever is kept from a first call
    text = len(document(0, sentences=20).text)
    assert peak(800) - peak(100) < 0.1 * 700 * text


@given(keys=st.lists(st.integers(0, 2**64 - 1) | st.integers(2, 40), max_size=80))
def test_seen_keys_is_a_set(keys: list[int]) -> None:
    seen, expected = SeenKeys(), set()
    for key in keys:
        assert seen.add(key) == ((key or 1) not in expected)
        expected.add(key or 1)
    assert len(seen) == len(expected)


def test_seen_keys_stays_a_set_as_it_grows() -> None:
    seen = SeenKeys()
    keys = [n * 0x9E3779B97F4A7C15 % 2**64 for n in range(1, 20_000)]
    assert all(seen.add(key) for key in keys)
    assert not any(seen.add(key) for key in keys)
    assert len(seen) == len(keys)


TEXT = st.text(st.sampled_from("ab. \n#-漢字Zé"), max_size=200)


@settings(max_examples=150, deadline=None)
@given(text=TEXT, fewest=st.integers(1, 6), more=st.integers(0, 8))
def test_passages_follow_each_other_and_keep_their_lengths(text: str, fewest: int, more: int) -> None:
    end = 0
    for passage in passages_of(text, fewest, fewest + more):
        assert fewest <= len(word_spans(passage)) <= fewest + more
        place = text.index(passage, end)
        end = place + len(passage)


def test_sections_and_paragraphs_are_passages_and_headings_stay_with_their_text() -> None:
    text = (
        "Opening words that say what this is.\n\n# Cause\n\nA germ does it all the time.\n\n"
        "Another paragraph of the cause.\n\n# Cure\nRest. Tea. More rest and tea."
    )
    assert passages_of(text, 4, 50) == [
        "Opening words that say what this is.",
        "# Cause\n\nA germ does it all the time.",
        "Another paragraph of the cause.",
        "# Cure\nRest. Tea. More rest and tea.",
    ]


@pytest.mark.parametrize(
    ("title", "text", "body"),
    [
        ("Hay fever", "# Hay Fever\n\nPollen does it.", "Pollen does it."),
        ("Hay fever", "Hay fever. Pollen does it.", "Pollen does it."),
        ("Hay fever", "Hay fever\n=========\nPollen does it.", "Pollen does it."),
        ("Hay fever", "Hay fever is common.", "Hay fever is common."),  # a sentence, no title
        ("Hay fever", "Hay fevers. Pollen.", "Hay fevers. Pollen."),
        ("Hay fever", "Hay", "Hay"),
        ("", " Pollen. ", "Pollen."),
    ],
)
def test_a_title_that_opens_its_text_is_no_part_of_the_body(title: str, text: str, body: str) -> None:
    assert body_of(title, text) == body


def test_a_long_body_ends_with_a_sentence_and_scripts_without_spaces_count_characters() -> None:
    text = "One two three. Four five six seven. Eight nine ten eleven."
    assert first_words(text, word_spans(text), 9) == "One two three. Four five six seven."
    text = "花粉は鼻炎の原因です。" * 4
    assert len(word_spans(text)) == 44
    assert first_words(text, word_spans(text), 25) == "花粉は鼻炎の原因です。" * 2


def test_raw_text_is_read_from_rows_folders_and_files(tmp_path: Path) -> None:
    rows = [
        {"title": "T1", "text": "one"},
        {"title": "T2", "abstract": "two", "year": 1999},
        {"_id": 7, "text": "three"},
        {"title": "only"},
    ]
    file = tmp_path / "raw.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    documents = list(stream_documents(file))
    assert [(d.id, d.title, d.text) for d in documents] == [
        ("raw.jsonl:1", "T1", "one"),
        ("raw.jsonl:2", "T2", "two"),
        ("7", "", "three"),
        ("raw.jsonl:4", "only", ""),
    ]
    beir = tmp_path / "beir"
    beir.mkdir()
    (beir / "corpus.jsonl").write_bytes(file.read_bytes())
    (beir / "queries.jsonl").write_text('{"_id": "q", "text": "no document"}\n', encoding="utf-8")
    assert [d.text for d in stream_documents(beir)] == ["one", "two", "three", ""]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.txt").write_text("plain", encoding="utf-8")
    (folder / "a.md").write_text("# Title\n\nbody", encoding="utf-8")
    (folder / "c.png").write_bytes(b"\x89PNG")
    assert [(d.id, d.title) for d in stream_documents(folder)] == [("a.md", "Title"), ("b.txt", "")]


def test_bad_rows_of_raw_text_are_named_or_listed(tmp_path: Path) -> None:
    file = tmp_path / "raw.jsonl"
    file.write_text('{"text": "fine"}\n{"title": "T", "text": ["no"]}\n{"text": " "}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"raw.jsonl:2: 'text' is list, not a string"):
        list(stream_documents(file))
    skipped: list[SkippedRow] = []
    assert [d.text for d in stream_documents(file, "skip", skipped=skipped)] == ["fine"]
    assert [row.line for row in skipped] == [2, 3]
    with pytest.raises(DataError, match="is not there"):
        list(stream_documents(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no document could be read"):
        list(stream_documents(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("given_", "cause"),
    [
        ({"weights": {"title": 0, "neighbours": 0, "crops": 0}}, "all 0"),
        ({"crop_words": (30, 10)}, "crop_words is 30 to 10"),
        ({"wieghts": {}}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given_: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValidationError, match=cause):
        PretrainSection.model_validate(given_)


def test_real_titles_and_abstracts_give_pairs_of_each_kind(tmp_path: Path) -> None:
    corpus = SHARED / "title_abstract_pairs.jsonl"
    if not corpus.is_file():
        pytest.skip(f"{corpus} is not there")
    section = PretrainSection(limit=600)
    report = write_pretraining_pairs(stream_documents(corpus), section, tmp_path / "pairs.jsonl", seed=0)
    assert min(report.kinds[kind] for kind in ("title", "neighbours", "crops")) > 60
    for pair in PairFile(report.path):
        assert len(word_spans(pair.query)) >= 3 and len(word_spans(pair.positive)) >= 10
