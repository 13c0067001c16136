"""The pages in ``docs``: every block runs or says why not, every command is one that the program takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stm_training import cli
from tests.contract.page_blocks import SHELLS, Block, blocks_of
from tests.contract.page_workplace import add_documents_and_models, make_workplace

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_CODE = [
    page
    for page in PAGES
    if any(one.language == "python" or one.language in SHELLS for one in blocks_of(page))
]
SHELL_BLOCKS = [one for page in PAGES for one in blocks_of(page) if one.language in SHELLS]


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_documents_and_models(make_workplace(tmp_path_factory.mktemp("docs")))


@pytest.fixture(autouse=True)
def every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages name commands of this version."""
    monkeypatch.setattr(cli, "COMMANDS", tuple(dict.fromkeys((*cli.COMMANDS, "clean", "push"))))


def run_page(page: Path) -> None:
    """Run the page from top to bottom, as a reader would; Python blocks share their names."""
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks_of(page):
        if block.reason is not None:
            continue
        where = f"{name_of(page)}:{block.line}"
        if block.language == "python":
            code = compile("\n" * block.line + block.code, str(page), "exec")
            exec(code, names)
        elif block.language in SHELLS:
            assert block.stm_train, (
                f"{where}: only stm-train is run here; say why not: <!-- no-run: reason -->"
            )
            assert len(block.stm_train) == len(block.commands), where
            for arguments in block.stm_train:
                assert run_command(arguments) == 0, f"{where}: stm-train {' '.join(arguments)}"


def run_command(arguments: list[str]) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as end:  # --version and --help
        return int(end.code or 0)


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_blocks_of_a_page_run_from_top_to_bottom(
    workplace: Path, page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    run_page(page)
    ran = [one for one in blocks_of(page) if one.reason is None and one.language in ("python", *SHELLS)]
    assert not ran or capsys.readouterr().out.strip()


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda one: f"{name_of(one.page)}:{one.line}")
def test_a_command_on_a_page_is_one_that_the_program_takes(block: Block) -> None:
    for arguments in block.stm_train:
        if arguments != ["--version"]:
            cli.build_parser().parse_args(arguments)


def test_a_block_that_is_not_run_says_why() -> None:
    reasons = [block.reason for block in SHELL_BLOCKS if block.reason is not None]
    assert reasons
    assert all(len(reason) > 5 for reason in reasons)


def test_a_marked_block_is_not_run_and_an_unmarked_one_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- no-run: a reason -->\n```console\na\n```\n\n```python\nx = 1\n```\ntext\n```console\nb # c\n```\n"
    )
    found = [(block.line, block.language, block.commands, block.reason) for block in blocks_of(page)]
    assert found == [
        (2, "console", ["a"], "a reason"),
        (6, "python", ["x = 1"], None),
        (10, "console", ["b"], None),
    ]


def test_arguments_are_read_through_other_programs_and_over_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\ntorchrun --nproc 2 -m stm_training.cli finetune \\\n  --base 'a b'\npip install x\n```\n"
    )
    (block,) = blocks_of(page)
    assert block.stm_train == [["finetune", "--base", "a b"]]


def test_every_page_is_in_the_navigation_and_nothing_else_is() -> None:
    listed = re.findall(r"[\w/-]+\.md", yaml.safe_dump(_configuration()["nav"]))
    assert sorted(listed) == sorted(name_of(page) for page in PAGES)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).resolve().is_file(), f"{name_of(page)} -> {target}"


def test_the_reference_names_objects_that_there_are() -> None:
    import importlib

    found = [
        name
        for page in PAGES
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert found
    for name in found:
        module, _, attribute = name.rpartition(".")
        parent = importlib.import_module(module)
        assert hasattr(parent, attribute) or importlib.import_module(name), name


def test_the_table_of_commands_is_whole() -> None:
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    for command in cli.COMMANDS:
        assert f"`{command}`" in text


def test_tests_that_pages_refer_to_are_there() -> None:
    for page in PAGES:
        for path in re.findall(r"tests/[\w/]+\.py", page.read_text(encoding="utf-8")):
            assert (ROOT / path).is_file(), f"{name_of(page)} names {path}"


def test_the_table_of_intervals_is_the_one_that_was_measured() -> None:
    from benchmarks.intervals import as_markdown

    measured = json.loads((ROOT / "benchmarks" / "results" / "intervals.json").read_text(encoding="utf-8"))
    page = (DOCS / "explanations" / "intervals.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- intervals -->\n")[2].partition("\n<!-- end of intervals -->")[0]
    assert shown == as_markdown(measured["rows"]), (
        "put what python -m benchmarks.intervals prints into the page"
    )
    assert f"{measured['samples']} samples" in page
    assert f"to {len(measured['comparisons'])} real comparisons" in page


def _configuration() -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found
