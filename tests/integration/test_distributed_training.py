"""Two processes train to the weights of one; killed ones go on where they were; none waits for the dead."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stm_training.data.records import Pair
from stm_training.finetune.backbone import BackboneSpec
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import train_expert
from tests.tiny_models import SENTENCES, build_tiny_model

ROOT = Path(__file__).parents[2]

# Ragged, so that the processes' shares differ: 0 to 2 hard negatives, long and short texts.
PAIRS = [
    Pair(
        query=" ".join(sentence.split()[: 2 + number % 4]),
        positive=" ".join([sentence] * (1 + number % 2)),
        negatives=tuple(SENTENCES[(number + offset) % 10] for offset in range(1, 1 + number % 3)),
    )
    for number, sentence in enumerate(SENTENCES)
]
SETTINGS: dict[str, Any] = {
    "batch_size": 5,
    "hard_negatives": 2,
    "learning_rate": 5e-3,
    "steps": 4,
    "lora_rank": 4,
    "lora_alpha": 8,
    "precision": "fp32",
    "token_budget": 64,
    "temperature": 0.2,
}

# What every process runs: the trainings that a JSON file describes, one after the other.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from stm_training.data.records import Pair
from stm_training.finetune.backbone import BackboneSpec
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import train_expert
from stm_training.finetune import step as steps
from tests.integration.test_distributed_training import PAIRS

torch.set_num_threads(1)
for job in json.loads(Path(sys.argv[1]).read_text()):
    def progress(step, total, loss):
        if step == job.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("RANK") == job.get("fail_in", "none"):
        real = steps.ContrastiveStep._loss
        def fails(self, *args):
            raise RuntimeError(job["fail_with"])
        def fails_once(self, *args):
            steps.ContrastiveStep._loss = real
            raise RuntimeError(job["fail_with"])
        steps.ContrastiveStep._loss = fails_once if job.get("once") else fails
    result = train_expert(
        BackboneSpec(job["source"]),
        PAIRS,
        settings=TrainSettings(**job["settings"]),
        out_dir=Path(job["out"]),
        anchor_texts=[pair.positive for pair in PAIRS],
        progress=progress,
        fsdp=job.get("fsdp"),
    )
    if os.environ.get("RANK", "0") == "0":
        told = {"losses": result.losses, "token_budget": result.token_budget, "history": result.history}
        Path(job["out"], "result.json").write_text(json.dumps(told))
"""


def start(jobs: Sequence[Mapping[str, Any]], folder: Path, *, processes: int) -> subprocess.Popen[str]:
    """Run jobs in so many processes, on the loopback interface alone."""
    (folder / "jobs.json").write_text(json.dumps(list(jobs)), encoding="utf-8")
    (folder / "run.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        command += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    return subprocess.Popen(
        [*command, str(folder / "run.py"), str(folder / "jobs.json")],
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": "lo",
            "HF_HUB_OFFLINE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str]:
    """Exit code and output; a process that hangs is killed, and the test fails."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        pytest.fail(f"still running after {seconds} s:\n{output[-3000:]}")
    return process.returncode, output


def run(jobs: Sequence[Mapping[str, Any]], folder: Path, *, processes: int) -> None:
    code, output = finish(start(jobs, folder, processes=processes))
    assert code == 0, output[-5000:]


def told(job: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(job["out"]) / "result.json").read_text())
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_as_one_process(job: Mapping[str, Any], folder: Path) -> None:
    """The job's result is that of the same training in this process alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = train_expert(
            BackboneSpec(job["source"]),
            PAIRS,
            settings=TrainSettings(**job["settings"]),
            out_dir=folder,
            anchor_texts=[pair.positive for pair in PAIRS],
        )
    finally:
        torch.set_num_threads(before)
    shared = told(job)
    assert shared["losses"] == pytest.approx(alone.losses, rel=1e-4)
    tokens = [record["tokens"] for record in alone.history if "step_loss" in record]
    assert [record["tokens"] for record in shared["history"] if "step_loss" in record] == tokens
    if TrainSettings(**job["settings"]).adapter == "full":
        first, second = (
            load_file(folder / "model" / "model.safetensors"),
            load_file(Path(job["out"]) / "model" / "model.safetensors"),
        )
    else:
        first, second = weights(folder), weights(Path(job["out"]))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        family: str(build_tiny_model(family, tmp_path_factory.mktemp(family))) for family in ("bert", "qwen3")
    }


