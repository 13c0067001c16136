"""The doctor finds what was broken, says so in plain words, and names the command that mends it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stm_retriever import Document, Embedder, Retriever
from stm_training.cli import main
from stm_training.export.doctor import diagnose
from stm_training.export.doctor_machine import check_machine
from stm_training.export.findings import Finding
from tests.exported_models import exported, exported_with_variants
from tests.tiny_retriever import make_tiny_retriever


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a decoder's retriever folder, to be broken."""
    return Path(shutil.copytree(exported("qwen3").folder, tmp_path / "retriever"))


def problems(folder: Path) -> list[Finding]:
    found = [finding for finding in diagnose(folder) if finding.level == "problem"]
    assert all(finding.remedy for finding in found), "every problem names what mends it"
    return found


def only_problem(folder: Path) -> str:
    found = problems(folder)
    assert len(found) == 1, found
    return found[0].what


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")


def damage(path: Path) -> None:
    """Flips one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_fresh_folder_is_fine_and_the_command_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "is fine" in output
    for subject in (
        "fingerprint",
        "weights",
        "tokenizer.json",
        "prompts",
        "end-of-text",
        "vectors",
        "providers",
    ):
        assert subject in output
    assert main(["doctor", "--quiet", str(folder)]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_problems_give_exit_status_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(folder / "model.safetensors")
    assert main(["doctor", str(folder)]) == 1
    output = capsys.readouterr().out
    assert "1 problem(s)" in output
    assert "stm-train export" in output


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_a_folder_that_is_none_of_ours_is_a_problem(tmp_path: Path, missing: str) -> None:
    (tmp_path / "empty").mkdir()
    assert "retriever" in only_problem(tmp_path / missing)


def test_a_broken_manifest_is_a_problem(folder: Path) -> None:
    (folder / "stm_manifest.json").write_text("{", encoding="utf-8")
    assert "not readable JSON" in only_problem(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "onnx/model.onnx"])
def test_a_flipped_bit_in_the_weights_is_seen(folder: Path, name: str) -> None:
    damage(folder / name)
    assert any("sha256" in finding.what for finding in problems(folder))


def test_a_missing_onnx_file_is_named(folder: Path) -> None:
    (folder / "onnx" / "model.onnx").unlink()
    assert any("model.onnx is missing" in finding.what for finding in problems(folder))


def test_a_truncated_onnx_file_is_a_problem_and_no_crash(folder: Path) -> None:
    path = folder / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    assert len(problems(folder)) == 2  # the hash, and that it cannot be loaded


def test_a_tokenizer_that_lost_its_end_of_text_token_is_named(folder: Path) -> None:
    edit(folder / "tokenizer.json", post_processor=None)
    found = " ".join(finding.what for finding in problems(folder))
    assert "does not append the end-of-text token" in found


def test_a_tokenizer_of_another_model_is_named(folder: Path) -> None:
    shutil.copy(exported("llama").folder / "tokenizer.json", folder)
    found = " ".join(finding.what for finding in problems(folder))
    assert "tokens: the query" in found


def test_a_prompt_changed_for_other_programs_alone_is_seen(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", prompts={"query": "other: ", "document": "A text. "})
    assert "prompts in config_sentence_transformers.json" in only_problem(folder)


def test_a_default_prompt_that_documents_would_get_too_is_seen(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", default_prompt_name="query")
    assert "default_prompt_name" in only_problem(folder)


def test_another_pooling_for_other_programs_is_seen(folder: Path) -> None:
    edit(folder / "1_Pooling" / "config.json", pooling_mode_lasttoken=False, pooling_mode_mean_tokens=True)
    assert "pooling in 1_Pooling" in only_problem(folder)


def test_an_edited_manifest_no_longer_fits_its_fingerprint(folder: Path) -> None:
    edit(folder / "stm_manifest.json", max_length=64)
    assert any("manifest was edited" in finding.what for finding in problems(folder))


def test_vectors_other_than_those_recorded_are_seen_with_the_difference(folder: Path) -> None:
    manifest = json.loads((folder / "stm_manifest.json").read_text("utf-8"))
    goldens = manifest["vector_goldens"]
    goldens[0]["vector"], goldens[1]["vector"] = goldens[1]["vector"], goldens[0]["vector"]
    edit(folder / "stm_manifest.json", vector_goldens=goldens)
    assert "vectors of fp32: the recorded texts give others" in only_problem(folder)


# Variants ---------------------------------------------------------------------------------------------------


@pytest.fixture
def variants(tmp_path: Path) -> Path:
    """A copy of an encoder's folder with its smaller variants, to be broken."""
    return Path(shutil.copytree(exported_with_variants("bert").folder, tmp_path / "variants"))


