"""Stages: keyed by what goes in, visible only when whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from stm_training.pipeline.stages import StageRunner, content_digest, source_digest, stage_key


class Work:
    """Counts its calls and can be made to fail in the middle."""

    def __init__(self, text: str = "result", fail: bool = False) -> None:
        self.calls = 0
        self.text = text
        self.fail = fail

    def __call__(self, out: Path) -> None:
        self.calls += 1
        (out / "half.txt").write_text(self.text, encoding="utf-8")
        if self.fail:
            raise RuntimeError("in the middle")
        (out / "whole.txt").write_text(self.text, encoding="utf-8")


def runner(folder: Path) -> StageRunner:
    return StageRunner(folder, total=2)


def test_a_stage_runs_once_and_is_then_skipped(tmp_path: Path) -> None:
    work = Work()
    first = runner(tmp_path).run("a", work, settings={"x": 1})
    second = runner(tmp_path).run("a", work, settings={"x": 1})
    assert work.calls == 1
    assert (first.skipped, second.skipped) == (False, True)
    assert second.seconds == first.seconds


def test_changed_settings_and_changed_inputs_run_it_again(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("1", encoding="utf-8")
    work = Work()
    runner(tmp_path).run("a", work, settings={"x": 1}, inputs=[source])
    runner(tmp_path).run("a", work, settings={"x": 2}, inputs=[source])
    source.write_text("2", encoding="utf-8")
    runner(tmp_path).run("a", work, settings={"x": 2}, inputs=[source])
    assert work.calls == 3


def test_a_stage_that_depends_on_a_rerun_one_runs_again(tmp_path: Path) -> None:
    later = Work()
    for setting in (1, 1, 2):
        stages = runner(tmp_path)
        first = stages.run("a", Work(), settings=setting)
        stages.run("b", later, settings=None, inputs=[first])
    assert later.calls == 2


def test_a_failure_leaves_no_stage_and_keeps_the_one_before(tmp_path: Path) -> None:
    runner(tmp_path).run("a", Work("old"), settings=1)
    with pytest.raises(RuntimeError):
        runner(tmp_path).run("a", Work("new", fail=True), settings=2)
    assert (tmp_path / "a" / "whole.txt").read_text(encoding="utf-8") == "old"
    assert not list(tmp_path.glob("*.partial"))
    stage = runner(tmp_path).run("a", Work("new"), settings=2)
    assert (stage.path / "half.txt").read_text(encoding="utf-8") == "new"
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "stale.txt").write_text("x", encoding="utf-8")
    stage = runner(tmp_path).run("a", Work(), settings=1)
    assert not (stage.path / "stale.txt").exists()


def test_a_damaged_record_means_not_finished(tmp_path: Path) -> None:
    work = Work()
    stage = runner(tmp_path).run("a", work, settings=1)
    (stage.path / "stage.json").write_text("{", encoding="utf-8")
    runner(tmp_path).run("a", work, settings=1)
    assert work.calls == 2


def test_a_key_depends_on_the_code_that_is_named() -> None:
    one = stage_key("a", settings=1, inputs=[], code=["stm_training.evaluate.metrics"])
    other = stage_key("a", settings=1, inputs=[], code=["stm_training.evaluate.ranking"])
    assert one != other
    assert source_digest("stm_training.evaluate") != source_digest("stm_training.evaluate.metrics")


def test_a_folder_s_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1", encoding="utf-8")
    before = content_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = content_digest(tmp_path)
    (tmp_path / "b").write_text("2", encoding="utf-8")
    assert len({before, renamed, content_digest(tmp_path)}) == 3
