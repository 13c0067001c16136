"""Creating and opening: whose vectors, which files, how many writers."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stm_retriever import (
    ArtifactMismatchError,
    ConfigError,
    Document,
    Embedder,
    IndexFolderError,
    ModelFolderError,
    Retriever,
)
from stm_retriever.folder import Prompts
from tests.tiny_retriever import make_tiny_retriever

A = Document(id="a", text="red apple")
B = Document(id="b", text="the sea")


@pytest.fixture
def index(tmp_path: Path, tiny_embedder: Embedder) -> Path:
    with Retriever.create(tmp_path / "index", embedder=tiny_embedder) as retriever:
        retriever.add([A, B])
    return tmp_path / "index"


def _edit(index: Path, **changes: Any) -> None:
    path = index / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")


def test_an_index_finds_its_embedder_again(index: Path, tiny_embedder: Embedder) -> None:
    with Retriever.open(index) as retriever:
        assert retriever.embedder.path == tiny_embedder.path
        assert retriever.embedder.variant == "fp32"
        assert [hit.id for hit in retriever.search("red apple")] == ["a", "b"]
        assert retriever.path == index


def test_index_and_model_can_be_moved_together(tmp_path: Path) -> None:
    model = make_tiny_retriever(tmp_path / "here/model")
    Retriever.create(tmp_path / "here/index", embedder=Embedder.load(model)).close()
    (tmp_path / "here").rename(tmp_path / "there")
    with Retriever.open(tmp_path / "there/index") as retriever:
        assert retriever.embedder.path == tmp_path / "there/model"


def test_a_model_that_is_gone_is_named_with_the_way_out(tmp_path: Path) -> None:
    model = make_tiny_retriever(tmp_path / "model", name="my-model")
    Retriever.create(tmp_path / "index", embedder=Embedder.load(model)).close()
    model.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelFolderError, match=r"'my-model'.*not at .*model.*embedder=Embedder\.load"):
        Retriever.open(tmp_path / "index")
    embedder = Embedder.load(tmp_path / "elsewhere")
    with Retriever.open(tmp_path / "index", embedder=embedder) as retriever:
        assert retriever.search("apple") == []


@pytest.mark.parametrize("other", [{"seed": 1}, {"prompts": Prompts(query="x: ", document="passage: ")}])
def test_an_index_of_another_model_is_an_error_that_names_both(
    index: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    embedder = Embedder.load(make_tiny_retriever(tmp_path / "other", name="other-model", **other))
    with pytest.raises(
        ArtifactMismatchError, match=r"made with the model 'tiny'.*'other-model'.*index the doc"
    ):
        Retriever.open(index, embedder=embedder)
    with pytest.raises(ArtifactMismatchError, match="'other-model'"):
        Retriever.create(index, embedder=embedder, exist_ok=True)


def test_another_model_put_in_the_old_place_is_noticed(tmp_path: Path) -> None:
    model = make_tiny_retriever(tmp_path / "model")
    Retriever.create(tmp_path / "index", embedder=Embedder.load(model)).close()
    shutil.rmtree(model)
    make_tiny_retriever(model, seed=5)
    with pytest.raises(ArtifactMismatchError, match=r"'tiny-0'.*'tiny-5'"):
        Retriever.open(tmp_path / "index")


def test_the_variant_can_be_chosen_but_not_beside_an_embedder(tmp_path: Path) -> None:
    model = make_tiny_retriever(tmp_path / "model", variants=("fp32", "w8"))
    Retriever.create(tmp_path / "index", embedder=Embedder.load(model, variant="w8")).close()
    for variant, expected in ((None, "w8"), ("fp32", "fp32")):
        with Retriever.open(tmp_path / "index", variant=variant) as retriever:
            assert retriever.embedder.variant == expected
    with pytest.raises(ConfigError, match="which one counts"):
        Retriever.open(tmp_path / "index", variant="w8", embedder=Embedder.load(model))


def test_nothing_that_is_there_is_overwritten(index: Path, tmp_path: Path, tiny_embedder: Embedder) -> None:
    with pytest.raises(IndexFolderError, match="is an index already"):
        Retriever.create(index, embedder=tiny_embedder)
    with Retriever.create(index, embedder=tiny_embedder, exist_ok=True) as retriever:
        assert retriever.count() == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    for exist_ok in (False, True):
        with pytest.raises(IndexFolderError, match="something that is no index"):
            Retriever.create(tmp_path / "mine", embedder=tiny_embedder, exist_ok=exist_ok)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_empty_folder_or_a_new_path_becomes_an_index(tmp_path: Path, tiny_embedder: Embedder) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "new/deep"):
        with Retriever.create(path, embedder=tiny_embedder) as retriever:
            retriever.add([A])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


def test_a_kind_that_does_not_exist_lists_those_that_do(tmp_path: Path, tiny_embedder: Embedder) -> None:
    with pytest.raises(ConfigError, match=r"kind='tree'.*flat"):
        Retriever.create(tmp_path / "index", embedder=tiny_embedder, kind="tree")
    assert not (tmp_path / "index").exists()


def test_what_is_no_index_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match="No index folder"):
        Retriever.open(tmp_path / "nowhere")
    with pytest.raises(IndexFolderError, match="it is no index folder"):
        Retriever.open(tmp_path)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda index: (index / name).unlink()


def _write(name: str, data: bytes) -> Callable[[Path], None]:
    def write(index: Path) -> None:
        (index / name).write_bytes(data)

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_write("manifest.json", b"{"), r"manifest\.json.*cannot be read.*backup"),
        (lambda index: _edit(index, schema_version=99), "schema version 99.*pip install --upgrade"),
        (lambda index: _edit(index, metric="l2"), "metric: Input should be 'cosine'"),
        (lambda index: _edit(index, index_id="other"), "files of two indexes were mixed"),
        (_remove("documents.sqlite"), r"documents\.sqlite.*is missing"),
        (lambda index: _edit(index, store="x" * 10_000), "x.*is missing"),
        (_write("documents.sqlite", b"not a database, but as long as one would be" * 100), "SQLite says"),
        (_write("documents.sqlite", b""), "does not hold the tables of an index"),
    ],
)
def test_damage_beyond_repair_is_a_typed_error(
    index: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(index)
    with pytest.raises(IndexFolderError, match=message):
        Retriever.open(index)


def test_a_second_writer_is_an_error_that_names_the_first(index: Path) -> None:
    with Retriever.open(index) as first, Retriever.open(index) as second:
        first.add([Document(id="c", text="heart pain")])
        with pytest.raises(IndexFolderError, match=f"being written by process {os.getpid()} on"):
            second.add([A])
        with pytest.raises(IndexFolderError, match=f"being written by process {os.getpid()} on"):
            second.delete(["a"])
        assert second.count() == 3
        first.close()
        second.delete(["c"])
        assert second.count() == 2


def test_a_writer_in_another_process_is_noticed_and_its_death_frees_the_index(index: Path) -> None:
    script = (
        "import sys\nfrom stm_retriever import Document, Retriever\n"
        "retriever = Retriever.open(sys.argv[1])\n"
        "retriever.add([Document(id='c', text='heart pain')])\n"
        "print('ready', flush=True)\nsys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(index)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with Retriever.open(index) as retriever:
            assert retriever.search("heart pain", k=1)[0].id == "c"
            with pytest.raises(IndexFolderError, match=f"process {child.pid} on"):
                retriever.delete(["c"])
            child.kill()
            child.wait()
            assert retriever.delete(["c"]) == 1
    finally:
        child.kill()
        child.communicate()


def test_readers_see_a_writers_commits_at_their_next_search(index: Path) -> None:
    with Retriever.open(index, read_only=True) as reader, Retriever.open(index) as writer:
        assert [hit.id for hit in reader.search("heart pain", k=9)] != ["c"]
        writer.add([Document(id="c", text="heart pain")])
        assert reader.search("heart pain", k=1)[0].id == "c"
        writer.delete(["c"])
        writer.add([Document(id="a", text="heart pain")])
        assert {hit.id for hit in reader.search("heart pain")} == {"a", "b"}
        assert reader.search("heart pain", k=1)[0].text == "heart pain"
        writer.add([Document(id="d", text="heart blood")])
        writer.close()  # the log that the reader would replay is trimmed now
        assert {hit.id for hit in reader.search("heart pain")} == {"a", "b", "d"}


def test_read_only_refuses_to_write(index: Path) -> None:
    with Retriever.open(index, read_only=True) as retriever:
        with pytest.raises(IndexFolderError, match="read_only=True"):
            retriever.add([A])
        with pytest.raises(IndexFolderError, match="read_only=True"):
            retriever.delete(["a"])
        assert retriever.count() == 2


def test_an_index_on_a_read_only_file_system_is_searched(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_retriever.index import connections

    real = connections._open

    def open_read_only(path: Path, options: str) -> Any:
        if "immutable" not in options:
            raise sqlite3.OperationalError("unable to open database file")
        return real(path, options)

    monkeypatch.setattr(connections, "_open", open_read_only)
    with Retriever.open(index) as retriever:
        assert retriever.search("red apple", k=1)[0].id == "a"
    # With a log left beside it the main file alone would lack acknowledged documents.
    (index / "documents.sqlite-wal").write_bytes(b"something")
    with pytest.raises(IndexFolderError, match="Make the folder and its files writable"):
        Retriever.open(index)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_use_in_a_forked_child_is_an_error_and_not_a_broken_file(index: Path) -> None:
    with Retriever.open(index) as retriever:
        child = os.fork()
        if child == 0:
            try:
                retriever.count()
                os._exit(1)
            except IndexFolderError as error:
                os._exit(0 if "Open it in each process" in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert retriever.count() == 2
