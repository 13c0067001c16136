"""AIANO both ways: nothing that the annotators did is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stm_retriever.errors import DataError
from stm_training.data.aiano import AianoDataset, from_collection, read_aiano, write_aiano
from stm_training.data.reading import read_beir, write_beir
from stm_training.data.records import Collection, Pair, Passage, SkippedRow

ASTHMA = "Dust mites trigger asthma. Wash the bedding hot. Pollen flies in May."
GOUT = "Gout hurts 🦶 at night. 😀 Drink water, eat little meat."


def at(text: str, part: str, utf16: bool = False) -> dict[str, int]:
    start = text.index(part)
    if utf16:
        start = len(text[:start].encode("utf-16-le")) // 2
        return {"start": start, "end": start + len(part.encode("utf-16-le")) // 2}
    return {"start": start, "end": start + len(part)}


def passage(document: str, text: str, part: str, **more: Any) -> dict[str, Any]:
    return {"document_id": document, "text": part, "span": at(text, part), **more}


DOCUMENTS = {
    "documents": [
        {"document_id": "asthma", "subject_id": "lungs", "title": "Mites", "text": ASTHMA, "Tags": ["a", 1]},
        {"document_id": "gout", "subject_id": 7, "text": GOUT, "Date": None},
        {"document_id": "unused", "subject_id": "s", "text": "Nobody asks about this."},
    ]
}
ANNOTATIONS: dict[str, Any] = {
    "annotations": [
        {
            "question": "What helps against mites?",
            "answer": "Hot washes.",
            "passages": [
                passage("asthma", ASTHMA, "Wash the bedding hot.", level="Highly relevant", by="anna"),
                passage("asthma", ASTHMA, "Dust mites trigger asthma.", level="relevant"),
                passage("gout", GOUT, "eat little meat", level="Distracting"),
            ],
            "metadata": {"edits": [{"who": "llm"}, {"who": "anna", "at": "2026-01-02"}]},
        },
        {
            "id": "gout-1",
            "question": "When does gout hurt?",
            "answer": "",
            "passages": [
                {"document_id": "gout", "text": "at night", "span": at(GOUT, "at night", utf16=True)},
                {
                    "document_id": "gout",
                    "text": "😀 Drink",
                    "span": at(GOUT, "😀 Drink", utf16=True),
                    "level": 0,
                },
            ],
            "metadata": {},
        },
        {"question": "Who nursed?", "answer": "?", "passages": [], "metadata": {"open": True}},
        {
            "question": "Does pollen cause gout?",
            "answer": "No.",
            "passages": [passage("asthma", ASTHMA, "Pollen flies in May.", level="IRRELEVANT")],
            "metadata": None,
        },
    ]
}


def write(folder: Path, annotations: Any = ANNOTATIONS, documents: Any = DOCUMENTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "annotations.json").write_text(
        json.dumps(annotations, indent=2, ensure_ascii=False), encoding="utf-8"
    )
    if documents is not None:
        (folder / "documents.json").write_text(json.dumps(documents, ensure_ascii=False), encoding="utf-8")
    return folder


def files(folder: Path) -> tuple[Any, Any]:
    return tuple(
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("annotations", "documents")
    )


@pytest.fixture
def data(tmp_path: Path) -> AianoDataset:
    return read_aiano(write(tmp_path / "given"))


def test_reading_and_writing_changes_nothing(tmp_path: Path, data: AianoDataset) -> None:
    write_aiano(tmp_path / "out", data)
    assert files(tmp_path / "out") == (ANNOTATIONS, DOCUMENTS)


def test_a_collection_and_its_beir_folder_keep_everything(tmp_path: Path, data: AianoDataset) -> None:
    write_beir(tmp_path / "beir", data.collection(), "train")
    back = from_collection(read_beir(tmp_path / "beir", "train"))
    write_aiano(tmp_path / "out", back)
    assert files(tmp_path / "out") == (ANNOTATIONS, DOCUMENTS)
    assert back.pairs() == data.pairs()


def test_levels_of_the_callers_survive_the_way_through_a_collection(tmp_path: Path) -> None:
    rows = [
        {
            "question": "Why?",
            "passages": [passage("asthma", ASTHMA, "Pollen flies in May.", level="Key Point")],
        }
    ]
    data = read_aiano(write(tmp_path, {"annotations": rows}), levels={"key point": 3})
    assert data.collection().qrels == {"q1": {"asthma": 3}}
    assert from_collection(data.collection()).annotations == data.annotations


def test_judgements_name_documents_with_their_best_grade(data: AianoDataset) -> None:
    collection = data.collection()
    assert collection.qrels == {"q1": {"asthma": 2, "gout": 0}, "gout-1": {"gout": 1}}
    assert collection.queries == {"q1": "What helps against mites?", "gout-1": "When does gout hurt?"}
    assert [p.content for p in collection.corpus.values()] == [
        f"Mites {ASTHMA}",
        GOUT,
        "Nobody asks about this.",
    ]


def test_relevant_spans_are_positives_and_distracting_ones_hard_negatives(data: AianoDataset) -> None:
    first, second, third = data.pairs()
    assert (first.query, first.positive) == ("What helps against mites?", "Wash the bedding hot.")
    assert first.negatives == second.negatives == ("eat little meat",)
    assert second.positive == "Dust mites trigger asthma."
    assert (third.query_id, third.positive, third.negatives) == ("gout-1", "at night", ("😀 Drink",))
    assert {pair.source for pair in data.pairs()} == {"aiano"}


def test_spans_keep_document_and_offsets_and_are_cut_from_the_text(data: AianoDataset) -> None:
    spans = {span.id: span for span in data.spans()}
    assert set(spans) >= {pair.positive_id for pair in data.pairs()}
    for span in spans.values():
        assert span.parent_id is not None
        assert data.documents[span.parent_id].text[span.start : span.end] == span.text
    assert spans["asthma#27-48"].title == "Mites"


def test_the_browsers_offsets_behind_an_emoji_are_understood(data: AianoDataset) -> None:
    night, drink = data.annotations[1].spans
    assert at(GOUT, "at night", utf16=True) != at(GOUT, "at night")
    assert (night.start, night.end) == tuple(at(GOUT, "at night").values())
    assert drink.text == "😀 Drink"


def test_offsets_that_count_characters_are_understood_too(tmp_path: Path) -> None:
    rows = [{"question": "When?", "passages": [passage("gout", GOUT, "Drink water")]}]
    (annotation,) = read_aiano(write(tmp_path, {"annotations": rows})).annotations
    assert annotation.spans[0].text == "Drink water"


EXPORT = {
    "metadata": {"format": "structured-annotation-dataset", "exportedBy": "AIANO Annotation Tool"},
    "project": {"id": "1", "config": {"annotationLevels": [{"name": "Key Point", "score": 2}]}},
    "entries": [
        {
            "id": 12,
            "entryName": "first",
            "createdAt": "2026-02-03",
            "aianoBlocks": {"Question": "What helps?", "Answer": "Washing.", "Hard?": True},
            "highlights": [
                {
                    "id": "h1",
                    "text": "Wash the bedding hot.",
                    **at(ASTHMA, "Wash the bedding hot."),
                    "documentId": "asthma",
                    "annotationLevel": "Key Point",
                    "annotationLevelId": 2,
                    "document": {"id": "asthma", "text": ASTHMA},
                },
                {
                    "id": "h2",
                    "text": "eat little meat",
                    **at(GOUT, "eat little meat", utf16=True),
                    "documentId": "gout",
                    "annotationLevel": "IRRELEVANT",
                    "annotationLevelId": 1,
                },
            ],
            "documents": [
                {"id": "asthma", "text": ASTHMA, "Category": "lungs"},
                {"id": "gout", "text": GOUT},
            ],
            "metadata": {"totalHighlights": 2},
        },
        {
            "id": 13,
            "aianoBlocks": {"Question": "When does gout hurt?"},
            "highlights": [],
            "documents": [{"id": "gout", "text": GOUT}],
            "metadata": {},
        },
    ],
    "summary": {"totalEntries": 2},
}


def test_the_tools_own_export_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "export.json"
    file.write_text(json.dumps(EXPORT), encoding="utf-8")
    data = read_aiano(file)
    (pair,) = data.pairs()
    assert (pair.query_id, pair.query, pair.positive) == ("12", "What helps?", "Wash the bedding hot.")
    assert pair.negatives == ("eat little meat",)
    assert data.annotations[0].spans[0].grade == 2, "an unknown level is graded by its score"
    assert data.annotations[0].spans[1].grade == 0, "a known level's name counts more than its score"
    assert data.documents["asthma"].metadata == {"Category": "lungs"}
    assert [annotation.row["answer"] for annotation in data.annotations] == ["Washing.", ""]
    metadata = data.annotations[0].row["metadata"]
    assert metadata["aiano_blocks"]["Hard?"] is True
    assert (metadata["entryName"], metadata["createdAt"]) == ("first", "2026-02-03")
    assert data.annotations[0].spans[0].row["id"] == "h1"
    write_aiano(tmp_path / "out", data)
    again = read_aiano(tmp_path / "out")
    assert again.annotations == data.annotations
    assert again.pairs() == data.pairs()


def test_the_question_block_can_be_named(tmp_path: Path) -> None:
    entry = {"aianoBlocks": {"Frage": "Was hilft?", "Antwort": "Waschen."}, "highlights": []}
    file = write(tmp_path, {"entries": [entry]}) / "annotations.json"
    with pytest.raises(DataError, match=r"(?s)'Frage'.*--question-block"):
        read_aiano(file)
    (annotation,) = read_aiano(file, question_block="Frage", answer_block="Antwort").annotations
    assert (annotation.question, annotation.row["answer"]) == ("Was hilft?", "Waschen.")


def test_documents_as_the_upload_takes_them_are_read_and_written(tmp_path: Path, data: AianoDataset) -> None:
    write_aiano(tmp_path / "out", data, for_upload=True)
    _, documents = files(tmp_path / "out")
    assert isinstance(documents, list), "AIANO's upload refuses anything else"
    assert [(d["Document_Id"], d["Subject_Id"]) for d in documents] == [
        ("asthma", "lungs"),
        ("gout", "7"),
        ("unused", "s"),
    ]
    assert read_aiano(tmp_path / "out").pairs() == data.pairs()


def test_a_collection_from_elsewhere_becomes_questions_with_whole_documents() -> None:
    corpus = {
        "d": Passage("d", "First half. Second half.", "Title"),
        "d#1": Passage("d#1", "Second half.", "Title", parent_id="d", start=12, end=24),
        "e": Passage("e", "Another."),
    }
    collection = Collection("c", corpus, {"q": "Half?"}, {"q": {"d#1": 1, "e": 0}})
    pairs = [Pair("Half?", "Second half.", ("Another.", "From nowhere."), query_id="q")]
    data = from_collection(collection, pairs)
    assert list(data.documents) == ["d", "e", "q/negative-2"]
    assert [(s.id, s.grade) for s in data.annotations[0].spans] == [
        ("d#12-24", 1),
        ("e#0-8", 0),
        ("q/negative-2#0-13", 0),
    ]
    assert data.pairs()[0].positive == "Second half."
    assert data.pairs()[0].negatives == ("Another.", "From nowhere.")


def broken(**changes: Any) -> dict[str, Any]:
    return {**ANNOTATIONS["annotations"][0]["passages"][0], **changes}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"question": "", "passages": []}, ["'question' is empty"]),
        ({"passages": []}, ["'question' is missing"]),
        (7, ["must be an object, found int"]),
        ({"question": "Q?", "passages": "x"}, ["'passages' is str"]),
        (
            {"question": "Q?", "passages": [broken(document_id="lost")]},
            ["passages[0].document_id", "'lost'", "--documents"],
        ),
        (
            {"question": "Q?", "passages": [broken(span={"start": -1, "end": 3})]},
            ["passages[0].span.start", "-1"],
        ),
        ({"question": "Q?", "passages": [broken(span={"start": 1})]}, ["passages[0].span.end"]),
        ({"question": "Q?", "passages": [broken(span=None)]}, ["passages[0].span.start"]),
        (
            {"question": "Q?", "passages": [broken(span={"start": 0, "end": 9})]},
            ["'Dust mite'", "Wash the bedding hot.", "changed"],
        ),
        (
            {"question": "Q?", "passages": [broken(span={"start": 0, "end": 999})]},
            ["characters 0 to 999", "69 characters"],
        ),
        ({"question": "Q?", "passages": [broken(level="Key Point")]}, ["'key point'", "--level"]),
        ({"question": "Q?", "passages": [broken(level=1.5)]}, ["1.5"]),
        ({"question": "Q?", "passages": [broken(level=-1)]}, ["-1"]),
    ],
)
def test_a_bad_annotation_is_named_by_file_line_and_path(
    tmp_path: Path, row: Any, messages: list[str]
) -> None:
    rows = [*ANNOTATIONS["annotations"], row]
    folder = write(tmp_path, {"annotations": rows})
    text = (folder / "annotations.json").read_text(encoding="utf-8")
    line = text[: text.rindex(json.dumps(row, indent=2).splitlines()[-1])].count("\n")
    with pytest.raises(DataError) as caught:
        read_aiano(folder)
    for message in messages:
        assert message in str(caught.value)
    named = int(str(caught.value).partition("annotations.json:")[2].partition(":")[0])
    fine = text[: text.index('"Does pollen')].count("\n")
    assert fine < named <= line + 1
    skipped: list[SkippedRow] = []
    data = read_aiano(folder, on_error="skip", skipped=skipped)
    assert len(data.annotations) == 4
    assert [entry.line for entry in skipped] == [named]
    assert data.skipped == tuple(skipped)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"document_id": "x", "text": " "}, "'text' of document 'x' is empty"),
        ({"document_id": "x"}, "'text' of document 'x' is missing"),
        ({"text": "t"}, "'document_id' is missing"),
        ({"document_id": [1], "text": "t"}, "no usable id"),
        ({"document_id": "gout", "text": "t"}, "duplicate document id 'gout'"),
        ("x", "found str"),
    ],
)
def test_a_bad_document_is_named_by_file_and_line(tmp_path: Path, document: Any, message: str) -> None:
    folder = write(tmp_path, documents={"documents": [*DOCUMENTS["documents"], document]})
    with pytest.raises(DataError, match=r"documents\.json:1: ") as caught:
        read_aiano(folder)
    assert message in str(caught.value)
    assert list(read_aiano(folder, on_error="skip").documents) == ["asthma", "gout", "unused"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"annotations": [\n{"question": "Q?",', ":2: broken JSON"),
        ('{"annotations": [\n{}\n{}]}', ":3: broken JSON (',' is expected)"),
        ('{"annotations": []}\n\nx', ":3: broken JSON (text after the end)"),
        ("7", ":1: broken JSON (a JSON object or list is expected)"),
        ("{7: []}", "a key must be a string"),
        ("", "a JSON object or list is expected"),
        ('{"entires": [], "n": {"a": [1]}}', "its keys: entires, n"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: str, where: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_aiano(file)
    assert where in str(caught.value)
    assert "broken.json" in str(caught.value)


def test_missing_documents_are_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, documents=None)
    with pytest.raises(DataError, match="--documents"):
        read_aiano(folder)
    elsewhere = write(tmp_path / "elsewhere") / "documents.json"
    assert len(read_aiano(folder / "annotations.json", elsewhere).annotations) == 4
    with pytest.raises(DataError, match="neither a list nor"):
        read_aiano(folder, write(tmp_path / "wrong", documents={"docs": 1}) / "documents.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_aiano(tmp_path / "nowhere.json")


def test_metadata_that_was_edited_is_an_error_not_a_loss(data: AianoDataset) -> None:
    collection = data.collection()
    kept = collection.corpus["asthma"]
    changed = Passage(kept.id, "Another text altogether.", kept.title, kept.metadata)
    with pytest.raises(DataError, match="no longer fits"):
        from_collection(
            Collection("c", {**collection.corpus, "asthma": changed}, collection.queries, collection.qrels)
        )
