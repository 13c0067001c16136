"""Smaller ONNX files are made from fp32, judged before anything is written, and named in the manifest."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stm_retriever import Embedder
from stm_retriever.errors import ConfigError, DataError, ExportParityError, ModelFolderError
from stm_retriever.folder import Manifest, read_manifest, write_manifest
from stm_retriever.onnx_session import open_session
from stm_training.cli import main
from stm_training.data.records import Passage
from stm_training.export import quantize
from stm_training.export.add_variants import add_variants
from stm_training.export.dev_quality import DevQuality, read_dev
from stm_training.export.half import to_half
from stm_training.export.quantize import write_variant
from stm_training.export.variant_kinds import KINDS, VARIANTS, check_variants
from stm_training.export.variant_parity import DevChange, VariantReport
from stm_training.export.variants import checked_dimensions
from stm_training.pipeline.collections import Problem
from tests.exported_models import TEXTS, exported, exported_with_variants

ADDED = ("fp16", "w8", "int8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of an encoder's folder with fp32 alone, to be added to."""
    return Path(shutil.copytree(exported("bert").folder, tmp_path / "retriever"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def weights_of(path: Path) -> dict[str, Any]:
    model = onnx.load(path)
    return {tensor.name: tensor for tensor in model.graph.initializer}


# What the files are -----------------------------------------------------------------------------------------


def test_each_variant_is_a_file_of_its_conventional_name_and_smaller_than_fp32() -> None:
    model = exported_with_variants("bert")
    sizes = {
        name: (model.folder / variant.file).stat().st_size
        for name, variant in model.manifest.variants.items()
    }
    names = {name: variant.file for name, variant in model.manifest.variants.items()}
    assert names == {name: KINDS[name].file for name in ("fp32", *ADDED)}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["w8"] < 0.4 * sizes["fp32"], "a tiny model is mostly graph; a real one is a quarter"
    assert sizes["int8"] < 0.5 * sizes["fp32"]


def test_8_bit_files_hold_no_float_matrix_and_their_embedding_rows_have_a_scale_each() -> None:
    folder = exported_with_variants("bert").folder
    for name in ("w8", "int8"):
        weights = weights_of(folder / KINDS[name].file)
        matrices = [
            tensor.name
            for tensor in weights.values()
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and min(tensor.dims) > 8
        ]
        assert matrices == [], name
        table = "model.embeddings.word_embeddings.weight"
        codes, scales = (numpy_helper.to_array(weights[f"{table}_{kind}"]) for kind in ("int8", "scale"))
        assert codes.dtype == np.int8
        assert scales.shape == (codes.shape[0], 1)
        rows = numpy_helper.to_array(weights_of(folder / "onnx" / "model.onnx")[table])
        assert np.abs(codes * scales - rows).max() <= np.abs(rows).max() / 127


def test_weights_above_the_limit_go_into_a_data_file_that_the_manifest_names(folder: Path) -> None:
    manifest = add_variants(folder, ("w8", "fp16", "int8"), external_data_above=1000)
    for name in ADDED:
        variant = manifest.variants[name]
        assert variant.external_data == [f"{variant.file}_data"]
        assert (folder / variant.external_data[0]).is_file()
        found = Embedder.load(folder, variant=name, threads=1).encode_query(TEXTS)
        one_file = Embedder.load(exported_with_variants("bert").folder, variant=name, threads=1)
        assert np.abs(found - one_file.encode_query(TEXTS)).max() <= 1e-6


def test_quantising_says_nothing_and_leaves_logging_as_it_was(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), root.manager.disable)
    write_variant(KINDS["w8"], folder / "onnx" / "model.onnx", folder / "w8.onnx")
    write_variant(KINDS["int8"], folder / "onnx" / "model.onnx", folder / "int8.onnx")
    assert (root.level, list(root.handlers), root.manager.disable) == before
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_the_same_model_gives_the_same_bytes(folder: Path) -> None:
    source = folder / "onnx" / "model.onnx"
    for name in (*ADDED, "w4"):
        first, second = (
            write_variant(KINDS[name], source, folder / f"{n}.onnx")[0].read_bytes() for n in (1, 2)
        )
        assert first == second, name


def small_graph(nodes: list[Any], weights: dict[str, np.ndarray]) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [
            helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["n", 4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_half_keeps_squares_and_angles_that_float16_cannot_hold(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "thousand"], ["large"]),
        helper.make_node("Pow", ["large", "two"], ["squares"]),  # a million: beyond float16
        helper.make_node("ReduceMean", ["squares", "axis"], ["mean"], keepdims=1),
        helper.make_node("Add", ["mean", "epsilon"], ["safe"]),
        helper.make_node("Sqrt", ["safe"], ["root"]),
        helper.make_node("Div", ["large", "root"], ["normed"]),
        helper.make_node("Mul", ["x", "position"], ["angle"]),
        helper.make_node("Cos", ["angle"], ["cosine"]),
        helper.make_node("Add", ["normed", "cosine"], ["last_hidden_state"]),
        helper.make_node("Identity", ["last_hidden_state"], ["sentence_embedding"]),
    ]
    weights = {
        "thousand": np.float32(1000),
        "two": np.float32(2),
        "axis": np.asarray([1], np.int64),
        "epsilon": np.float32(1e-6),
        "position": np.float32(4099.0),  # float16 has steps of 4 here
    }
    x = np.asarray([[1.0, 0.5, -0.25, 2.0]], np.float32)
    outputs = []
    for name, change in (("full.onnx", lambda model: model), ("half.onnx", to_half)):
        onnx.save(
            change(small_graph(nodes, {key: np.asarray(value) for key, value in weights.items()})),
            tmp_path / name,
        )
        outputs.append(open_session(tmp_path / name, threads=1).run(None, {"x": x})[0])
    assert np.abs(outputs[0] - outputs[1]).max() <= 2e-3
    assert outputs[1].dtype == np.float32


# What they give ---------------------------------------------------------------------------------------------


def test_goldens_are_what_each_lossy_variant_gives_here_and_now() -> None:
    model = exported_with_variants("bert")
    assert model.manifest.variants["fp32"].goldens == []
    assert model.manifest.goldens_of("fp32") == model.manifest.vector_goldens
    for name in ADDED:
        variant = model.manifest.variants[name]
        embedder = Embedder.load(model.folder, variant=name, threads=1)
        assert {golden.role for golden in variant.goldens} == {"query", "document"}
        for golden in variant.goldens:
            encode = embedder.encode_query if golden.role == "query" else embedder.encode_document
            assert np.abs(encode([golden.text])[0] - np.asarray(golden.vector)).max() <= 1e-5
        assert variant.precision
        assert model.manifest.features_of(name) == variant.cpu_features != []


def test_vectors_do_not_depend_on_the_batch_in_any_variant() -> None:
    model = exported_with_variants("qwen3")
    for name in ("fp32", *ADDED):
        embedder = Embedder.load(model.folder, variant=name, threads=1)
        together = embedder.encode_document(TEXTS)
        alone = np.concatenate([embedder.encode_document([text]) for text in TEXTS])
        assert np.abs(together - alone).max() <= (1e-3 if name == "fp16" else 1e-5), name


def test_the_numbers_of_each_variant_are_in_parity_json() -> None:
    model = exported_with_variants("qwen3")
    parity = json.loads((model.folder / "onnx" / "parity.json").read_text("utf-8"))
    assert set(parity) == {"fp32", *ADDED}
    for name in ADDED:
        report = parity[name]
        shapes = {(case["batch"], case["length"], case["padding"]) for case in report["cases"]}
        assert {(1, 1, "none"), (1, 96, "none"), (3, 33, "none")} <= shapes
        assert ((3, 33, "left") in shapes) == (name != "int8"), "int8 is never run in batches"
        assert (report["batch_spread"] is None) == (name == "int8")
        assert KINDS[name].min_cosine <= report["min_cosine"] < 1
        assert report["bytes"] == (model.folder / KINDS[name].file).stat().st_size
        assert report["dev"] == []
    assert parity["w8"]["batch_spread"] <= 1e-5


# Limits -----------------------------------------------------------------------------------------------------


def test_a_variant_that_misses_its_limit_is_not_written_and_the_error_says_by_how_much(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder.parent)
    monkeypatch.setitem(KINDS, "int8", _with(KINDS["int8"], min_cosine=1.01))
    with pytest.raises(ExportParityError) as caught:
        add_variants(folder, ("w8", "int8"))
    assert "int8: a cosine of 0.9" in str(caught.value)
    assert "missed by 0.01" in str(caught.value)
    assert "--variants fp32,w8" in str(caught.value)
    assert contents(folder.parent) == before, "the variant that passed is not added either"


def _with(kind: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(kind, **changes)


def report(name: str, *, cosine: float = 0.999, spread: float = 0.0, lost: float = 0.0) -> VariantReport:
    from stm_training.export.parity import ParityCase

    case = ParityCase("x", 1, 1, "none", 0.1, cosine)
    change = DevChange("handbook", 50, 0.5, 0.5 - lost / 100)
    return VariantReport(KINDS[name], size=1, longest_checked=9, cases=[case], spread=spread, dev=[change])


def test_a_loss_of_ndcg_over_the_limit_is_a_miss_with_the_points() -> None:
    assert report("w8", lost=0.49).misses() == []
    assert report("w8", lost=-3).misses() == [], "a gain is none"
    (miss,) = report("w8", lost=0.75).misses()
    assert "0.75 points of nDCG@10 lost on 'handbook', 50.00 to 49.25 over 50 queries" in miss
    assert "limit 0.5, missed by 0.25" in miss
    assert report("int8", lost=0.75).misses() == []


def test_vectors_that_move_with_the_batch_and_vectors_that_are_not_numbers_are_misses() -> None:
    assert "move by 0.01" in report("w8", spread=0.01).misses()[0]
    assert "cosine of nan" in report("w8", cosine=float("nan")).misses()[0]


def test_development_queries_are_answered_by_the_variant_itself() -> None:
    model = exported_with_variants("bert")
    passages = [Passage(str(number), text) for number, text in enumerate(TEXTS)]
    queries = {str(number): text for number, text in enumerate(TEXTS[:6])}
    problem = Problem("mine", passages, queries, {name: {name: 1} for name in queries})
    quality = DevQuality([problem], Embedder.load(model.folder, threads=1))
    (same,) = quality.changes(Embedder.load(model.folder, threads=1))
    assert (same.queries, same.points) == (6, 0)
    (other,) = quality.changes(Embedder.load(exported("xlm_roberta").folder, threads=1))
    assert other.fp32 == same.fp32
    assert other.variant != same.variant


def test_development_queries_come_from_a_beir_folder_cut_to_size(tmp_path: Path) -> None:
    rows = [json.dumps({"_id": str(n), "text": f"text {n}"}) for n in range(40)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "qrels").mkdir()
    judged = ["query-id\tcorpus-id\tscore", *(f"{n}\t{n + 20}\t1" for n in range(10))]
    (tmp_path / "qrels" / "dev.tsv").write_text("\n".join(judged) + "\n", encoding="utf-8")
    problem = read_dev(tmp_path, max_queries=4, max_passages=7)
    assert list(problem.queries) == ["0", "1", "2", "3"]
    assert len(problem.passages) == 7
    assert {"20", "21", "22", "23"} <= {passage.id for passage in problem.passages}
    with pytest.raises(DataError, match="test"):
        read_dev(tmp_path, "test")


# Adding to a folder -----------------------------------------------------------------------------------------


def test_the_command_adds_a_variant_and_leaves_the_rest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    command = ["export", str(folder), "--out", str(folder), "--variants"]
    assert main([*command, "w8"]) == 0
    output = capsys.readouterr().out
    assert "added w8" in output
    assert "cosine to fp32 >= 0.9" in output
    after = contents(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"onnx/model_w8.onnx", "onnx/parity.json", "README.md", "stm_manifest.json"}
    assert read_manifest(folder).fingerprint == exported("bert").manifest.fingerprint
    assert "| `w8` |" in after["README.md"].decode()
    assert main([*command, "fp32,w8"]) == 0
    assert "has fp32, w8 already" in capsys.readouterr().out
    assert contents(folder) == after
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_options_that_would_make_another_model_are_refused_when_adding(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--variants", "w8", "--max-length", "9"]
    assert main(["export", str(folder), "--out", str(folder), *arguments]) == 2
    assert "--max-length would make another model" in capsys.readouterr().err


def test_the_message_about_a_missing_variant_names_the_command_that_adds_it(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Embedder.load(folder, variant="w8")
    command = str(caught.value).split("stm-train ")[1].split()
    assert main(command) == 0
    assert Embedder.load(folder, variant="w8", threads=1).variant == "w8"


def test_nothing_is_made_from_a_damaged_fp32_file(folder: Path) -> None:
    path = folder / "onnx" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFolderError, match="sha256"):
        add_variants(folder, ("w8",))


def test_a_crash_while_adding_leaves_the_folder_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder.parent)

    def crash(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("stm_training.export.add_variants._move_in", crash)
    with pytest.raises(OSError, match="no space"):
        add_variants(folder, ("w8",))
    assert contents(folder.parent) == before


def test_without_fp32_no_variant_can_be_added(folder: Path) -> None:
    manifest = read_manifest(exported_with_variants("bert").folder)
    w8_alone = manifest.model_copy(update={"variants": {"w8": manifest.variants["w8"]}})
    write_manifest(folder, w8_alone)
    with pytest.raises(ConfigError, match="written without fp32"):
        add_variants(folder, ("int8",))


def test_a_folder_can_be_written_without_fp32_and_the_command_says_what_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    arguments = ["--variants", "w8", "--dimensions", "16,8"]
    assert main(["export", str(exported("bert").folder), "--out", str(out), *arguments]) == 0
    assert "without fp32" in capsys.readouterr().out
    assert sorted(path.name for path in (out / "onnx").iterdir()) == ["model_w8.onnx", "parity.json"]
    manifest = read_manifest(out)
    assert list(manifest.variants) == ["w8"]
    assert manifest.dimensions_allowed == [32, 16, 8]
    assert Embedder.load(out, variant="w8", threads=1).encode_query(["a text"]).shape == (1, 32)
    assert "no fp32 file" in (out / "README.md").read_text("utf-8")


# Names and lengths ------------------------------------------------------------------------------------------


def test_a_variant_that_is_none_is_refused_with_the_list_of_those_there_are() -> None:
    for wrong in (["q4"], [], "w8"):
        with pytest.raises(ConfigError, match=", ".join(VARIANTS)):
            check_variants(wrong)  # type: ignore[arg-type]
    check_variants(["fp32", "w4"])


def test_lengths_beyond_the_vector_are_refused_and_the_full_one_comes_first() -> None:
    assert checked_dimensions([8, 16], 32) == [32, 16, 8]
    assert checked_dimensions([], 32) == [32]
    for wrong in (0, 33):
        with pytest.raises(ConfigError, match=f"cut to {wrong}"):
            checked_dimensions([wrong], 32)


def test_a_manifest_of_an_earlier_version_still_loads() -> None:
    content = json.loads(exported("bert").manifest.model_dump_json())
    for variant in content["variants"].values():
        for name in ("goldens", "precision", "cpu_features"):
            del variant[name]
    old = Manifest.model_validate(content)
    assert old.variants["fp32"].goldens == []
    assert old.features_of("fp32") == old.cpu_features


def test_blocks_fit_the_shortest_input_of_a_product() -> None:
    weights = {"w": np.zeros((96, 4), np.float32), "v": np.zeros((128, 4), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}_out"]) for name in weights]
    assert quantize._block_size(small_graph(nodes, weights)) == 32
    del weights["w"]
    assert quantize._block_size(small_graph(nodes[1:], weights)) == 64
