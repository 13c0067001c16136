"""How much goes through the model at once: measured once, kept, pinned; and what happens when it was too much."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stm_retriever.errors import TrainingError
from stm_training.data.records import Pair
from stm_training.finetune import memory_probe
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.forward_pass import ForwardPass
from stm_training.finetune.free_memory import free_memory
from stm_training.finetune.lora import attach_lora
from stm_training.finetune.memory_probe import Sample, bytes_per_token, measure
from stm_training.finetune.out_of_memory import is_out_of_memory
from stm_training.finetune.settings import TOKEN_BUDGET, TrainSettings
from stm_training.finetune.step import ContrastiveStep
from stm_training.finetune.trainer import TrainResult, train_expert
from tests.tiny_models import SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PAIRS = [
    Pair(query=" ".join(sentence.split()[:4]), positive=sentence, negatives=(SENTENCES[number - 1],))
    for number, sentence in enumerate(SENTENCES)
]
PROBED = TrainSettings(batch_size=4, learning_rate=5e-3, steps=4, lora_rank=4, lora_alpha=8, precision="fp32")
NO_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BackboneSpec:
    return BackboneSpec(str(build_tiny_model("bert", tmp_path_factory.mktemp("bert"))))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.adapter_dir / "adapter_model.safetensors")


# Measuring


def adapted(bert: BackboneSpec) -> Backbone:
    backbone = load_backbone(bert)
    attach_lora(backbone, rank=4, alpha=8, dropout=0.1)
    return backbone.train()


def test_what_a_graph_keeps_is_counted_once_and_without_weights() -> None:
    model = torch.nn.Linear(16, 16, bias=False)

    def encode(part: Any) -> torch.Tensor:
        hidden: torch.Tensor = model(part["input_ids"].float())  # keeps its (rows, 16) float32 input
        activated = hidden.sigmoid()  # keeps its (rows, 16) float32 output
        return activated * activated  # keeps the same one, twice

    samples = measure(model, encode, np.arange(16), CPU)
    assert [(sample.rows, sample.length) for sample in samples] == [(32, 16), (64, 16)]
    assert [sample.bytes for sample in samples] == [2 * 4 * 16 * sample.rows for sample in samples]
    assert bytes_per_token(samples) == 8.0


def test_the_length_at_which_a_token_costs_most_decides() -> None:
    cheap = [Sample(1, 512, 1000), Sample(2, 512, 1000 + 512 * 10)]
    dear = [Sample(2, 192, 500), Sample(4, 192, 500 + 2 * 192 * 30)]
    assert bytes_per_token([*dear, *cheap]) == bytes_per_token([*cheap, *dear]) == 30.0


def test_measuring_leaves_random_numbers_and_gradients_alone(bert: BackboneSpec) -> None:
    backbone = adapted(bert)
    before = torch.get_rng_state()
    ids = backbone.tokenizer.encode([SENTENCES[0]], "document")[0]
    samples = measure(backbone, ForwardPass(backbone, "fp32"), ids, CPU)
    assert all(sample.bytes > 1000 * sample.rows for sample in samples)
    assert torch.equal(before, torch.get_rng_state())
    assert all(value.grad is None for value in backbone.parameters())


def test_frozen_weights_stored_in_bf16_do_not_count(bert: BackboneSpec) -> None:
    # They are saved for the backward pass too, but are there anyway.
    backbone = adapted(bert)
    everything = sum(value.numel() * value.element_size() for value in backbone.parameters())
    ids = backbone.tokenizer.encode(["one"], "document")[0]
    few = memory_probe._saved_bytes(backbone, ForwardPass(backbone, "fp32"), memory_probe._repeated(ids, 1))
    assert few < everything


# Free memory


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8000 * 1024),
        (
            {
                "proc/self/cgroup": "0::/job/part\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/job/memory.max": "5000000\n",
                "sys/fs/cgroup/job/memory.current": "2000000\n",
                "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 500000\n",
                "sys/fs/cgroup/job/part/memory.max": "max\n",
                "sys/fs/cgroup/job/part/memory.current": "1\n",
            },
            3_500_000,
        ),
        (
            {
                "proc/self/cgroup": "5:devices:/\n4:memory:/outside\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "400000\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 1000\n",
            },
            601_000,
        ),
        (
            {
                "proc/self/cgroup": "0::/full\n",
                "sys/fs/cgroup/full/memory.max": "10\n",
                "sys/fs/cgroup/full/memory.current": "20\n",
            },
            0,
        ),
    ],
    ids=["no limit", "cgroup v2", "cgroup v1 in a container", "nothing left"],
)
def test_free_memory_is_the_least_of_the_kernels_and_the_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert free_memory(CPU, root=tree(tmp_path, {**MEMINFO, **files})) == expected


def test_other_systems_are_asked_in_their_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert free_memory(CPU) == 1000 * 4096 // 2


# The plan


def test_the_plan_is_measured_once_written_and_reused_by_a_resume(
    tmp_path: Path, bert: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PROBED.model_copy(update={"save_steps": 2, "dropout": 0.2})

    def stops(step: int, total: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "a", progress=stops)
    record = read(tmp_path / "a" / "memory_probe.json")
    assert record["token_budget"] == record["token_budget_cap"] == TOKEN_BUDGET
    fits = record["free_bytes"] * record["share"] / record["bytes_per_token"]
    assert record["graph_tokens"] == pytest.approx(fits, rel=1e-3)
    assert len(record["samples"]) == 2
    assert record["longest_text"] > 10

    def not_again(*args: Any) -> Any:
        raise RuntimeError("measured again")

    monkeypatch.setattr(memory_probe, "measure", not_again)
    resumed = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "a")
    assert resumed.token_budget == TOKEN_BUDGET
    assert read(tmp_path / "a" / "memory_probe.json") == record
    with pytest.raises(RuntimeError, match="measured again"):  # other inputs are other texts and lengths
        train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "a", seed=1)


def test_little_memory_gives_a_small_budget_and_gradcache(
    tmp_path: Path, bert: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty = train_expert(bert, PAIRS, settings=PROBED, out_dir=tmp_path / "plenty")
    cost = read(tmp_path / "plenty" / "memory_probe.json")["bytes_per_token"]
    monkeypatch.setattr(memory_probe, "free_memory", lambda device: int(cost * 100 * 2))
    cached: list[bool] = []
    real = ContrastiveStep.run

    def watched(self: ContrastiveStep, *args: Any) -> Any:
        result = real(self, *args)
        cached.append(result.cached)
        return result

    monkeypatch.setattr(ContrastiveStep, "run", watched)
    little = train_expert(bert, PAIRS, settings=PROBED, out_dir=tmp_path / "little")
    assert plenty.token_budget == TOKEN_BUDGET
    assert 90 <= little.token_budget <= 100
    assert cached == [True] * 4
    assert little.losses == pytest.approx(plenty.losses, rel=1e-4)


def test_a_pinned_budget_measures_nothing(
    tmp_path: Path, bert: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(memory_probe, "measure")
    settings = PROBED.model_copy(update={"token_budget": 70})
    result = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path)
    assert result.token_budget == 70
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# Out of memory


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError(NO_MEMORY), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_no_memory_are_told_from_others(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def failing_above(monkeypatch: pytest.MonkeyPatch, tokens: int, *, in_backward: bool) -> None:
    """Let forward passes with a graph (or backward passes) of more padded tokens run out of memory."""
    real = ForwardPass.__call__

    def limited(self: ForwardPass, part: Any) -> torch.Tensor:
        vectors = real(self, part)
        if torch.is_grad_enabled() and part["input_ids"].numel() > tokens:
            if not in_backward:
                raise RuntimeError(NO_MEMORY)

            def fails(gradient: torch.Tensor) -> None:
                raise RuntimeError(NO_MEMORY)

            vectors.register_hook(fails)  # type: ignore[no-untyped-call]
        return vectors

    monkeypatch.setattr(ForwardPass, "__call__", limited)


@pytest.mark.parametrize("in_backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("grad_cache", ["on", "off"])
def test_a_step_without_memory_is_repeated_in_smaller_micro_batches(
    tmp_path: Path,
    bert: BackboneSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    grad_cache: str,
    in_backward: bool,
) -> None:
    settings = PROBED.model_copy(update={"grad_cache": grad_cache, "token_budget": 160})
    expected = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "whole")
    failing_above(monkeypatch, 90, in_backward=in_backward)
    with caplog.at_level(logging.WARNING, "stm_training.finetune.contrastive"):
        result = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "small")
    assert "at most 80 padded tokens instead of 160" in caplog.text
    assert "can't allocate memory" in caplog.text
    assert result.token_budget == 80
    assert result.losses == pytest.approx(expected.losses, rel=1e-4)
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(result)[name], value, rtol=1e-3, atol=1e-5)


def test_where_single_texts_do_not_fit_the_error_names_remedies_and_the_checkpoint(
    tmp_path: Path, bert: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PROBED.model_copy(update={"save_steps": 2, "token_budget": 160})

    def no_more(step: int, total: int, loss: float) -> None:
        if step == 3:
            failing_above(monkeypatch, 5, in_backward=False)

    with pytest.raises(TrainingError, match=r"longest text .* alone: .*max_length.*checkpoint-2"):
        train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path, progress=no_more)
    assert (tmp_path / "checkpoints" / "checkpoint-2" / "adapter_state.safetensors").is_file()
