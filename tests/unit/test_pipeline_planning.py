"""``stm-train run --dry-run``: the plan of a run that was not started, finished, changed, or half removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from stm_retriever.errors import DataError, ModelFolderError
from stm_training.pipeline.estimates import about, in_units
from stm_training.pipeline.planning import RunPlan, plan_run
from stm_training.recipe import load_recipe
from tests.tiny_run import STAGES, write_tiny_recipe

PREPARED = ("corpus", "pairs")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose corpus and pairs are there, as if it had been stopped in its first training."""
    from stm_training.pipeline.console import RunConsole
    from stm_training.pipeline.run import _Run
    from stm_training.pipeline.stages import StageRunner

    folder = tmp_path_factory.mktemp("planned")
    recipe = load_recipe(write_tiny_recipe(folder))
    run = _Run(recipe, folder / "run", RunConsole(quiet=True), True)
    run.runner = StageRunner(folder / "run", len(STAGES))
    run._prepare()
    return folder


@pytest.fixture
def stopped(prepared: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; paths are part of no stage's key but the recipe's own."""
    shutil.copytree(prepared / "run", tmp_path / "run")
    return tmp_path / "run"


def planned(prepared: Path, run: Path, **changes: Any) -> RunPlan:
    raw = yaml.safe_load((prepared / "recipe.yaml").read_text(encoding="utf-8")) | changes
    path = prepared / "changed.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return plan_run(load_recipe(path), run, measure=False)


def states(plan: RunPlan) -> dict[str, str]:
    return {stage.name: stage.state for stage in plan.stages}


def why(plan: RunPlan, name: str) -> str:
    return next(stage.why for stage in plan.stages if stage.name == name)


def fake_results(run: Path, names: Sequence[str]) -> None:
    """Stages of an earlier run with another key."""
    for name in names:
        (run / name).mkdir()
        record = {"stage": name, "key": "old", "seconds": 120.0, "version": _version()}
        (run / name / "stage.json").write_text(json.dumps(record))


def _version() -> str:
    from stm_retriever import __version__

    return __version__


def test_a_run_that_was_never_started_would_do_every_stage_in_order(prepared: Path, tmp_path: Path) -> None:
    plan = planned(prepared, tmp_path / "new")
    assert tuple(stage.name for stage in plan.stages) == STAGES
    assert set(states(plan).values()) == {"run"}
    assert why(plan, "corpus") == "not there yet"


def test_planning_writes_nothing(prepared: Path, tmp_path: Path) -> None:
    before = contents(prepared / "run")
    planned(prepared, tmp_path / "new")
    planned(prepared, prepared / "run")
    assert not (tmp_path / "new").exists()
    assert contents(prepared / "run") == before


def test_finished_stages_are_said_to_be_skipped(prepared: Path, stopped: Path) -> None:
    plan = planned(prepared, stopped)
    assert {name for name, state in states(plan).items() if state == "done"} == set(PREPARED)


def test_what_is_read_is_counted(prepared: Path, stopped: Path) -> None:
    reads = "\n".join(planned(prepared, stopped).reads)
    for words in ("40 documents, 40 passages", "dev 20, test 20", "120 (question 40", "guard general"):
        assert words in reads


def test_a_changed_setting_runs_its_stage_and_those_that_rest_on_it_again(
    prepared: Path, stopped: Path
) -> None:
    fake_results(stopped, STAGES[2:])
    plan = planned(prepared, stopped, on_leak="drop")
    assert states(plan)["corpus"] == "done"
    assert set(list(states(plan).values())[1:]) == {"run"}
    assert "have changed since" in why(plan, "pairs")
    assert why(plan, "merge") == "pairs runs again"


def test_a_stage_that_was_removed_is_made_anew_and_takes_no_finished_one_with_it(
    prepared: Path, stopped: Path
) -> None:
    shutil.rmtree(stopped / "corpus")
    plan = planned(prepared, stopped)
    assert states(plan)["corpus"] == "run"
    assert why(plan, "corpus") == "not there yet"
    assert states(plan)["pairs"] == "done"


def test_removed_pairs_leave_later_stages_open_not_doomed(prepared: Path, stopped: Path) -> None:
    fake_results(stopped, ("merge",))
    shutil.rmtree(stopped / "pairs")
    plan = planned(prepared, stopped)
    assert states(plan)["merge"] == "open"
    assert "if pairs comes out as before" in why(plan, "merge")


def test_a_result_of_another_version_says_so(prepared: Path, stopped: Path) -> None:
    record = json.loads((stopped / "corpus" / "stage.json").read_text())
    record |= {"version": "0.0.1", "key": "other"}
    (stopped / "corpus" / "stage.json").write_text(json.dumps(record))
    assert "made by version 0.0.1" in why(planned(prepared, stopped), "corpus")


def test_the_llm_s_requests_are_estimated_until_the_pairs_are_there(
    prepared: Path, stopped: Path, tmp_path: Path
) -> None:
    new = "\n".join(planned(prepared, tmp_path / "new").takes)
    assert "query/question" in new
    assert "160 requests" in new
    assert "nothing more to ask" in "\n".join(planned(prepared, stopped).takes)


def test_time_is_that_of_the_last_time_where_there_was_one_and_unknown_without_a_measure(
    prepared: Path, stopped: Path
) -> None:
    fake_results(stopped, ("expert-questions",))
    takes = "\n".join(planned(prepared, stopped).takes)
    assert "expert-questions: about 2 min (3 steps of 4 pairs; as the last time in this folder)" in takes
    assert "expert-statements: not known" in takes


def test_the_pace_is_measured_on_the_documents_where_it_is_asked_for(prepared: Path, stopped: Path) -> None:
    plan = plan_run(load_recipe(prepared / "recipe.yaml"), stopped)
    takes = "\n".join(plan.takes)
    assert "by the measured pace" in takes
    assert "expect half to double" in takes


def test_disk_is_told_by_parts_with_what_is_free(prepared: Path, tmp_path: Path) -> None:
    line = next(line for line in planned(prepared, tmp_path / "new").takes if line.startswith("disk"))
    for part in ("experts", "checkpoints", "retriever", "index", "are free"):
        assert part in line
    assert "NOT ENOUGH" not in line


def test_a_disk_that_is_too_small_is_pointed_out(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("stm_training.pipeline.estimates.shutil.disk_usage", lambda _: full)
    assert "NOT ENOUGH" in "\n".join(planned(prepared, tmp_path / "new").takes)


def test_a_base_that_would_be_downloaded_is_not(prepared: Path, tmp_path: Path) -> None:
    base = {"source": "nobody/nothing", "download": True}
    plan = planned(prepared, tmp_path / "new", base=base)
    assert set(states(plan).values()) == {"open"}
    assert "would be downloaded" in why(plan, "corpus")
    with pytest.raises(ModelFolderError, match="nobody/nothing"):
        planned(prepared, tmp_path / "new", base=base | {"download": False})


def test_a_corpus_that_the_run_would_refuse_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        planned(prepared, tmp_path / "new", corpus="nowhere")


def test_stages_on_request_have_their_place(prepared: Path, tmp_path: Path) -> None:
    plan = planned(prepared, tmp_path / "new", pretrain={"steps": 2}, all_data=False)
    names = [stage.name for stage in plan.stages]
    assert names[2] == "pretrain"
    assert "expert-all_data" not in names


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2, "under a minute"), (130, "about 2 min"), (1700, "about 30 min"), (30000, "about 8 h")],
)
def test_a_time_has_one_figure(seconds: float, words: str) -> None:
    assert about(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"), [(12, "12 bytes"), (1_440_000, "1.4 MB"), (23_600_000_000, "24 GB")]
)
def test_a_size_has_two_figures(size: int, words: str) -> None:
    assert in_units(size) == words
