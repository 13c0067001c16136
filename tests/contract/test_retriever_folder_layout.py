"""What lies in a retriever folder, file by file, for the programs that read it without us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from tokenizers import Tokenizer

from stm_retriever.folder import fingerprint, read_manifest, sha256_file
from tests.exported_models import PROMPTS, TEXTS, exported

FAMILIES = ("bert", "qwen3")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_is_the_legacy_one_without_a_key_of_the_new_one(family: str) -> None:
    folder = exported(family).folder
    types = [module["type"].rpartition(".")[2] for module in read(folder, "modules.json")]
    assert types == ["Transformer", "Pooling", "Normalize"]
    assert set(read(folder, "1_Pooling/config.json")) == {
        "word_embedding_dimension",
        "pooling_mode_cls_token",
        "pooling_mode_mean_tokens",
        "pooling_mode_max_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens",
        "pooling_mode_lasttoken",
        "include_prompt",
    }
    assert read(folder, "1_Pooling/config.json")["pooling_mode_lasttoken"] is (family == "qwen3")
    assert read(folder, "sentence_bert_config.json") == {"max_seq_length": 96, "do_lower_case": False}
    settings = read(folder, "config_sentence_transformers.json")
    assert settings["prompts"] == PROMPTS.model_dump()
    assert settings["default_prompt_name"] is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_names_the_bare_model_and_no_path_of_this_machine(family: str) -> None:
    folder = exported(family).folder
    config = read(folder, "config.json")
    assert config["architectures"] == [{"bert": "BertModel", "qwen3": "Qwen3Model"}[family]]
    assert config["dtype"] == "float32"
    source = str(exported(family).source.parent.parent).encode()
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert source not in content, path
            assert b"site-packages" not in content, path


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_file_alone_ends_texts_and_neither_cuts_nor_pads(family: str) -> None:
    model = exported(family)
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    assert tokenizer.truncation is None
    assert tokenizer.padding is None
    settings = read(model.folder, "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_max_length"] == model.manifest.max_length
    assert settings["padding_side"] == "right"
    assert tokenizer.token_to_id(settings["pad_token"]) == model.manifest.pad_token_id
    if family == "qwen3":
        assert tokenizer.token_to_id(settings["eos_token"]) == model.manifest.eos_token_id
        assert {tokenizer.encode(text).ids[-1] for text in TEXTS} == {model.manifest.eos_token_id}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_has_two_inputs_and_first_the_states_then_the_vector(family: str) -> None:
    graph = onnx.load(exported(family).folder / "onnx" / "model.onnx").graph
    assert [item.name for item in graph.input] == ["input_ids", "attention_mask"]
    assert [item.name for item in graph.output] == ["last_hidden_state", "sentence_embedding"]
    shape = [axis.dim_param or axis.dim_value for axis in graph.output[0].type.tensor_type.shape.dim]
    assert shape == ["batch", "sequence", 32]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_manifest_fits_the_files_and_says_what_ran(family: str) -> None:
    folder = exported(family).folder
    manifest = read_manifest(folder)
    assert manifest.weights_sha256 == sha256_file(folder / "model.safetensors")
    assert manifest.tokenizer_sha256 == sha256_file(folder / "tokenizer.json")
    assert manifest.variants["fp32"].sha256 == sha256_file(folder / "onnx" / "model.onnx")
    assert manifest.fingerprint == fingerprint(
        weights_sha256=manifest.weights_sha256,
        tokenizer_sha256=manifest.tokenizer_sha256,
        prompts=PROMPTS,
        pooling="last" if family == "qwen3" else "mean",
        normalize=True,
        attention="causal" if family == "qwen3" else "bidirectional",
        eos_token_id=manifest.eos_token_id,
        max_length=96,
    )
    assert {golden.role for golden in manifest.vector_goldens} == {"query", "document"}
    assert {golden.role for golden in manifest.token_goldens} == {"query", "document"}
    assert max(len(golden.ids) for golden in manifest.token_goldens) == 96, "one golden is cut"
    assert {"stm-retriever", "torch", "transformers", "onnxruntime", "tokenizers"} <= set(manifest.versions)
    assert manifest.cpu_features
    assert manifest.licences == ["apache-2.0"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_has_the_front_matter_the_prompts_and_four_snippets(family: str) -> None:
    card = (exported(family).folder / "README.md").read_text("utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "sentence-transformers"
    assert front["pipeline_tag"] == "sentence-similarity"
    assert front["license"] == "apache-2.0"
    assert f"\n{PROMPTS.query}\n" in card
    assert f"\n{PROMPTS.document}\n" in card
    assert card.count("```python") == 4 + 6, "ours and sentence-transformers; other programs"
    assert "as it was" in card


@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_can_be_read_by_those_who_may_read_the_folder(family: str) -> None:
    modes = {path.stat().st_mode & 0o777 for path in exported(family).folder.rglob("*") if path.is_file()}
    assert len(modes) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_four_snippets_of_the_card_run_and_give_one_vector(family: str) -> None:
    folder = exported(family).folder
    card = (folder / "README.md").read_text("utf-8")
    snippets = [part.split("```")[0] for part in card.split("```python\n")[1:5]]
    vectors = {}
    for number, snippet in enumerate(snippets):
        variables: dict[str, Any] = {}
        exec(snippet.replace("path-or-hub-name", str(folder)), variables)
        document = variables["documents"][0] if "documents" in variables else variables["document"]
        vectors[number] = [np.asarray(variables["query"]).reshape(-1), np.asarray(document).reshape(-1)]
    assert len(vectors) == 4
    for query, document in vectors.values():
        assert np.abs(query - vectors[0][0]).max() <= 1e-5
        assert np.abs(document - vectors[0][1]).max() <= 1e-5
