"""``stm-train finetune`` as processes: it trains, is killed and goes on, is stopped, and says what is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stm_retriever import Embedder
from stm_training import cli
from stm_training.data.records import Pair
from stm_training.data.writing import write_pairs
from stm_training.finetune.backbone import BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.finetune.lora import full_deltas
from tests.tiny_models import build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

ILLNESSES = ("asthma", "migraine", "iron", "insulin", "fever", "gout", "wrist", "pressure", "nose", "pollen")
ASPECTS = ("attack", "blood", "cast", "chest", "body", "night", "months", "spring")
# The command as the console script runs it, whether it is listed in the parser yet or not.
COMMAND = """
import sys
import stm_training.cli as cli
if "finetune" not in cli.COMMANDS:
    cli.COMMANDS = (*cli.COMMANDS, "finetune")
sys.exit(cli.main())
"""
TRAINING = [
    "--steps",
    "12",
    "--batch-size",
    "8",
    "--learning-rate",
    "0.02",
    "--lora-rank",
    "4",
    "--lora-alpha",
    "8",
]
TRAINING += ["--precision", "fp32", "--token-budget", "512", "--eval-steps", "4", "--save-steps", "3"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def document(illness: str, aspect: str) -> str:
    return f"What the {aspect} has to do with {illness}, and how {illness} is treated then."


def write_collection(folder: Path, split: str, asked: tuple[str, ...]) -> None:
    (folder / "qrels").mkdir(parents=True)
    names = [(illness, aspect) for illness in ILLNESSES for aspect in ASPECTS]
    rows = [{"_id": f"{i}-{a}", "title": "", "text": document(i, a)} for i, a in names]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q-{i}-{a}", "text": f"{i} and {a}"} for i, a in names if a in asked]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    lines = ["query-id\tcorpus-id\tscore", *(f"{row['_id']}\t{row['_id'][2:]}\t1" for row in queries)]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, dev/ and guard/ collections, pairs.jsonl. Shared: do not write into it."""
    root = tmp_path_factory.mktemp("world")
    build_tiny_model("bert", root / "base", prompts={"query": "how: ", "document": "one: "})
    write_collection(root / "dev", "dev", ASPECTS[:2])
    write_collection(root / "guard", "test", ASPECTS[2:4])
    pairs = [
        Pair(
            query=f"{aspect} {illness}",
            positive=document(illness, aspect),
            negatives=(document(illness, ASPECTS[place - 1]),),
        )
        for illness in ILLNESSES
        for place, aspect in enumerate(ASPECTS)
    ]
    write_pairs(root / "pairs.jsonl", pairs)
    return root


def arguments(world: Path, out: Path, *more: str | Path) -> list[str]:
    given = ["finetune", "--base", world / "base", "--pairs", world / "pairs.jsonl", "--out", out]
    given += ["--dev", world / "dev", "--guard", f"general={world / 'guard'}", "--max-guard-loss", "100"]
    return [*map(str, given), *TRAINING, *map(str, more)]


def start(given: list[str], more: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *given],
        env=ENVIRONMENT | (more or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def run_here(given: list[str]) -> int:
    """In this process: quicker, for what needs no process of its own."""
    before = cli.COMMANDS
    cli.COMMANDS = before if "finetune" in before else (*before, "finetune")
    try:
        return cli.main(given)
    finally:
        cli.COMMANDS = before


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.05)