def warnings(folder: Path) -> str:
    return " ".join(finding.what for finding in diagnose(folder) if finding.level == "warning")


def edit_variant(folder: Path, name: str, **changes: Any) -> None:
    content = json.loads((folder / "stm_manifest.json").read_text("utf-8"))
    content["variants"][name].update(changes)
    edit(folder / "stm_manifest.json", variants=content["variants"])


def test_each_variant_s_vectors_are_checked(variants: Path) -> None:
    found = " ".join(finding.what for finding in diagnose(variants))
    assert problems(variants) == []
    for name in ("fp32", "fp16", "w8", "int8"):
        assert f"vectors of {name}: 6 recorded texts give theirs" in found
    assert "parity.json: has the numbers of fp32, fp16, w8, int8" in found


def test_a_flipped_bit_in_a_variant_s_file_names_the_variant(variants: Path) -> None:
    damage(variants / "onnx" / "model_w8.onnx")
    assert any("variant w8" in finding.what and "sha256" in finding.what for finding in problems(variants))


def test_a_truncated_variant_is_named_and_the_others_are_still_checked(variants: Path) -> None:
    path = variants / "onnx" / "model_int8.onnx"
    path.write_bytes(path.read_bytes()[:5000])
    found = problems(variants)
    assert all("int8" in finding.what for finding in found)
    assert len(found) == 2  # the hash, and that it cannot be loaded
    assert any("vectors of w8: 6 recorded" in finding.what for finding in diagnose(variants))


def test_a_missing_data_file_of_a_variant_is_named(variants: Path) -> None:
    edit_variant(variants, "w8", external_data=["onnx/model_w8.onnx_data"])
    assert any("variant w8: model_w8.onnx_data is missing" in finding.what for finding in problems(variants))


def swap_goldens(folder: Path, name: str, **changes: Any) -> None:
    content = json.loads((folder / "stm_manifest.json").read_text("utf-8"))
    goldens = content["variants"][name]["goldens"]
    goldens[0]["vector"], goldens[1]["vector"] = goldens[1]["vector"], goldens[0]["vector"]
    edit_variant(folder, name, goldens=goldens, **changes)


def test_other_vectors_than_a_variant_s_own_are_seen(variants: Path) -> None:
    swap_goldens(variants, "w8")
    (found,) = problems(variants)
    assert "w8" in found.what


def test_an_int8_file_on_a_cpu_that_rounds_otherwise_leads_to_w8(variants: Path) -> None:
    swap_goldens(variants, "int8", cpu_features=["avx_of_another_kind"])
    (found,) = problems(variants)
    assert "int8" in found.what
    assert "w8" in found.what + found.remedy


def test_a_variant_without_recorded_vectors_cannot_be_judged(variants: Path) -> None:
    edit_variant(variants, "int8", goldens=[])
    assert problems(variants) == []
    assert "variant int8: no vectors were recorded" in warnings(variants)


def test_missing_or_broken_numbers_of_the_parity_gate_are_told(variants: Path) -> None:
    path = variants / "onnx" / "parity.json"
    parity = json.loads(path.read_text("utf-8"))
    del parity["w8"]
    path.write_text(json.dumps(parity), encoding="utf-8")
    assert "no numbers for w8" in warnings(variants)
    path.unlink()
    assert "parity.json is missing" in warnings(variants)
    path.write_text("[1", encoding="utf-8")
    assert "parity.json is not readable" in only_problem(variants)


