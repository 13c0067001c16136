"""``stm-train clean``: what goes, what stays, what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError
from stm_training.commands import clean
from stm_training.pipeline.cleaning import carry_out, plan_cleaning
from stm_training.pipeline.stages import run_lock


def stage(run: Path, name: str, size: int = 10) -> None:
    (run / name).mkdir(parents=True)
    (run / name / "stage.json").write_text(json.dumps({"stage": name, "key": "k", "seconds": 1}))
    (run / name / "data").write_bytes(b"x" * size)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run folder with stages, scratch, a left-over, the journal, and things of the user's."""
    run = tmp_path / "run"
    for name in ("corpus", "pairs", "expert-a", "retriever", "index", "report"):
        stage(run, name)
    (run / "scratch" / "a" / "checkpoint-20").mkdir(parents=True)
    (run / "scratch" / "a" / "checkpoint-20" / "optimizer.safetensors").write_bytes(b"y" * 1000)
    (run / "merge.partial").mkdir()
    (run / "completions.journal.jsonl").write_text("{}\n")
    (run / ".lock").touch()
    (run / "notes").mkdir()
    (run / "notes" / "mine.txt").write_text("mine")
    (run / "todo.txt").write_text("mine")
    return run


def cleaned(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    clean.add_parser(parser.add_subparsers())
    return clean.run(parser.parse_args(["clean", *map(str, arguments)]))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_by_default_scratch_and_leftovers_go_and_every_stage_stays(finished: Path) -> None:
    before = names(finished)
    assert cleaned(finished) == 0
    assert names(finished) == before - {"scratch", "merge.partial"}


def test_it_says_how_much_it_frees_and_what_it_leaves(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned(finished)
    output = capsys.readouterr().out
    assert "Freed 1 kB." in output
    assert "no run wrote it" in output
    assert "todo.txt" in output


def test_a_dry_run_says_the_same_and_removes_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(finished.rglob("*"))
    assert cleaned(finished, "--dry-run", "--keep", "report") == 0
    assert sorted(finished.rglob("*")) == before
    assert "would remove" in capsys.readouterr().out


def test_all_stages_but_the_named_ones_go_and_the_journal_and_foreign_files_stay(finished: Path) -> None:
    assert cleaned(finished, "--keep", "retriever, index,report") == 0
    left = {"retriever", "index", "report", "completions.journal.jsonl", ".lock", "notes", "todo.txt"}
    assert names(finished) == left


def test_an_index_is_not_kept_without_its_retriever(finished: Path) -> None:
    with pytest.raises(ConfigError, match="retriever beside it"):
        cleaned(finished, "--keep", "index")
    assert (finished / "retriever").is_dir()


def test_a_misspelt_stage_removes_nothing_and_names_those_that_are_there(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finished stage reports.*retriever"):
        cleaned(finished, "--keep", "retriever,reports")
    assert (finished / "expert-a").is_dir()


@pytest.mark.parametrize("make", ["missing", "empty", "other"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "folder"
    if make != "missing":
        folder.mkdir()
    if make == "other":
        (folder / "sub").mkdir()
        (folder / "sub" / "stage.json").write_text('{"stage": "another name", "key": "k"}')
    with pytest.raises(ConfigError, match="no run folder"):
        cleaned(folder, "--keep", "retriever")
    assert folder.exists() == (make != "missing")
    assert make != "other" or (folder / "sub").is_dir()


def test_links_are_left_and_not_followed(finished: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    stage(elsewhere, "evaluate")
    (finished / "evaluate").symlink_to(elsewhere / "evaluate", target_is_directory=True)
    assert cleaned(finished, "--keep", "report") == 0
    assert (finished / "evaluate").is_symlink()
    assert (elsewhere / "evaluate" / "data").is_file()


def test_a_run_that_is_at_work_is_not_cleaned(finished: Path) -> None:
    with run_lock(finished), pytest.raises(ConfigError, match="Another process"):
        carry_out(plan_cleaning(finished))
    assert (finished / "scratch").is_dir()


def test_what_another_program_has_open_stays_whole_and_is_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename = Path.rename

    def locked(path: Path, target: Path) -> Path:  # as Windows does with a file that is open in the folder
        if path.name == "index":
            raise PermissionError(13, "being used by another process", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", locked)
    assert cleaned(finished, "--keep", "report") == 1
    assert (finished / "index" / "stage.json").is_file()
    assert not (finished / "retriever").exists()
    assert "in use, left" in capsys.readouterr().out


def test_a_removal_that_was_killed_leaves_no_stage_behind_and_is_finished_by_the_next(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stm_training.pipeline.cleaning.shutil.rmtree", _killed)
    with pytest.raises(KeyboardInterrupt):
        cleaned(finished, "--keep", "report")
    monkeypatch.undo()
    assert not (finished / "corpus").exists()
    assert cleaned(finished) == 0
    assert not list(finished.glob("*.partial"))


def _killed(path: Path, **_: object) -> None:
    raise KeyboardInterrupt
