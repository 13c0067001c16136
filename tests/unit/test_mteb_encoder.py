"""A retriever folder as mteb sees it: prompts by role, metadata, and mteb's figures beside ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stm_retriever import Embedder
from stm_retriever.errors import ConfigError, DataError
from stm_retriever.folder import Prompts, read_manifest, write_manifest
from stm_training.data.reading import read_beir
from stm_training.data.records import Collection, Passage
from stm_training.evaluate.metrics import score_run
from stm_training.evaluate.systems import run_encoder
from tests.tiny_retriever import make_tiny_retriever
from tests.tiny_run import write_tiny_collection

mteb = pytest.importorskip("mteb", reason="needs the extra eval: mteb")

from mteb.models import EncoderProtocol  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from stm_training.mteb.encoder import StmEncoder, content_revision, model_meta, with_prompts  # noqa: E402
from stm_training.mteb.instructions import PAPER_INSTRUCTIONS, paper_query_prompts  # noqa: E402
from stm_training.mteb.local_data import fill_from_folder, folder_of, task_from_collection  # noqa: E402
from stm_training.mteb.names import training_datasets  # noqa: E402
from stm_training.mteb.run import Planned, paper_means, plan, run_tasks  # noqa: E402
from stm_training.mteb.tasks import PAPER_TASKS, known_tasks  # noqa: E402


@pytest.fixture(scope="module")
def health(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collections") / "health"
    write_tiny_collection(folder, ("asthma", "gout", "copd", "angina", "anaemia"), splits={"test": None})
    return folder


def in_memory(collection: Collection) -> Planned:
    task = task_from_collection(collection)
    return Planned(task.metadata.name, task, None)


def encoded(encoder: StmEncoder, texts: list[str], role: PromptType | None) -> np.ndarray:
    task = known_tasks(["SciFact"])[0][0].metadata
    half = len(texts) // 2
    batches: Iterator[dict[str, list[str]]] = iter([{"text": texts[:half]}, {"text": texts[half:]}])
    return encoder.encode(batches, task_metadata=task, hf_split="test", hf_subset="default", prompt_type=role)


def test_queries_and_documents_get_the_folders_own_prompts(tiny_embedder: Embedder) -> None:
    encoder = StmEncoder(tiny_embedder)
    assert isinstance(encoder, EncoderProtocol)
    texts = ["red apple", "what is cough", "heart and blood"]
    query, document, neither = (encoded(encoder, texts, role) for role in (*PromptType, None))
    np.testing.assert_array_equal(query, tiny_embedder.encode_query(texts))
    np.testing.assert_array_equal(document, tiny_embedder.encode_document(texts))
    np.testing.assert_array_equal(neither, document)
    assert not np.allclose(query, document)


def test_an_empty_text_is_similar_to_nothing(tiny_embedder: Embedder) -> None:
    encoder = StmEncoder(tiny_embedder)
    vectors = encoded(encoder, ["red apple", " ", "cough"], PromptType.document)
    assert not vectors[1].any()
    np.testing.assert_array_equal(vectors[[0, 2]], tiny_embedder.encode_document(["red apple", "cough"]))
    assert encoder.similarity(vectors, vectors)[1].tolist() == [0, 0, 0]


def test_instructions_by_task_replace_the_folders_prompt(
    tiny_onnx_retriever: Path, tiny_embedder: Embedder
) -> None:
    encoder = StmEncoder(
        tiny_embedder,
        query_prompts={"SciFact": "red apple "},
        document_prompt="green pear ",
        instructions="paper",
    )
    direct = StmEncoder(with_prompts(tiny_embedder, Prompts()))
    texts = ["what is cough", "heart"]
    query, document = (encoded(encoder, texts, role) for role in PromptType)
    np.testing.assert_allclose(
        query, encoded(direct, [f"red apple {text}" for text in texts], PromptType.query), atol=1e-6
    )
    np.testing.assert_allclose(
        document, encoded(direct, [f"green pear {text}" for text in texts], PromptType.document), atol=1e-6
    )
    assert read_manifest(tiny_onnx_retriever).prompts == tiny_embedder.prompts, "nothing is written"


def test_the_metadata_says_what_the_manifest_says(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model", name="my retriever")
    manifest = read_manifest(folder)
    changed = manifest.model_copy(
        update={
            "dimensions_allowed": [8, 32],
            "licences": ["Apache-2.0"],
            "base": {"name": "MiniLM", "hub_name": "sentence-transformers/all-MiniLM-L6-v2"},
            "data": [
                {"name": "scifact", "kind": "corpus"},
                {"name": "our-documents", "kind": "corpus"},
                {"name": "some-llm", "kind": "training pairs"},
            ],
        }
    )
    write_manifest(folder, changed)
    meta = model_meta(Embedder.load(folder, threads=1))
    assert meta.name == "stm-retriever/my-retriever"
    assert meta.training_datasets == {"SciFact", "our-documents"}
    assert (meta.max_tokens, meta.embed_dim, meta.license) == (64, 32, "apache-2.0")
    assert meta.adapted_from == "sentence-transformers/all-MiniLM-L6-v2"
    assert meta.use_instructions is True
    assert meta.experiment_kwargs is None
    assert type(meta).model_validate(meta.model_dump()) == meta, "mteb reads it back from its files"
    cut = model_meta(Embedder.load(folder, threads=1, dimension=8), instructions="paper")
    assert cut.embed_dim == 8
    assert cut.experiment_kwargs == {"dimension": 8, "instructions": "paper"}
    assert cut.revision == meta.revision


def test_the_revision_follows_the_contents_and_nothing_else(tmp_path: Path) -> None:
    first = make_tiny_retriever(tmp_path / "first", name="same")
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    (copy / "README.md").write_text("A card.", encoding="utf-8")
    other = make_tiny_retriever(tmp_path / "other", name="same", seed=1)
    revisions = [content_revision(folder, read_manifest(folder), "fp32") for folder in (first, copy, other)]
    assert revisions[0] == revisions[1] != revisions[2]
    assert len(revisions[0]) == 40


def test_data_that_nobody_declared_is_not_declared_to_mteb() -> None:
    assert training_datasets([]) is None
    assert training_datasets([{"name": "labelled", "kind": "training pairs"}]) == set()
    assert training_datasets([{"name": "nfcorpus"}, {"name": "x", "hub_name": "mteb/trec-covid"}]) == {
        "NFCorpus",
        "TRECCOVID",
    }


def test_mteb_gives_the_same_ndcg_as_we_do_on_a_task_in_memory(
    tmp_path: Path, health: Path, tiny_embedder: Embedder
) -> None:
    collection = read_beir(health, "test")
    graded = {name: {**grades, "gout-care": 2} for name, grades in collection.qrels.items()}
    collection = Collection("graded-health", collection.corpus, collection.queries, graded)
    (found,) = run_tasks(StmEncoder(tiny_embedder), [in_memory(collection)], tmp_path)
    ours = score_run(run_encoder(tiny_embedder, collection), collection.qrels, k=10)
    mean = float(np.mean(list(ours["ndcg@10"].values())))
    assert 0.05 < mean < 0.95, "a figure that could be wrong"
    assert found.score == pytest.approx(mean, abs=1e-4)
    (file,) = (tmp_path / "results").rglob("graded-health.json")
    written = json.loads(file.read_text("utf-8"))
    assert written["scores"]["test"][0]["ndcg_at_10"] == pytest.approx(found.score)
    assert file.parent.name == StmEncoder(tiny_embedder).mteb_model_meta.revision


def test_a_query_that_is_a_document_does_not_find_itself(tmp_path: Path, tiny_embedder: Embedder) -> None:
    corpus = {
        name: Passage(name, text)
        for name, text in {"a": "red apple tree", "b": "red apple", "c": "cough and fever"}.items()
    }
    collection = Collection("arguing", corpus, {"a": "red apple tree"}, {"a": {"b": 1}})
    (found,) = run_tasks(StmEncoder(tiny_embedder), [in_memory(collection)], tmp_path)
    assert found.score == 1.0


def test_a_result_is_used_again_only_for_the_same_model_data_and_dimension(
    tmp_path: Path, health: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_retriever(tmp_path / "model", name="same")
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"dimensions_allowed": [8, 32]}))
    other = make_tiny_retriever(tmp_path / "other", name="same", seed=5)
    calls: list[str] = []
    encode = StmEncoder.encode

    def counting(self: StmEncoder, inputs: object, **kwargs: object) -> np.ndarray:
        calls.append(str(kwargs["prompt_type"]))
        return encode(self, inputs, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(StmEncoder, "encode", counting)
    collection = read_beir(health, "test")

    def score(path: Path, collection: Collection = collection, **options: int) -> tuple[float, bool]:
        calls.clear()
        encoder = StmEncoder(Embedder.load(path, threads=1, **options))  # type: ignore[arg-type]
        (found,) = run_tasks(encoder, [in_memory(collection)], tmp_path / "out")
        return found.score, bool(calls)

    first = score(folder)
    assert first[1] is True
    assert score(folder) == (first[0], False)
    second = score(other)
    assert second[1] is True
    assert second[0] != first[0]
    assert score(folder, dimension=8)[1] is True
    fewer = Collection(
        "health", collection.corpus, collection.queries, dict(list(collection.qrels.items())[:9])
    )
    assert score(folder, fewer)[1] is True, "other data under the same name"


def test_the_paper_has_12_tasks_with_an_instruction_each() -> None:
    tasks, unknown = known_tasks(["stm-paper"])
    assert not unknown
    assert [task.metadata.name for task in tasks] == [one.name for one in PAPER_TASKS]
    assert len(tasks) == 12
    assert set(PAPER_INSTRUCTIONS) == {one.name for one in PAPER_TASKS}
    by_name = {task.metadata.name: task for task in tasks}
    assert (by_name["CUREv1"].hf_subsets, by_name["CUREv1"].eval_splits) == (["en"], ["all"])
    assert by_name["PublicHealthQA"].hf_subsets == ["english"]
    assert [one.group for one in PAPER_TASKS].count("medical") == 7
    assert paper_query_prompts()["SciFact"].endswith("\nQuery: ")


def test_the_medical_benchmark_is_mtebs_own() -> None:
    tasks, _ = known_tasks(["medical"])
    assert {"NFCorpus", "TRECCOVID", "SciFact", "CUREv1"} <= {task.metadata.name for task in tasks}


def test_the_papers_means_need_all_of_their_tasks() -> None:
    scores = {one.name: 0.5 if one.group == "medical" else 0.3 for one in PAPER_TASKS}
    assert paper_means(scores) == {
        "medical": pytest.approx(0.5),
        "general": pytest.approx(0.3),
        "all": pytest.approx((7 * 0.5 + 5 * 0.3) / 12),
    }
    del scores["SciFact"]
    assert paper_means(scores) == {"medical": None, "general": pytest.approx(0.3), "all": None}


def test_local_copies_are_found_by_name_and_what_is_missing_is_told(tmp_path: Path, health: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(health, data / "scifact")
    (one,) = plan(["SciFact"], data)
    assert (one.name, one.folder) == ("SciFact", data / "scifact")
    assert folder_of("SciFact", tmp_path / "nowhere") is None
    with pytest.raises(DataError, match=r"no folder for NFCorpus; there are: scifact"):
        plan(["SciFact", "NFCorpus"], data)
    with pytest.raises(ConfigError, match="no task 'Scifakt'"):
        plan(["Scifakt"], data)
    with pytest.raises(ConfigError, match="Did you mean stm-paper"):
        plan(["stm-papers"], None)


def test_a_copy_of_a_task_in_several_languages_lies_in_folders_of_their_names(
    tmp_path: Path, health: Path
) -> None:
    data = tmp_path / "PublicHealthQA"
    shutil.copytree(health, data / "english")
    (task,), _ = known_tasks(["PublicHealthQA"])
    filled = fill_from_folder(task, data)
    assert set(filled.dataset) == {"english"}
    assert filled.metadata.dataset["revision"].startswith("local-")
    (cure,), _ = known_tasks(["CUREv1"])
    with pytest.raises(DataError, match=r"en[/\\]corpus\.jsonl"):
        fill_from_folder(cure, data)


def test_a_copy_can_only_be_that_of_a_retrieval_task(health: Path) -> None:
    (task,), _ = known_tasks(["MedrxivClusteringP2P.v2"])
    with pytest.raises(ConfigError, match="Clustering"):
        fill_from_folder(task, health)


def test_a_task_that_the_hub_does_not_give_says_how_to_do_without(
    tmp_path: Path, tiny_embedder: Embedder
) -> None:
    with pytest.raises(DataError, match=r"SciFact could not be run from the hub.*--data FOLDER"):
        run_tasks(StmEncoder(tiny_embedder), plan(["SciFact"], None), tmp_path)
