from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_retriever.errors import DataError
from stm_training.evaluate.trec_files import file_names, read_run, write_qrels, write_run

IDS = st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable() or text.isspace() or "%" in text)


def test_a_line_is_query_q0_document_rank_score_tag_in_the_order_of_the_scores(tmp_path: Path) -> None:
    write_run(tmp_path / "deep" / "a.run", {"q1": [("low", 0.25), ("high", 1.5)], "q2": []}, tag="my model")

    assert (tmp_path / "deep" / "a.run").read_text() == (
        "q1 Q0 high 1 1.5 my%20model\nq1 Q0 low 2 0.25 my%20model\n"
    )


@given(
    results=st.dictionaries(IDS, st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6),
    query=IDS,
)
@settings(max_examples=100, deadline=None)
def test_a_run_is_read_as_it_was_written_whatever_the_ids(
    tmp_path_factory: pytest.TempPathFactory, results: dict[str, float], query: str
) -> None:
    path = tmp_path_factory.mktemp("runs") / "a.run"
    write_run(path, {query: list(results.items())}, tag="t")

    assert {name: dict(found) for name, found in read_run(path).items()} == {query: results}


def test_judgements_have_the_same_ids_as_runs(tmp_path: Path) -> None:
    write_qrels(tmp_path / "qrels.txt", {"q 1": {"d%1": 2, "d2": 0}})

    assert (tmp_path / "qrels.txt").read_text() == "q%201 0 d%251 2\nq%201 0 d2 0\n"


def test_a_run_of_another_tool_is_read_by_its_scores(tmp_path: Path) -> None:
    path = tmp_path / "lucene.txt"
    path.write_text("q1\tQ0\td1\t0\t12.5\tBM25\n\nq1 Q0 d2 1 3e-2 BM25\n")

    assert read_run(path) == {"q1": [("d1", 12.5), ("d2", 0.03)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 Q0 d1 1 0.5\n", r"a\.run:1: 5 fields"),
        ("q1 Q0 d1 1 0.5 t\nq1 Q0 d2 2 high t\n", r"a\.run:2: the score is 'high'"),
        ("q1 Q0 d1 1 nan t\n", r"a\.run:1: the score is 'nan'"),
        ("\n", "holds no results"),
    ],
)
def test_a_file_that_is_no_run_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.run").write_text(text)

    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "a.run")


def test_a_missing_run_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a TREC run: FileNotFoundError"):
        read_run(tmp_path / "missing.run")


def test_every_model_gets_a_file_name_of_its_own() -> None:
    names = file_names(dict.fromkeys(["org/model", "org:model", "../..", "hybrid:/home/x/Model"], 0))

    assert len({name.lower() for name in names.values()}) == 4
    assert all(
        name and "/" not in name and ":" not in name and not name.startswith(".") for name in names.values()
    )
