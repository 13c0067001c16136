"""``stm-train run`` with pre-training, watched and selected experts, a second domain, and a search over merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_training.finetune.backbone import BackboneSpec, load_backbone
from stm_training.pipeline.members import member_deltas
from tests.tiny_run import STAGES, stm_train, write_tiny_collection, write_tiny_recipe

EXTRA_PAIRS = [
    {"query": f"what is {word}", "positive": f"A {word} is a thing that a nurse may carry.", "kind": "extra"}
    for word in ("lamp", "saddle", "violin", "button", "copper", "pepper")
]
RECIPE: dict[str, Any] = {
    "domains": {"forum": {"path": "forum", "train": "train", "dev": "dev", "test_fraction": 0.4}},
    "pretrain": {"steps": 2, "batch_size": 4, "words_per_pair": 20},
    "train": {
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 0.01,
        "lora_rank": 4,
        "lora_alpha": 8,
        "eval_steps": 2,
        "anchor_weight": 0.1,
        "anchor_batch": 2,
    },
    "experts": {
        "questions": {"kinds": ["question"], "train": {"select": {"drop_low": 0.25, "probe_steps": 1}}},
        "forum": {"kinds": ["forum"], "pairs": ["extra.jsonl"], "prompt": "forum: ", "steps": 3},
        "whole": {"kinds": ["claim"], "train": {"adapter": "full", "learning_rate": 0.001}},
    },
    "merge": {
        "methods": ["linear", "dare_ties", "breadcrumbs"],
        "sampler": "random",
        "trials": 4,
        "cocktail_examples": 4,
        "fusion_curve": True,
    },
    "evaluate": {"bootstrap_samples": 200, "max_guard_loss": 100, "dev_queries": 20, "dev_documents": 100},
    "examples": [],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    recipe = write_tiny_recipe(folder, **RECIPE)
    topics = ("fever", "cough", "sprain", "burn", "rash", "lice")
    write_tiny_collection(folder / "forum", topics, splits={"train": 0, "dev": 1})
    (folder / "extra.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EXTRA_PAIRS), "utf-8")
    done = stm_train("run", recipe, "--run-folder", folder / "run", "--quiet")
    assert done.returncode in (0, 3), done.stderr
    return folder / "run"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_selected_expert_has_a_twin_on_as_many_random_pairs(run: Path) -> None:
    chosen, twin = (
        read(run / f"expert-{name}" / "expert.json") for name in ("questions", "questions-random")
    )
    assert chosen["trained_on"] == twin["trained_on"] < chosen["pairs"]
    assert (chosen["selection"]["method"], twin["selection"]["method"]) == ("gradient", "random")
    assert "random:questions" not in read(run / "merge" / "choice.json")["merge"]["weights"]


def test_experts_are_watched_on_every_collection_and_guard(run: Path) -> None:
    history = read(run / "expert-forum" / "expert.json")["history"]
    scored = [entry for entry in history if "dev_ndcg@10" in entry]
    assert [entry["step"] for entry in scored] == [0, 2, 3]
    assert set(scored[0]["guards"]) == {"general"}
    assert {name.split("/")[0] for name in scored[0]["queries"]} == {"dev", "forum"}


def test_every_expert_leaves_its_curves_for_tensorboard_and_its_memory_plan(run: Path) -> None:
    for name in ("questions", "forum", "whole", "all_data"):
        assert list((run / f"expert-{name}" / "tensorboard").glob("events.out.tfevents.*"))
        assert read(run / f"expert-{name}" / "memory_probe.json")["token_budget"] > 0


def test_an_expert_takes_its_own_pairs_prompt_and_settings(run: Path) -> None:
    record = read(run / "expert-forum" / "expert.json")
    assert set(record["kinds"]) == {"forum", "extra"}
    assert record["kinds"]["extra"] == len(EXTRA_PAIRS)
    assert record["steps"] == 3
    assert (run / "expert-whole" / "model" / "model.safetensors").is_file()


def test_experts_start_from_the_pre_trained_model_and_their_change_counts_it(run: Path) -> None:
    base = load_backbone(BackboneSpec(str(run.parent / "base")))
    pretrained = read(run / "pretrain" / "pretrain.json")
    assert set(pretrained["kinds"]) <= {"title", "neighbours", "crops"}
    deltas = member_deltas(run / "expert-forum", base)
    adapter = load_backbone(BackboneSpec(str(run / "pretrain" / "model")))
    before = dict(adapter.model.named_parameters())
    weights = dict(base.model.named_parameters())
    name = next(iter(deltas))
    own = deltas[name].numpy() - (before[name] - weights[name]).detach().numpy()
    assert np.abs(own).max() > 0
    assert np.linalg.matrix_rank(own, tol=1e-5) <= 4 < np.linalg.matrix_rank(deltas[name].numpy(), tol=1e-5)


def test_the_search_tries_the_methods_and_keeps_its_trials(run: Path) -> None:
    choice = read(run / "merge" / "choice.json")
    trials = choice["search"]["trials"]
    assert len(trials) == 5
    assert trials[-1]["recipe"]["method"] == "linear"  # LM-Cocktail's, by the members' losses
    assert trials[-1]["recipe"]["base_weight"] > 0
    assert {trial["recipe"]["method"] for trial in trials} <= {"linear", "dare_ties", "breadcrumbs"}
    assert set(choice["search"]["base"]["dev"]) == {"dev", "forum"}
    names = {name for one in choice["decision"]["table"] for name in [one["name"]]}
    assert names == {
        *("base", "expert:questions", "random:questions", "expert:forum", "expert:whole"),
        *("all_data", "merged"),
    }


def test_every_collection_weighs_the_same_in_the_figures_and_stands_in_the_report(run: Path) -> None:
    figures = read(run / "report" / "figures.json")
    sets = read(run / "evaluate" / "scores.json")["sets"]
    assert set(sets) == {"test", "forum"}
    for system, row in figures["systems"].items():
        assert row["ndcg@10"] == pytest.approx((sets["test"][system] + sets["forum"][system]) / 2)
        runs = [run / "evaluate" / "runs" / f"{name}.{system.replace(':', '-')}.run" for name in sets]
        assert all(path.read_text().count(" Q0 ") > 0 for path in runs)  # for trec_eval and other programs
    report = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "Collection by collection" in report
    assert "Fused vectors" in report
    assert report.count("<svg") >= 4  # forest plot, domain against general, lambda, learning curves


def test_all_stages_are_there(run: Path) -> None:
    expected = {"pretrain", "expert-questions-random", "expert-forum", "expert-whole"} | set(STAGES)
    stages = {path.parent.name for path in run.glob("*/stage.json")}
    assert stages == expected - {"expert-statements"}
