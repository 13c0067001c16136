"""Recipes: every key checked, every path found, every field documented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from stm_retriever.errors import ConfigError
from stm_training import recipe as recipe_module
from stm_training.cli import main
from stm_training.recipe import Recipe, expand_variables, load_recipe
from stm_training.recipe_text import commented_recipe

SMALLEST = {"name": "x", "base": {"source": "org/model"}, "corpus": "docs"}


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_the_smallest_recipe_has_the_papers_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST))
    assert (recipe.train.lora_rank, recipe.train.lora_alpha) == (16, 32)
    assert recipe.train.temperature == 0.05
    assert recipe.merge.weights[0] == 0.0


def test_relative_paths_are_taken_from_the_recipe_s_folder_and_hub_names_are_left_alone(
    tmp_path: Path,
) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST))
    assert recipe.corpus == str(tmp_path / "docs")
    assert recipe.base.source == "org/model"
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert load_recipe(tmp_path / "recipe.yaml").base.source == str(tmp_path / "org" / "model")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"typo": 1}, "typo: unknown key"),
        ({"train": {"steps": 0}}, "train.steps"),
        ({"train": {"stepz": 5}}, "train.stepz: unknown key"),
        ({"ship_if": "always"}, "ship_if"),
        ({"name": "../x"}, "name"),
        ({"experts": {"one": {"kinds": ["question"]}}}, "experts"),
        ({"synthesize": None}, "nothing to train on"),
        ({"synthesize": {"llm": {}}}, "exactly one of base_url"),
        ({"synthesize": {"llm": {"base_url": "http://a", "replay": "b"}}}, "exactly one of base_url"),
        (
            {"queries": {"path": "q", "train": "train", "dev_fraction": 0.6, "test_fraction": 0.5}},
            "leave some",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        load_recipe(write(tmp_path, SMALLEST | change))


def test_a_missing_recipe_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stm-train init"):
        load_recipe(tmp_path / "none.yaml")


def test_no_yaml_and_no_mapping_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("- a", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="found list"):
        load_recipe(tmp_path / "b.yaml")


def test_variables_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STM_DATA", str(tmp_path / "elsewhere"))
    recipe = load_recipe(write(tmp_path, SMALLEST | {"corpus": "${STM_DATA}/scifact"}))
    assert recipe.corpus == str(tmp_path / "elsewhere" / "scifact")


def test_the_shared_folder_above_the_recipe_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STM_DATA", raising=False)
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "project" / "recipes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    recipe = load_recipe(write(tmp_path / "project" / "recipes", SMALLEST | {"corpus": "${STM_DATA}/x"}))
    assert recipe.corpus == str(tmp_path / "shared" / "data" / "x")


def test_an_unknown_variable_says_how_to_set_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="export NOT_SET_ANYWHERE="):
        load_recipe(write(tmp_path, SMALLEST | {"corpus": "${NOT_SET_ANYWHERE}"}))


def test_a_default_stands_where_a_variable_is_not_set_or_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_FOLDER", "/elsewhere")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("STM_DATA", raising=False)
    expanded = {
        "${SOME_FOLDER:-/here}/a": "/elsewhere/a",
        "${NOT_SET_ANYWHERE:-/he re:-$x}/a": "/he re:-$x/a",
        "${EMPTY:-/here}": "/here",
        "${EMPTY}": "",
        "${NOT_SET_ANYWHERE:-}": "",
        "${STM_DATA:-data}/${SOME_FOLDER}": "data//elsewhere",  # a default of the recipe beats our own search
        "{no} $VARIABLE ${x^2}$": "{no} $VARIABLE ${x^2}$",
    }
    assert {text: expand_variables(text) for text in expanded} == expanded


def test_a_variable_without_value_says_that_a_default_would_do() -> None:
    with pytest.raises(ConfigError, match=r"give a default in the recipe: \$\{NOT_SET_ANYWHERE:-"):
        expand_variables("${NOT_SET_ANYWHERE}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("${A:-${B}}", "cannot hold braces or another variable"),
        ("${A:-{b}}", "cannot hold braces"),
        ("${A:-b", "neither"),
        ("${A:b}", r"neither \$\{NAME\} nor \$\{NAME:-default\}"),
        ("${A:?set it}", "neither"),
    ],
)
def test_what_is_no_variable_and_no_default_is_refused(
    text: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A", "set")  # a mistake is one on every machine
    with pytest.raises(ConfigError, match=why):
        expand_variables(text)


def sections() -> list[type[BaseModel]]:
    found = vars(recipe_module).values()
    return [
        item
        for item in found
        if isinstance(item, type) and issubclass(item, BaseModel) and item is not BaseModel
    ]


def test_every_field_that_a_user_can_set_is_documented() -> None:
    for section in sections():
        for name, info in section.model_fields.items():
            nested = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
            assert info.description or nested, f"{section.__name__}.{name} has no description"


def test_the_commented_recipe_loads_and_names_every_key(tmp_path: Path) -> None:
    text = commented_recipe(SMALLEST | {"synthesize": {"llm": {"base_url": "http://127.0.0.1:1/v1"}}})
    for section in sections():
        for name in section.model_fields:
            assert f"{name}:" in text
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.synthesize is not None
    assert recipe.synthesize.llm is not None
    assert recipe.synthesize.llm.base_url == "http://127.0.0.1:1/v1"


def test_a_commented_section_that_is_uncommented_holds_the_defaults(tmp_path: Path) -> None:
    text = commented_recipe(SMALLEST)
    start = text.index("# evaluate:")
    block = text[start : text.index("\n\n", start)]
    uncommented = "\n".join(line.removeprefix("# ") for line in block.splitlines())
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace(block, uncommented), encoding="utf-8")
    assert load_recipe(path).evaluate == Recipe.model_fields["evaluate"].default


def test_what_init_writes_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    assert main(["init", str(path)]) == 0
    assert load_recipe(path).synthesize == Recipe.model_fields["synthesize"].default
    assert main(["init", str(path)]) == 2  # it is not replaced
    assert main(["init", str(path), "--force", "--queries", "q", "--base-url", "http://127.0.0.1:1/v1"]) == 0
    recipe = load_recipe(path)
    assert recipe.queries is not None
    assert recipe.experts["labelled"].kinds == ("labelled",)
