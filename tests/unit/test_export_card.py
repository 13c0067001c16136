"""The model card says what a reader needs, and never more than is known."""

from __future__ import annotations

from typing import Any

import yaml

from stm_training.export.card import render_card
from stm_training.export.parity import ParityCase, ParityReport
from tests.exported_models import exported

PARITY = ParityReport(
    limit=1e-4,
    longest_checked=96,
    cases=[ParityCase("graph against torch", 1, 1, "none", 2e-7, 1.0)],
    native_attention="causal",
)


def card(*, unmasked: bool = False, **changes: Any) -> tuple[dict[str, Any], str]:
    """Front matter and text of the tiny encoder's card, with the manifest changed."""
    manifest = exported("bert").manifest.model_copy(update=changes)
    text = render_card(manifest, PARITY, unmasked=unmasked)
    return yaml.safe_load(text.split("---")[1]), text


def test_figures_of_systems_become_a_table_and_a_missing_one_a_dash() -> None:
    figures = {
        "base": {"ndcg@10": 0.4, "delta": None, "ci95": None},
        "merged": {"ndcg@10": 0.45123, "delta": 0.05, "ci95": [0.01, 0.09]},
    }
    _, text = card(metrics={"test": figures, "proven_on": "user queries"})
    assert "| test | ndcg@10 | delta | ci95 |\n|---|---|---|---|\n" in text
    assert "| base | 0.4 | - | - |" in text
    assert "| merged | 0.4512 | 0.05 | [0.01, 0.09] |" in text
    assert "- proven_on: user queries" in text


def test_no_figures_no_table() -> None:
    assert "## Figures" not in card(metrics={})[1]


def test_two_licences_are_both_named_and_none_is_said_to_be_unknown() -> None:
    front, text = card(licences=["mit", "apache-2.0"])
    assert front["license"] == "other"
    assert "apache-2.0, mit" in text
    front, text = card(licences=[])
    assert "license" not in front
    assert "Not stated" in text


def test_only_names_that_the_hub_knows_go_into_the_front_matter() -> None:
    front, _ = card(base={"name": "tiny"}, data=[{"name": "my documents"}])
    assert not {"base_model", "datasets"} & set(front)
    front, _ = card(
        base={"name": "x", "hub_name": "someone/x"}, data=[{"name": "d", "hub_name": "someone/d"}]
    )
    assert (front["base_model"], front["datasets"]) == ("someone/x", ["someone/d"])
    assert front["base_model_relation"] == "finetune"


def test_an_unmasked_decoder_that_transformers_does_not_unmask_says_so() -> None:
    assert "ONNX only" not in card()[1]
    assert "not for this one" in card(unmasked=True)[1]


def test_a_prompt_with_markup_stays_verbatim() -> None:
    prompts = exported("bert").manifest.prompts.model_copy(update={"query": "Instruct: *find* |x|\nQuery: "})
    assert "```text\nInstruct: *find* |x|\nQuery: \n```" in card(prompts=prompts)[1]
