"""Wrong input on purpose: each error names what was found, where, and what to do; nothing is half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.tiny_retriever import make_tiny_retriever
from tests.tiny_run import stm_train, write_tiny_recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_retriever(tmp_path_factory.mktemp("model") / "tiny")


def append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line + b"\n")


BAD_CORPUS: dict[str, tuple[bytes, str]] = {
    "duplicate id": (b'{"_id": "a", "text": "again"}', "duplicate"),
    "empty text": (b'{"_id": "c", "text": "  "}', "text"),
    "broken JSON": (b'{"_id": "c", "text": ', "JSON"),
    "invalid UTF-8": (b'{"_id": "c", "text": "\xff\xfe"}', "UTF-8"),
}


@pytest.mark.parametrize("name", BAD_CORPUS)
def test_a_bad_corpus_row_is_named_and_nothing_is_left(tmp_path: Path, model: Path, name: str) -> None:
    line, found = BAD_CORPUS[name]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(b'{"_id": "a", "text": "one"}\n{"_id": "b", "text": "two"}\n')
    append(corpus, line)
    done = stm_train("index", corpus, "--model", model, "--out", tmp_path / "index")
    assert done.returncode == 2
    assert "corpus.jsonl:3" in done.stderr
    assert found in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "index").exists()


def test_bad_rows_can_be_skipped_and_are_listed(tmp_path: Path, model: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(b'{"_id": "a", "text": "one"}\n{"_id": "b", "text": "two"}\n')
    for line, _ in BAD_CORPUS.values():
        append(corpus, line)
    done = stm_train("index", corpus, "--model", model, "--out", tmp_path / "index", "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    for line_number in range(3, 7):
        assert f"corpus.jsonl:{line_number}" in done.stdout
    assert "2 passages encoded, 2 in" in done.stdout


def test_qrels_that_name_an_unknown_document_are_named(tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path)
    append(tmp_path / "health" / "qrels" / "test.tsv", b"q1\tnowhere\t1")
    done = stm_train("run", recipe, "--run-folder", tmp_path / "run", "--quiet")
    assert done.returncode == 2
    assert "test.tsv:22" in done.stderr
    assert "nowhere" in done.stderr


RECIPE_MISTAKES: dict[str, tuple[Callable[[dict[str, object]], object], str]] = {
    "unknown key": (lambda recipe: recipe.update(learning_rte=1), "learning_rte"),
    "missing model": (lambda recipe: recipe.update(base={"source": "./no-such-model"}), "no-such-model"),
    "unknown variable": (lambda recipe: recipe.update(corpus="${NO_SUCH_THING}/x"), "NO_SUCH_THING"),
    "expert without pairs": (
        lambda recipe: recipe.update(experts={"a": {"kinds": ["question"]}, "b": {"kinds": ["rhymes"]}}),
        "rhymes",
    ),
}


@pytest.mark.parametrize("name", RECIPE_MISTAKES)
def test_a_mistake_in_the_recipe_is_named(tmp_path: Path, name: str) -> None:
    change, found = RECIPE_MISTAKES[name]
    path = write_tiny_recipe(tmp_path)
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(recipe)
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = stm_train("run", path, "--run-folder", tmp_path / "run", "--quiet")
    assert done.returncode == 2
    assert found in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_training_query_that_is_a_test_query_is_an_error_and_can_be_dropped(tmp_path: Path) -> None:
    path = write_tiny_recipe(tmp_path, merge={"trials": 1}, all_data=False, examples=[])
    with (tmp_path / "health" / "queries.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "leak", "text": "Tell a worried patient about the CARE of gout - please"}\n')
    append(tmp_path / "health" / "qrels" / "test.tsv", b"leak\tgout-care\t1")
    refused = stm_train("run", path, "--run-folder", tmp_path / "run", "--quiet")
    assert refused.returncode == 2
    assert "leak" in refused.stderr
    assert "on_leak" in refused.stderr
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) | {"on_leak": "drop"}
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    allowed = stm_train("run", path, "--run-folder", tmp_path / "run", "--quiet")
    assert allowed.returncode in (0, 3), allowed.stderr


def test_a_folder_without_our_onnx_file_names_the_export(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "doc.txt").write_text("A text.", encoding="utf-8")
    done = stm_train(
        "index", tmp_path / "doc.txt", "--model", tmp_path / "plain", "--out", tmp_path / "index"
    )
    assert done.returncode == 2
    assert "stm-train export" in done.stderr
    assert not (tmp_path / "index").exists()


def test_an_index_opened_with_another_model_names_both(tmp_path: Path, model: Path) -> None:
    other = make_tiny_retriever(tmp_path / "other", seed=7, name="other-model")
    (tmp_path / "doc.txt").write_text("A text about gout.", encoding="utf-8")
    assert (
        stm_train("index", tmp_path / "doc.txt", "--model", model, "--out", tmp_path / "index").returncode
        == 0
    )
    done = stm_train("search", tmp_path / "index", "gout", "--model", other)
    assert done.returncode == 2
    assert "other-model" in done.stderr
    assert "tiny" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "found"), [(["gout", "-k", "0"], "0"), (["   "], "empty"), (["gout", "-k", "-3"], "-3")]
)
def test_unusable_searches_are_explained(
    tmp_path: Path, model: Path, arguments: list[str], found: str
) -> None:
    (tmp_path / "doc.txt").write_text("A text about gout.", encoding="utf-8")
    assert (
        stm_train("index", tmp_path / "doc.txt", "--model", model, "--out", tmp_path / "index").returncode
        == 0
    )
    done = stm_train("search", tmp_path / "index", *arguments)
    assert done.returncode == 2
    assert found in done.stderr
    assert "Traceback" not in done.stderr
