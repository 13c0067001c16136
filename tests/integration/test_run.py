"""``stm-train run``: the whole path on a tiny recipe, in processes of its own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from stm_retriever import Embedder, Retriever
from stm_retriever.folder import read_manifest
from tests.tiny_run import STAGES, TOPICS, command, environment, stm_train, write_tiny_recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests only read it, or run it again."""
    folder = tmp_path_factory.mktemp("run")
    recipe = write_tiny_recipe(folder)
    done = stm_train(
        "run", recipe, "--run-folder", folder / "run", "--json", folder / "figures.json", "--quiet"
    )
    assert done.returncode in (0, 3), done.stderr
    (folder / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def test_the_figures_have_the_promised_form(finished: Path) -> None:
    figures = json.loads((finished / "figures.json").read_text(encoding="utf-8"))
    assert set(figures) == {"systems", "shipped", "seconds", "versions", "seed"}
    names = {"base", "expert:questions", "expert:statements", "all_data", "merged", "bm25"}
    assert set(figures["systems"]) == names
    assert figures["shipped"] in names - {"bm25"}
    assert figures["systems"]["base"]["delta"] is None
    assert figures["systems"]["base"]["ci95"] is None
    for name in names - {"base"}:
        row = figures["systems"][name]
        low, high = row["ci95"]
        assert 0 <= row["ndcg@10"] <= 1
        assert 0 <= row["recall@10"] <= 1
        assert low <= row["delta"] <= high
        assert row["delta"] == pytest.approx(row["ndcg@10"] - figures["systems"]["base"]["ndcg@10"])
    assert set(figures["seconds"]) >= set(STAGES) - {"report"}


def test_what_ships_is_compared_with_the_others_query_by_query(finished: Path) -> None:
    figures = json.loads((finished / "figures.json").read_text(encoding="utf-8"))
    file = finished / "run" / "report" / "comparisons.json"
    pairs = json.loads(file.read_text(encoding="utf-8"))["comparisons"]
    found = {(pair["reference"], pair["system"]): pair for pair in pairs}
    shipped = figures["shipped"]
    wanted = {("base", shipped), ("all_data", shipped), ("bm25", shipped), ("all_data", "merged")}
    assert set(found) == {pair for pair in wanted if pair[0] != pair[1]}
    for (reference, system), pair in found.items():
        means = (figures["systems"][name]["ndcg@10"] for name in (system, reference))
        assert pair["difference"] == pytest.approx(next(means) - next(means))
        assert pair["wins"] + pair["losses"] + pair["ties"] == pair["queries"] == 20
        assert 0 < pair["p_permutation"] <= pair["p_holm"] <= 1
    if shipped != "base":
        assert found["base", shipped]["ci95"] == pytest.approx(figures["systems"][shipped]["ci95"])
    report = (finished / "run" / "report" / "report.html").read_text(encoding="utf-8")
    assert "System against system" in report


def test_the_retriever_folder_is_sound_and_names_its_parents(finished: Path) -> None:
    assert stm_train("doctor", finished / "run" / "retriever").returncode == 0
    manifest = read_manifest(finished / "run" / "retriever")
    assert manifest.prompts.query == "query: "
    assert manifest.base["name"]
    assert manifest.metrics["proven_on"] == "user queries"


def test_the_index_answers_with_the_run_s_own_model(finished: Path) -> None:
    with Retriever.open(finished / "run" / "index", read_only=True) as retriever:
        assert retriever.count() == 40
        assert retriever.embedder.fingerprint == Embedder.load(finished / "run" / "retriever").fingerprint
        assert len(retriever.search("what helps with gout", k=3)) == 3


def test_the_examples_are_the_same_through_all_interfaces(finished: Path) -> None:
    answers = json.loads((finished / "run" / "use" / "use.json").read_text(encoding="utf-8"))["answers"]
    by_interface: dict[str, list[object]] = {}
    for answer in answers:
        by_interface.setdefault(answer["interface"], []).append([name for name, _ in answer["hits"]])
    assert set(by_interface) == {"Retriever", "LangChain", "LlamaIndex"}
    assert by_interface["Retriever"] == by_interface["LangChain"] == by_interface["LlamaIndex"]
    assert len(by_interface["Retriever"]) == 3


def test_the_served_score_is_the_shipped_model_s(finished: Path) -> None:
    figures = json.loads((finished / "figures.json").read_text(encoding="utf-8"))
    served = json.loads((finished / "run" / "use" / "use.json").read_text(encoding="utf-8"))["served"]
    # bf16 while training, fp32 when served: near ties may fall the other way.
    assert served["ndcg@10"] == pytest.approx(figures["systems"][figures["shipped"]]["ndcg@10"], abs=0.05)


def test_the_speed_of_the_exported_model_is_measured_and_shown(finished: Path) -> None:
    speed = json.loads((finished / "run" / "use" / "speed.json").read_text(encoding="utf-8"))
    assert list(speed["variants"]) == ["fp32"]
    assert speed["variants"]["fp32"]["query_ms"] > 0
    assert (speed["variants"]["fp32"]["queries"], speed["variants"]["fp32"]["documents"]) == (20, 40)
    report = (finished / "run" / "report" / "report.html").read_text(encoding="utf-8")
    assert f"on this machine ({speed['cpu']}, {speed['threads']} thread" in report


def test_the_report_and_the_table_are_there(finished: Path) -> None:
    report = (finished / "run" / "report" / "report.html").read_text(encoding="utf-8")
    assert "expert:questions" in report
    output = (finished / "stdout.txt").read_text(encoding="utf-8")
    for name in ("base", "merged", "bm25", "nDCG@10", "retriever folder", "index folder"):
        assert name in output


def test_a_dry_run_says_what_is_done_and_writes_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    recipe = next(finished.glob("*.yaml"))
    done = stm_train("run", recipe, "--run-folder", finished / "run", "--dry-run")
    assert done.returncode == 0, done.stderr
    stages = [path.name for path in (finished / "run").iterdir() if (path / "stage.json").is_file()]
    assert len(stages) >= 10
    assert done.stdout.count("done, skipped") == len(stages)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_finished_run_repeats_nothing(finished: Path) -> None:
    again = stm_train("run", finished / "recipe.yaml", "--run-folder", finished / "run", "--quiet")
    assert again.returncode in (0, 3), again.stderr
    for stage in STAGES:
        assert f"{stage}: already done" in again.stdout


def test_all_questions_were_asked_once(finished: Path) -> None:
    journal = finished / "run" / "completions.journal.jsonl"
    rows = journal.read_text(encoding="utf-8").splitlines()
    assert len(rows) == len(set(rows)) == 40 * 4
    assert journal.stat().st_mode & 0o777 == 0o600


def test_test_queries_that_contradict_the_choice_change_the_exit_status_and_nothing_else(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    scores_file = tmp_path / "run" / "evaluate" / "scores.json"
    document = json.loads(scores_file.read_text(encoding="utf-8"))
    shipped = json.loads((finished / "figures.json").read_text(encoding="utf-8"))["shipped"]
    if shipped == "base":
        pytest.skip("the tiny run shipped its base")
    for query in document["scores"]["base"]["ndcg@10"]:
        document["scores"]["base"]["ndcg@10"][query] = 1.0
        document["scores"][shipped]["ndcg@10"][query] = 0.1
    scores_file.write_text(json.dumps(document), encoding="utf-8")
    done = stm_train(
        "run",
        finished / "recipe.yaml",
        "--run-folder",
        tmp_path / "run",
        "--json",
        tmp_path / "f.json",
        "--quiet",
    )
    assert done.returncode == 3, done.stderr
    assert "contradict" in done.stdout
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))["shipped"] == shipped
    assert "contradict" in (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")


def start_and_kill(recipe: Path, run: Path, stage: str) -> list[str]:
    """Start the run, and kill it as soon as it says that it works on a stage."""
    process = subprocess.Popen(
        command("run", recipe, "--run-folder", run, "--quiet"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.strip())
        if line.strip().endswith(f"] {stage}"):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    process.wait(timeout=60)
    assert lines, "the run ended before it began"
    assert lines[-1].endswith(f"] {stage}"), lines
    return lines


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(("pairs", "merge", "index"), id="three-stages"),
        pytest.param(STAGES, id="every-stage", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_finishes_and_repeats_no_finished_stage(
    tmp_path: Path, finished: Path, stages: tuple[str, ...]
) -> None:
    recipe = write_tiny_recipe(tmp_path)
    done_before: set[str] = set()
    for stage in stages:
        lines = start_and_kill(recipe, tmp_path / "run", stage)
        for name in done_before:
            assert any(line.endswith(f"{name}: already done") for line in lines), (stage, name)
        done_before = set(STAGES[: STAGES.index(stage)])
    last = stm_train(
        "run", recipe, "--run-folder", tmp_path / "run", "--json", tmp_path / "f.json", "--quiet"
    )
    assert last.returncode in (0, 3), last.stderr
    assert not list((tmp_path / "run").glob("*.partial"))
    expected = json.loads((finished / "figures.json").read_text(encoding="utf-8"))
    figures = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert figures["systems"] == expected["systems"]
    assert figures["shipped"] == expected["shipped"]


def test_where_nothing_is_learnt_the_base_ships_and_the_output_says_so(tmp_path: Path) -> None:
    train = {"steps": 1, "batch_size": 4, "learning_rate": 1e-12, "lora_rank": 2}
    recipe = write_tiny_recipe(tmp_path, train=train, merge={"trials": 1}, all_data=False, examples=[])
    done = stm_train(
        "run", recipe, "--run-folder", tmp_path / "run", "--json", tmp_path / "f.json", "--quiet"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))["shipped"] == "base"
    assert "The untouched base ships" in done.stdout


def test_without_user_queries_everything_says_synthetic(tmp_path: Path) -> None:
    experts = {"titles": {"kinds": ["title"]}, "all": {"kinds": ["title", "keywords", "sentence"]}}
    recipe = write_tiny_recipe(
        tmp_path,
        topics=tuple(
            f"{place} {illness}" for place in ("early", "late", "mild", "grave") for illness in TOPICS
        ),
        queries=None,
        synthesize={},
        experts=experts,
        merge={"trials": 1},
        examples=[],
    )
    done = stm_train("run", recipe, "--run-folder", tmp_path / "run", "--quiet")
    assert done.returncode in (0, 3), done.stderr
    assert "synthetic queries only" in done.stdout
    manifest = read_manifest(tmp_path / "run" / "retriever")
    assert manifest.metrics["proven_on"] == "synthetic queries only"
    assert "ynthetic queries only" in (tmp_path / "run" / "report" / "report.html").read_text(
        encoding="utf-8"
    )
    pairs = (tmp_path / "run" / "pairs" / "pairs.jsonl").read_text(encoding="utf-8")
    trained_on = {json.loads(line)["positive_id"] for line in pairs.splitlines()}
    for split in ("dev", "test"):
        rows = (tmp_path / "run" / "pairs" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert rows
        assert trained_on.isdisjoint(name for row in rows for name in json.loads(row)["relevant"])


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, finished: Path) -> None:
    from stm_retriever.errors import ConfigError
    from stm_training.pipeline.stages import run_lock

    with (
        run_lock(finished / "run"),
        pytest.raises(ConfigError, match="Another process"),
        run_lock(finished / "run"),
    ):
        pass