def outputs(out: Path) -> dict[str, Any]:
    """Everything that a training left, without times and without TensorBoard's event files."""
    record = json.loads((out / "finetune.json").read_text())
    record["result"].pop("seconds")
    history = json.loads((out / "history.json").read_text())
    for entry in history:
        entry.pop("seconds", None)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    config["target_modules"].sort()  # a set in PEFT: another order in each process
    return {
        "adapter": (out / "adapter" / "adapter_model.safetensors").read_bytes(),
        "config": config,
        "curves": (out / "curves.html").read_text().replace(out.name, "NAME"),
        "history": history,
        "record": record,
        "names": sorted(path.name for path in out.iterdir()),
    }


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """An uninterrupted training: its folder and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "expert"
    code, printed, told = finish(start(arguments(world, out)))
    assert code == 0, told
    return out, printed, told


def test_it_trains_and_leaves_what_it_says(whole: tuple[Path, str, str]) -> None:
    out, printed, _ = whole
    assert {"adapter", "history.json", "curves.html", "finetune.json", "tensorboard"} <= {
        path.name for path in out.iterdir()
    }
    assert not {"checkpoints", "best"} & {path.name for path in out.iterdir()}
    figures = json.loads((out / "finetune.json").read_text())["result"]
    dev = figures["dev"]
    assert dev["queries"] == 20
    assert dev["after"] == max(dev["before"], dev["after"])
    assert dev["after"] - dev["before"] == pytest.approx(dev["delta"])
    assert dev["ci95"][0] <= dev["delta"] <= dev["ci95"][1]
    assert figures["last_loss"] < figures["first_loss"]
    assert f"nDCG@10 {dev['before']:.4f} before, {dev['after']:.4f} after" in printed
    assert f"(step {figures['best_step']} was kept)" in printed
    assert "guard general: nDCG@10" in printed
    assert "Next: stm-train merge --base" in printed


def test_the_history_and_the_curves_hold_every_step_and_scoring(whole: tuple[Path, str, str]) -> None:
    out = whole[0]
    history = json.loads((out / "history.json").read_text())
    assert [entry["step"] for entry in history if "step_loss" in entry] == list(range(1, 13))
    assert [entry["step"] for entry in history if "dev_ndcg@10" in entry] == [0, 4, 8, 12]
    assert all("general" in entry["guards"] for entry in history if "guards" in entry)
    page = (out / "curves.html").read_text()
    for words in ("dev nDCG@10", "guard general", "loss"):
        assert words in page


def test_the_figures_reach_tensorboard(whole: tuple[Path, str, str]) -> None:
    [file] = (whole[0] / "tensorboard").iterdir()
    raw = file.read_bytes()
    for tag, times in ((b"train/loss", 12), (b"train/learning_rate", 12), (b"train/tokens_per_second", 12)):
        assert raw.count(tag) == times
    for tag in (b"dev/ndcg_at_10", b"guards/general"):
        assert raw.count(tag) == 4


def test_one_batch_is_printed_first_and_texts_stay_out_of_the_files(whole: tuple[Path, str, str]) -> None:
    out, printed, told = whole
    assert "A batch as the model sees it (8 rows" in told
    assert "prompts: query 'how: ', document 'one: '" in told
    assert "hard negatives in 8 of 8 rows" in told
    assert told.index("A batch as") < told.index("step 0: dev nDCG@10") < told.index("step 12: dev nDCG@10")
    assert "has to do with" in told
    assert "has to do with" not in printed
    for path in ("history.json", "finetune.json", "curves.html"):
        assert "has to do with" not in (out / path).read_text()


def test_the_kept_adapter_scores_what_was_promised(world: Path, whole: tuple[Path, str, str]) -> None:
    """From the folder alone, with arithmetic of its own."""
    out = whole[0]
    base = load_backbone(BackboneSpec(str(world / "base")))
    weights = dict(base.model.named_parameters())
    with torch.no_grad():
        for name, delta in full_deltas(out / "adapter", base).items():
            weights[name].add_(delta)
    names = [(illness, aspect) for illness in ILLNESSES for aspect in ASPECTS]
    texts = encode_texts(base, [document(*name) for name in names], "document", precision="fp32")
    asked = [name for name in names if name[1] in ASPECTS[:2]]
    queries = encode_texts(base, [f"{i} and {a}" for i, a in asked], "query", precision="fp32")
    scores = queries @ texts.T
    ranks = [1 + int((row > row[names.index(name)]).sum()) for row, name in zip(scores, asked, strict=True)]
    ndcg = np.mean([1 / np.log2(rank + 1) if rank <= 10 else 0.0 for rank in ranks])
    promised = json.loads((out / "finetune.json").read_text())["result"]["dev"]["after"]
    # Scoring may run in bfloat16: near ties among alike texts may turn.
    assert ndcg == pytest.approx(promised, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "seen",
    [
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-9",
    ],
)
def test_a_killed_training_goes_on_to_the_same_files(
    tmp_path: Path, world: Path, whole: tuple[Path, str, str], seen: str
) -> None:
    out = tmp_path / "expert"
    process = start(arguments(world, out))
    wait_for(out / "checkpoints" / seen / "trainer_state.json", process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert not (out / "history.json").exists()
    code, _, told = finish(start(arguments(world, out)))
    assert code == 0, told
    assert "Going on from the checkpoint of step" in told
    assert outputs(out) == outputs(whole[0])


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_and_the_same_command_goes_on(
    tmp_path: Path, world: Path, whole: tuple[Path, str, str]
) -> None:
    out = tmp_path / "expert"
    # No checkpoint but the one that Ctrl-C asks for.
    given = arguments(world, out, "--save-steps", "1000")
    process = start(given)
    wait_for(out / "best", process)  # step 0 is scored, training begins
    process.send_signal(signal.SIGINT)
    code, _, told = finish(process)
    assert code == 130, told
    assert "Wrote a checkpoint at step" in told
    assert "the same command goes on from there" in told
    [kept] = (out / "checkpoints").glob("checkpoint-*")
    code, _, told = finish(start(given))
    assert code == 0, told
    assert f"Going on from the checkpoint of step {kept.name.rpartition('-')[2]}" in told
    assert outputs(out)["adapter"] == outputs(whole[0])["adapter"]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["false", "true"])
def test_of_two_processes_one_prints_and_writes_and_the_result_is_one_training(
    tmp_path: Path, world: Path, whole: tuple[Path, str, str], sharded: str
) -> None:
    out = tmp_path / "expert"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    address["ACCELERATE_USE_FSDP"] = sharded
    processes = [
        start(arguments(world, out), address | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    (code, printed, told), (other_code, *other) = [finish(process) for process in processes]
    assert (code, other_code) == (0, 0), (told, other)
    assert printed.startswith("Trained 12 steps")
    assert other[0] == ""
    assert "dev nDCG" not in other[1]
    ours, expected = outputs(out), outputs(whole[0])
    assert ours["names"] == expected["names"]
    losses = [
        [one["step_loss"] for one in both["history"] if "step_loss" in one] for both in (ours, expected)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_finished_training_is_read_and_not_repeated(
    world: Path, whole: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, printed, _ = whole
    before = outputs(out)
    assert run_here(arguments(world, out)) == 0
    assert capsys.readouterr().out == printed
    assert outputs(out) == before


def test_other_arguments_do_not_touch_a_training_unless_told_to(
    world: Path, whole: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = outputs(whole[0])
    assert run_here(arguments(world, whole[0], "--seed", "1")) == 2
    assert "a finished training of other arguments or other data" in capsys.readouterr().err
    assert outputs(whole[0]) == before


def test_overwrite_removes_the_other_training_and_nothing_else(tmp_path: Path, world: Path) -> None:
    out = tmp_path / "expert"
    given = ["finetune", "--base", world / "base", "--pairs", world / "pairs.jsonl", "--out", out, "--quiet"]
    short = [*map(str, given), *TRAINING[2:-4], "--steps", "1"]
    assert run_here(short) == 0
    (out / "notes.txt").write_text("mine")
    assert run_here([*short, "--seed", "1", "--overwrite"]) == 0
    assert json.loads((out / "finetune.json").read_text())["result"]["seed"] == 1
    assert (out / "notes.txt").read_text() == "mine"
    assert len(list((out / "tensorboard").iterdir())) == 1


def test_the_export_is_a_retriever_folder_of_the_trained_weights(
    tmp_path: Path, world: Path, whole: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(arguments(world, whole[0], "--export", tmp_path / "retriever", "--quiet")) == 0
    assert "Score it: stm-train evaluate" in capsys.readouterr().out
    text = document("gout", "night")
    vector = Embedder.load(tmp_path / "retriever", threads=1).encode_document([text])
    base = load_backbone(BackboneSpec(str(world / "base")))
    untrained = encode_texts(base, [text], "document", precision="fp32")
    weights = dict(base.model.named_parameters())
    with torch.no_grad():
        for name, delta in full_deltas(whole[0] / "adapter", base).items():
            weights[name].add_(delta)
    assert np.allclose(vector, encode_texts(base, [text], "document", precision="fp32"), atol=1e-4)
    assert not np.allclose(vector, untrained, atol=1e-2)


def test_quiet_prints_the_summary_alone(
    tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["finetune", "--base", world / "base", "--pairs", world / "pairs.jsonl", "--out", tmp_path / "o"]
    assert (
        run_here([*map(str, given), "--quiet", "--steps", "1", "--batch-size", "8", "--token-budget", "512"])
        == 0
    )
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("Trained 1 steps on 80 pairs")
    assert "dev" not in printed.out.partition("Wrote")[0]


def test_pairs_of_several_files_are_trained_together_and_general_texts_anchor(
    tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["finetune", "--base", world / "base", "--pairs", world / "pairs.jsonl", "--out", tmp_path / "o"]
    given += ["--pairs", world / "pairs.jsonl", "--quiet", "--steps", "2", "--batch-size", "4"]
    given += ["--anchor", world / "guard", "--anchor-weight", "0.5", "--anchor-texts", "7"]
    assert run_here([*map(str, given), "--token-budget", "512"]) == 0
    figures = json.loads((tmp_path / "o" / "finetune.json").read_text())["result"]
    assert figures["pairs"] == 160
    history = json.loads((tmp_path / "o" / "history.json").read_text())
    assert all("anchor_loss" in entry for entry in history)


def test_development_queries_among_the_pairs_are_told(
    tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Pair(query=f"{i} AND blood?", positive=document(i, "blood")) for i in ILLNESSES]
    write_pairs(tmp_path / "leaky.jsonl", rows)
    given = [
        "finetune",
        "--base",
        world / "base",
        "--pairs",
        tmp_path / "leaky.jsonl",
        "--dev",
        world / "dev",
    ]
    given += [
        "--out",
        tmp_path / "o",
        "--quiet",
        "--steps",
        "1",
        "--batch-size",
        "4",
        "--token-budget",
        "512",
    ]
    assert run_here(list(map(str, given))) == 0
    assert "10 of 20 development queries are training queries too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dev-split", "test"], "chosen on test queries make"),
        (["--dev-split", "validation"], "no split 'validation'; those there: dev"),
        (["--guard", "nofolder"], "--guard nofolder: give it a name and a folder"),
        (["--guard", "g=missing"], "missing/corpus.jsonl is not there"),
        (["--anchor-weight", "0.1"], "one is of no use without the other"),
        (["--anchor", "texts"], "one is of no use without the other"),
        (["--batch-size", "1"], "--batch-size 1: Input should be greater than or equal to 2"),
        (["--documents", "0"], "--documents 0: at least 1"),
        (["--batch-size", "81"], "80 pairs cannot fill one batch of 81"),
        (["--base", "nowhere/at-all"], "nowhere/at-all"),
        (["--max-length", "4000"], "max_length is 4000"),
        (["--loss", "distill"], "score"),
        (["--pairs", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_wrong_input_is_an_error_that_says_what_to_do(
    tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert run_here(arguments(world, tmp_path / "o", "--quiet", *options)) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("option", [["--guard", "a=b"], ["--eval-steps", "5"], ["--patience", "2"]])
def test_what_needs_development_queries_says_so(
    tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    given = ["finetune", "--base", world / "base", "--pairs", world / "pairs.jsonl", "--out", tmp_path / "o"]
    assert run_here([*map(str, given), *option]) == 2
    assert f"{option[0]} needs development queries to choose by" in capsys.readouterr().err


def test_a_bad_pair_names_its_file_and_line(
    tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (world / "pairs.jsonl").read_text().splitlines()
    rows[40] = '{"query": "q", "positive": ""}'
    (tmp_path / "bad.jsonl").write_text("\n".join(rows) + "\n")
    given = ["finetune", "--base", world / "base", "--pairs", tmp_path / "bad.jsonl", "--out", tmp_path / "o"]
    given += ["--steps", "1", "--batch-size", "4", "--token-budget", "512"]
    assert run_here(list(map(str, given))) == 2
    assert "bad.jsonl:41" in capsys.readouterr().err
    assert run_here([*map(str, given), "--on-error", "skip"]) == 0
    printed = capsys.readouterr()
    assert "bad.jsonl:41" in printed.err
    assert "on 79 pairs" in printed.out


def test_a_folder_of_somebody_else_is_left_alone(
    tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.txt").write_text("mine")
    assert run_here(arguments(world, tmp_path, "--overwrite")) == 2
    assert "so it is none of ours" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.txt"]


def test_every_setting_has_an_option_with_its_description_and_default() -> None:
    import argparse

    from stm_training.commands import finetune
    from stm_training.finetune.settings import TrainSettings

    parser = argparse.ArgumentParser()
    finetune.add_parser(parser.add_subparsers())
    [action] = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    text = " ".join(action.choices["finetune"].format_help().split())
    for name, field in TrainSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description is not None
        assert " ".join(field.description.replace("null:", "none:").split()) in text
