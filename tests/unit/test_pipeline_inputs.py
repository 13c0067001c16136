"""What a stage reads decides its key: files by their contents, not only by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stm_training.pipeline.run import _files_of
from stm_training.pipeline.stages import stage_key
from stm_training.recipe import parse_recipe


def recipe_with(folder: Path, synthesize: dict[str, Any] | None, **more: Any) -> Any:
    raw = {"name": "x", "base": {"source": "org/model"}, "corpus": "docs", "synthesize": synthesize} | more
    return parse_recipe(raw, folder=folder, origin="test")


def test_recordings_sample_queries_and_templates_are_inputs_also_in_a_mixture(tmp_path: Path) -> None:
    mixture = [{"replay": "a.jsonl", "model": "a"}, {"base_url": "http://127.0.0.1:1/v1", "model": "b"}]
    section = {"llm": {"mixture": mixture}, "sample_queries": "mine.txt", "templates": "prompts"}
    files = _files_of(recipe_with(tmp_path, section))
    assert files == [tmp_path / "a.jsonl", tmp_path / "mine.txt", tmp_path / "prompts"]


def test_without_an_llm_or_without_synthesis_nothing_else_is_read(tmp_path: Path) -> None:
    assert _files_of(recipe_with(tmp_path, {})) == []
    queries = {"path": "q", "train": "train"}
    assert _files_of(recipe_with(tmp_path, None, queries=queries)) == []


def test_a_changed_prompt_template_changes_the_key(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    template = tmp_path / "prompts" / "query_question.txt"
    keys = set()
    for text in ("one", "two"):
        template.write_text(text, encoding="utf-8")
        files = _files_of(recipe_with(tmp_path, {"templates": "prompts"}))
        keys.add(stage_key("pairs", settings=None, inputs=files, code=[]))
    assert len(keys) == 2