def test_a_folder_without_fp32_gets_a_warning_about_what_follows(variants: Path) -> None:
    content = json.loads((variants / "stm_manifest.json").read_text("utf-8"))
    del content["variants"]["fp32"]
    edit(variants / "stm_manifest.json", variants=content["variants"])
    (variants / "onnx" / "model.onnx").unlink()
    assert problems(variants) == []
    assert "written without fp32" in warnings(variants)


def test_a_copy_for_serving_alone_is_fine_with_a_warning(folder: Path) -> None:
    for path in list(folder.iterdir()):
        if path.name not in {"onnx", "tokenizer.json", "stm_manifest.json"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert problems(folder) == []
    assert any("enough to serve" in finding.what for finding in diagnose(folder))


@pytest.mark.slow
def test_an_unmasked_decoder_is_told_to_be_onnx_only() -> None:
    found = diagnose(exported("qwen3", "bidirectional").folder)
    assert any(finding.level == "warning" and "ONNX only" in finding.what for finding in found)
    assert not any("ONNX only" in finding.what for finding in diagnose(exported("bert").folder))


# Index folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of three documents beside its model, both to be broken."""
    model = make_tiny_retriever(tmp_path / "model")
    with Retriever.create(tmp_path / "index", embedder=Embedder.load(model, threads=1)) as retriever:
        retriever.add([Document(id=str(number), text=f"red apple {number}") for number in range(3)])
    return tmp_path / "index"


def test_a_fresh_index_is_fine_and_stays_as_it_is(index: Path) -> None:
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    assert main(["doctor", str(index)]) == 0
    after = {path.name: path.read_bytes() for path in index.iterdir()}
    assert {name: after[name] for name in before} == before
    with Retriever.open(index) as retriever:
        assert retriever.count() == 3


def test_an_index_whose_model_was_replaced_names_both(index: Path) -> None:
    shutil.rmtree(index.parent / "model")
    make_tiny_retriever(index.parent / "model", seed=1)
    what = only_problem(index)
    assert "'tiny-0'" in what
    assert "'tiny-1'" in what


def test_an_index_whose_model_is_gone_gets_a_warning(index: Path) -> None:
    (index.parent / "model").rename(index.parent / "elsewhere")
    assert problems(index) == []
    assert any(
        finding.level == "warning" and "not at" in finding.what and finding.remedy
        for finding in diagnose(index)
    )


def test_a_damaged_snapshot_is_a_warning_as_it_is_rebuilt(index: Path) -> None:
    damage(next(index.glob("vectors-*.faiss")))
    assert problems(index) == []
    assert any("snapshot" in finding.what for finding in diagnose(index) if finding.level == "warning")


@pytest.mark.parametrize("content", [None, b"this is no database, whatever its name says" * 200])
def test_lost_documents_are_a_problem(index: Path, content: bytes | None) -> None:
    store = index / "documents.sqlite"
    store.unlink() if content is None else store.write_bytes(content)
    assert "documents.sqlite" in only_problem(index)


# The installation -------------------------------------------------------------------------------------------


def test_two_wheels_that_own_one_import_name_are_a_problem_with_the_command_that_mends_it() -> None:
    there = {
        "onnxruntime": "1.31.1",
        "onnxruntime-gpu": "1.31.1",
        "faiss-cpu": "1.15.1",
        "faiss-gpu": "1.15.1",
    }
    found = [finding for finding in check_machine(there.get) if finding.level == "problem"]
    assert [finding.what.split(" are ")[0] for finding in found] == [
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1",
        "faiss-cpu 1.15.1 and faiss-gpu 1.15.1",
    ]
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in found[0].remedy


def test_a_missing_runtime_names_the_extra() -> None:
    found = [finding for finding in check_machine(lambda _: None) if finding.level == "problem"]
    assert [finding.remedy for finding in found] == ["pip install 'stm-retriever[cpu]'"] * 2


def test_the_doctor_works_without_torch_and_transformers() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'yaml', 'onnx'): sys.modules[name] = None\n"
        "from stm_training.cli import main\n"
        "sys.exit(main(['doctor', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported("qwen3").folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
