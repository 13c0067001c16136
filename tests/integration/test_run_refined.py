"""``stm-train run`` with filters, mined negatives and a search for a query prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stm_retriever.folder import read_manifest
from tests.tiny_run import stm_train, write_tiny_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refined")
    recipe = write_tiny_recipe(
        folder,
        filters={
            "round_trip": {"retriever": "bm25", "k": 10},
            "language": {"enabled": False},
            "negatives": {"margin": "off"},
        },
        mine={"preset": "ranks", "skip_top": 2, "pool": 5, "mix": "add"},
        prompts={"prompts": ["Find advice about this illness"], "train_prompts": 3, "finalists": 1},
        train={"steps": 3, "batch_size": 4, "learning_rate": 0.01, "lora_rank": 4, "hard_negatives": 2},
        merge={"trials": 1},
        all_data=False,
        examples=[],
    )
    done = stm_train("run", recipe, "--run-folder", folder / "run", "--quiet")
    assert done.returncode in (0, 3), done.stderr
    assert "] prompt" in done.stdout
    return folder / "run"


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_mined_negatives_stand_beside_written_ones(run: Path) -> None:
    pairs = rows(run / "pairs" / "pairs.jsonl")
    corpus = {f"{row['title']} {row['text']}" for row in rows(run / "corpus" / "passages.jsonl")}
    with_both = [pair for pair in pairs if len(pair["negatives"]) == 2]  # type: ignore[arg-type]
    assert with_both
    for pair in with_both:
        written, mined = pair["negatives"]  # type: ignore[misc]
        assert mined in corpus
        assert written not in corpus
        assert mined != pair["positive"]


def test_what_was_filtered_mined_and_prompted_is_written_down(run: Path) -> None:
    refinement = json.loads((run / "pairs" / "pairs.json").read_text(encoding="utf-8"))["refinement"]
    assert refinement["filters"]["counts"]["pairs_in"] >= refinement["filters"]["counts"]["pairs"]
    assert refinement["mining"]["counts"]["queries"] > 0
    assert len(refinement["train_prompts"]) == 3
    prompts = {pair["prompt"] for pair in rows(run / "pairs" / "pairs.jsonl")}
    assert prompts == set(refinement["train_prompts"])


def test_the_prompt_that_was_chosen_is_the_one_that_ships(run: Path) -> None:
    decision = json.loads((run / "prompt" / "prompt.json").read_text(encoding="utf-8"))
    assert [one["origin"] for one in decision["candidates"]] == ["plain", "list"]
    assert read_manifest(run / "retriever").prompts.query == decision["prompt"]
    assert (decision["prompt"] != "query: ") == decision["changed"]
    shipped = json.loads((run / "report" / "figures.json").read_text(encoding="utf-8"))["shipped"]
    assert (shipped == "prompted") == decision["changed"]
