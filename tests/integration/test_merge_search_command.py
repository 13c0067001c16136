"""The whole command ``stm-train merge-search``: it finds, writes, refuses, and goes on where it was."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stm_retriever.errors import ConfigError
from stm_training.commands import merge_search
from stm_training.finetune.backbone import BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.stream.stream import merge_folders
from tests.merge_folders import build_adapter, build_base, build_member, load_weights

DOCUMENTS = [f"{colour} {thing} number {number}" for number in range(4) for colour in ("red", "green", "blue")
             for thing in ("stone", "river", "lamp")]  # fmt: skip
QUERIES = [f"where is the {text}" for text in DOCUMENTS[::2]]


@pytest.fixture
def folders(tmp_path: Path, one_thread: None) -> Path:
    """``base``, a full member ``a`` and an adapter ``b``."""
    base = build_base(tmp_path / "base", "bert")
    build_member(base, tmp_path / "a", 1)
    build_adapter(base, tmp_path / "b" / "adapter", 2, only="attention")
    return tmp_path


def write_collection(folder: Path, judged_by: Path) -> Path:
    """A collection whose judgements are what a model ranks first: no other model can be better on it."""
    backbone = load_backbone(BackboneSpec(str(judged_by)))
    with torch.inference_mode():
        scores = encode_texts(backbone, QUERIES, "query") @ encode_texts(backbone, DOCUMENTS, "document").T
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": f"d{n}", "title": "", "text": text}) for n, text in enumerate(DOCUMENTS)]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    rows = [json.dumps({"_id": f"q{n}", "text": text}) for n, text in enumerate(QUERIES)]
    (folder / "queries.jsonl").write_text("\n".join(rows) + "\n")
    judged = [f"q{n}\td{best}\t1" for n, best in enumerate(np.argmax(scores, axis=1))]
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(judged) + "\n")
    return folder


def run(folders: Path, *options: object, out: str = "out") -> int:
    parser = argparse.ArgumentParser()
    merge_search.add_parser(parser.add_subparsers())
    given = ("--base", folders / "base", "--member", f"a={folders}/a", "--member", f"b={folders}/b")
    arguments = ["merge-search", *given, "--out", folders / out, *options]
    return merge_search.run(parser.parse_args(list(map(str, arguments))))


def test_the_best_merge_on_the_development_queries_is_written(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = write_collection(folders / "dev", folders / "a")
    assert run(folders, "--dev", dev, "--trials", 6, "--methods", "task_arithmetic", "--weights", "0,1") == 0
    printed = capsys.readouterr().out
    found = json.loads((folders / "out.search" / "search.json").read_text())
    best = MergeRecipe.model_validate(found["trials"][found["best"]]["recipe"])
    assert dict(best.weights) == {"a": 1.0}  # it was judged by it
    assert found["trials"][found["best"]]["domain"] > 0.7  # bf16 may swap ranks; the base has .13
    assert f"Wrote {folders / 'out'}" in printed
    merge_folders(folders / "base", {"a": folders / "a"}, best, folders / "again")
    again = load_weights(folders / "again")
    written = load_weights(folders / "out")
    assert written.keys() == again.keys()
    assert all(torch.equal(written[name], again[name]) for name in again)


def test_nothing_is_written_where_no_merge_beats_the_base(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = write_collection(folders / "dev", folders / "base")
    assert run(folders, "--dev", dev, "--trials", 4, "--no-pruning") == merge_search.NOTHING_BETTER
    assert not (folders / "out").exists()
    assert "base ships" in capsys.readouterr().out


def test_a_guard_decides_by_how_much_it_may_lose(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev = write_collection(folders / "dev", folders / "a")
    guard = write_collection(folders / "guard", folders / "base")
    options = ("--dev", dev, "--guard", guard, "--trials", 4, "--no-pruning", "--weights", "0,1")
    assert run(folders, *options, "--max-guard-loss", 100) == 0
    assert (folders / "out.search" / "pareto.svg").read_text().startswith("<svg")
    # every merge changes the first rank of some query, on which the base is perfect
    assert run(folders, *options, "--max-guard-loss", 0, out="strict") == merge_search.NOTHING_BETTER
    assert "guard" in capsys.readouterr().out


def test_the_same_command_again_scores_nothing_again(folders: Path) -> None:
    dev = write_collection(folders / "dev", folders / "a")
    options = ("--dev", dev, "--trials", 4, "--no-pruning")
    assert run(folders, *options) == 0
    scores = sorted((folders / "out.search" / "search-scores").rglob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in scores}
    time.sleep(0.02)
    assert run(folders, *options, "--max-guard-loss", 3, "--overwrite") == 0
    after = {path: path.stat().st_mtime_ns for path in (folders / "out.search").rglob("*.json")}
    assert before and before.items() <= after.items()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--member", "c=x:0.5"), "the search finds the weights"),
        (("--member", "a=x"), "given twice"),
        (("--member", "base=x"), "the base's own"),
        (("--weights", "0"), "every merge would be the base"),
    ],
)
def test_wrong_options_are_named(folders: Path, options: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(folders, "--dev", folders / "nowhere", *options)


def test_a_folder_that_is_no_merge_is_not_replaced(folders: Path) -> None:
    (folders / "out").mkdir()
    (folders / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no merge made it"):
        run(folders, "--dev", folders / "dev", "--overwrite")
