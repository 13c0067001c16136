"""The model card says what a reader needs, and never more than is known."""

from __future__ import annotations

import json
from typing import Any

import yaml

from stm_training.export.card import render_card, with_export_section
from stm_training.export.interop import interop_note, read_results
from stm_training.export.parity import ParityCase, ParityReport
from tests.exported_models import exported

REPORT = ParityReport(
    limit=1e-4,
    longest_checked=96,
    cases=[ParityCase("graph against torch", 1, 1, "none", 2e-7, 1.0)],
    native_attention="causal",
)
PARITY = {"fp32": REPORT.as_dict()}
W8 = {
    "bytes": 24_000_000,
    "min_cosine": 0.9987,
    "dev": [{"name": "handbook", "queries": 50, "points": -0.25}],
}


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


def test_each_smaller_variant_has_its_size_and_what_it_loses() -> None:
    variants = dict(exported("bert").manifest.variants)
    variants["w8"] = variants["fp32"].model_copy(update={"precision": "8-bit weights"})
    manifest = exported("bert").manifest.model_copy(update={"variants": variants})
    text = render_card(manifest, {**PARITY, "w8": W8}, unmasked=False)
    assert "| `w8` | 24.0 | 0.9987 | -0.25 on handbook (50) | 8-bit weights |" in text
    assert "not measured" in render_card(manifest, {**PARITY, "w8": {**W8, "dev": []}}, unmasked=False)
    assert "`variant=`" not in card()[1]


def test_lengths_that_vectors_may_be_cut_to_are_named() -> None:
    assert "cut to 16, 8 numbers" in card(dimensions_allowed=[32, 16, 8])[1]
    assert "cut to" not in card()[1]


def test_a_folder_without_fp32_says_what_follows() -> None:
    variants = {"w8": exported("bert").manifest.variants["fp32"]}
    assert "There is no fp32 file" in card(variants=variants)[1]


def test_renewing_the_export_section_leaves_what_the_owner_wrote() -> None:
    manifest = exported("bert").manifest
    _, text = card()
    mine = text.replace("## Prompts", "## My own words\n\nKeep me.\n\n## Prompts")
    changed = manifest.model_copy(update={"dimensions_allowed": [32, 16]})
    renewed = with_export_section(mine, changed, PARITY)
    assert "Keep me." in renewed
    assert renewed.count("## Export\n") == 1
    assert "cut to 16 numbers" in renewed
    assert renewed.endswith(mine[mine.index("## Licence") :])


def test_a_prompt_with_quotes_becomes_a_valid_python_string_in_every_snippet() -> None:
    query = 'say "it\'s" \\ so:\n'
    text = card(prompts=exported("bert").manifest.prompts.model_copy(update={"query": query}))[1]
    for part in text.split("```python\n")[1:]:
        compile(part.split("```")[0], "snippet", "exec")
    assert json.dumps(query) + ' + "your question"' in text


def test_the_card_lists_the_programs_that_were_run_with_their_versions() -> None:
    cells = [cell for cell in read_results()["cells"] if cell["results"]]
    assert cells, "make interop writes training/stm_training/export/interop.json"
    for cell in cells:
        for kind in ("encoder", "causal decoder", "bidirectional decoder"):
            stated = interop_note(kind).split("**Not** in")
            name = f"{cell['program']} ("
            assert (name in stated[0]) >= cell["results"][kind]["agrees"]
            for distribution, version in cell["versions"].items():
                assert f"{distribution} {version}" in "".join(stated)
    assert interop_note("encoder") in card()[1]
