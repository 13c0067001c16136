"""Templates are copied into a folder, changed there, and checked as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError
from stm_training.synthesize.prompts import (
    check_templates,
    load_template,
    template_names,
    write_templates,
)


def test_all_templates_are_written_as_they_ship_and_pass_the_check(tmp_path: Path) -> None:
    files = write_templates(tmp_path / "mine")
    assert [file.stem for file in files] == template_names()
    assert check_templates(tmp_path / "mine") == template_names()
    for name in template_names():
        assert load_template(name, tmp_path / "mine") == load_template(name)


def test_a_changed_template_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "query_claim.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        write_templates(tmp_path)
    assert (tmp_path / "query_claim.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_would_never_be_used_is_told(tmp_path: Path) -> None:
    write_templates(tmp_path)
    (tmp_path / "query_claim.txt").rename(tmp_path / "query_clam.txt")
    with pytest.raises(ConfigError, match="no prompt template 'query_clam'"):
        check_templates(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "told"),
    [
        ("query_few_shot", "{examples}", r"lacks \{examples\}"),
        ("task_pair", "{task}", r"lacks \{task\}"),
        ("task_list", "Task: tasks/list", "needs a line 'Task: ...'"),
        ("hard_negative", "{query}", r"lacks \{query\}"),
        ("reask", "{reason}", r"lacks \{reason\}"),
    ],
)
def test_each_placeholder_is_checked(tmp_path: Path, name: str, old: str, told: str) -> None:
    write_templates(tmp_path)
    file = tmp_path / f"{name}.txt"
    file.write_text(file.read_text().replace(old, ""))
    with pytest.raises(ConfigError, match=told):
        check_templates(tmp_path)


def test_style_may_be_left_out_of_query_prompts_and_belongs_to_no_other(tmp_path: Path) -> None:
    write_templates(tmp_path)
    file = tmp_path / "query_claim.txt"
    file.write_text(file.read_text().replace("{style}", ""))
    check_templates(tmp_path)
    other = tmp_path / "hard_negative.txt"
    other.write_text(other.read_text() + "{style}")
    with pytest.raises(ConfigError, match=r"unknown \{style\}"):
        check_templates(tmp_path)


def test_a_folder_that_is_not_there_is_told_with_the_way_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--write-templates"):
        load_template("query_claim", tmp_path / "none")