def test_two_processes_with_hard_negatives_equal_one(sources: dict[str, str], tmp_path: Path) -> None:
    jobs = [
        {"source": sources["bert"], "settings": SETTINGS, "out": str(tmp_path / "bert")},
        {
            "source": sources["qwen3"],
            "settings": {
                **SETTINGS,
                "loss": "info_nce",
                "grad_cache": "off",
                "anchor_weight": 0.5,
                "anchor_batch": 3,
            },
            "out": str(tmp_path / "qwen3"),
        },
    ]
    run(jobs, tmp_path, processes=2)
    for job in jobs:
        assert_as_one_process(job, tmp_path / "alone" / Path(str(job["out"])).name)


@pytest.mark.slow
def test_two_processes_with_sharded_weights_equal_one(sources: dict[str, str], tmp_path: Path) -> None:
    jobs = [
        {"source": sources["bert"], "settings": SETTINGS, "out": str(tmp_path / "bert"), "fsdp": True},
        {
            "source": sources["qwen3"],
            "settings": {**SETTINGS, "loss": "info_nce", "false_negatives": "guide"},
            "out": str(tmp_path / "qwen3"),
            "fsdp": True,
        },
        {
            "source": sources["qwen3"],
            "settings": {**SETTINGS, "adapter": "full", "learning_rate": 1e-3},
            "out": str(tmp_path / "full"),
            "fsdp": True,
        },
    ]
    run(jobs, tmp_path, processes=2)
    for job in jobs:
        assert_as_one_process(job, tmp_path / "alone" / Path(str(job["out"])).name)


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_lowers_the_budget_of_all(
    sources: dict[str, str], tmp_path: Path
) -> None:
    job = {
        "source": sources["bert"],
        "settings": SETTINGS,
        "out": str(tmp_path / "shared"),
        "fail_in": "1",
        "fail_with": "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        "once": True,
    }
    run([job], tmp_path, processes=2)
    assert told(job)["token_budget"] < SETTINGS["token_budget"]
    assert_as_one_process(job, tmp_path / "alone")


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_of_them(sources: dict[str, str], tmp_path: Path) -> None:
    job = {
        "source": sources["bert"],
        "settings": SETTINGS,
        "out": str(tmp_path / "shared"),
        "fail_in": "1",
        "fail_with": "a broken disk",
    }
    code, output = finish(start([job], tmp_path, processes=2), seconds=100)
    assert code != 0
    assert "a broken disk" in output
    assert not (tmp_path / "shared" / "adapter").exists()


@pytest.mark.slow
def test_a_training_killed_in_mid_epoch_goes_on_to_the_same_weights_bit_for_bit(
    sources: dict[str, str], tmp_path: Path
) -> None:
    settings = {**SETTINGS, "lora_dropout": 0.2, "steps": 6, "save_steps": 2, "token_budget": None}
    job = {"source": sources["bert"], "settings": settings, "out": str(tmp_path / "killed")}
    code, output = finish(start([{**job, "kill_at": 5}], tmp_path, processes=1))
    assert code == -signal.SIGKILL, output
    probe = tmp_path / "killed" / "memory_probe.json"
    # A resumed training must not measure again: this budget could not come from this machine.
    probed = json.loads(probe.read_text())
    assert probed["token_budget"] == 4096
    run([job], tmp_path, processes=1)
    whole = {**job, "out": str(tmp_path / "whole")}
    run([whole], tmp_path, processes=1)
    assert [record["step"] for record in told(job)["history"] if "step_loss" in record] == [1, 2, 3, 4, 5, 6]
    assert told(job)["losses"] == told(whole)["losses"]
    first, second = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert json.loads(probe.read_text()) == probed


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_killed_processes_go_on_together(sources: dict[str, str], tmp_path: Path, fsdp: bool) -> None:
    settings = {**SETTINGS, "lora_dropout": 0.2, "steps": 5, "save_steps": 2}
    job = {"source": sources["bert"], "settings": settings, "out": str(tmp_path / "killed"), "fsdp": fsdp}
    code, output = finish(start([{**job, "kill_at": 3}], tmp_path, processes=2))
    assert code != 0, output
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-2" / "trainer_state.json").is_file()
    whole = {**job, "out": str(tmp_path / "whole")}
    run([job, whole], tmp_path, processes=2)
    assert told(job)["losses"] == pytest.approx(told(whole)["losses"], rel=1e-6)
    first, second = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    for name, value in second.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-7, msg=name)
