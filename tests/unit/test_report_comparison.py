"""The page of an evaluation: one file that loads nothing, whatever the texts in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from stm_training.data.records import Collection, Passage
from stm_training.evaluate.evaluation import Evaluation, Settings, evaluate
from stm_training.evaluate.systems import Ranked
from stm_training.report.comparison import comparison_section, pairs_svg, verdict, write_comparison

HOSTILE = '<script>alert("x")</script> $a_b$'


class Tags(HTMLParser):
    """Collects tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def found(other: str = "tuned", *, right: float = 0.9) -> Evaluation:
    """A base that finds every second document first, and a system that finds so many of all."""
    names = [f"d{number}" for number in range(40)]
    corpus = {name: Passage(name, f"{HOSTILE} {name}") for name in names}
    queries = {f"q{name}": f"{HOSTILE} {name}" for name in names}
    collection = Collection("tiny", corpus, queries, {f"q{name}": {name: 1} for name in names})
    lucky = np.random.default_rng(0).random(40) < right

    def hits(name: str, *, first: bool) -> list[tuple[str, float]]:
        return [(name, 2.0 if first else 0.5), ("other", 1.0)]

    base = {f"q{name}": hits(name, first=number % 2 == 0) for number, name in enumerate(names)}
    tuned = {f"q{name}": hits(name, first=bool(lucky[number])) for number, name in enumerate(names)}
    return evaluate({"base": Ranked(base, {}), other: Ranked(tuned, {})}, collection, Settings(samples=500))


def test_the_page_shows_hostile_names_and_texts_as_text_and_loads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "page.html"

    write_comparison(path, found(HOSTILE), title=HOSTILE, lines=[HOSTILE], versions={"numpy": HOSTILE})

    page = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.tags and "img" not in tags.tags and "link" not in tags.tags
    assert tags.text.count(HOSTILE) > 10
    assert "default-src 'none'" in page
    assert set(re.findall(r'(?:https?:)?//[^"<\s]*', page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_section_holds_means_differences_and_the_queries_to_read() -> None:
    result = found()
    tags = Tags()
    tags.feed(comparison_section(result, level=3))

    ((pair, changes),) = result.changes
    for text in (
        f"{result.means['base']['ndcg@10']:.4f}",
        f"{100 * pair.ci95[0]:+.2f} to {100 * pair.ci95[1]:+.2f}",
        f"{pair.wins} / {pair.losses} / {pair.ties}",
        changes.gains[0].text,
        "rank 2 → 1",
    ):
        assert text in tags.text
    assert {"h3", "h4", "svg"} <= set(tags.tags)
    assert "h2" not in tags.tags


def test_charts_are_well_formed_the_same_each_time_and_have_a_text_for_readers() -> None:
    pairs = found("a $ b & c").pairs

    svg = pairs_svg(pairs)

    root = ElementTree.fromstring(svg)
    assert svg == pairs_svg(pairs)
    assert f"{100 * pairs[0].difference:+.2f} points" in str(root.get("aria-label"))
    assert any("a $ b & c" in "".join(node.itertext()) for node in root.iter() if node.tag.endswith("text"))


def test_the_verdict_says_better_worse_or_cannot_tell() -> None:
    assert verdict(found(right=1.0)).startswith("tuned is better than base: +")
    assert verdict(found(right=0.0)).startswith("Nothing is better than base; the next is tuned: -")
    assert verdict(found(right=0.5)).startswith("These queries cannot tell tuned and base apart")


def test_an_interval_above_zero_does_not_count_when_the_corrected_p_does_not_agree() -> None:
    result = found(right=1.0)
    pair, changes = result.changes[0]
    weak = replace(result, changes=[(replace(pair, p_holm=0.2), changes)])

    assert "cannot tell" in verdict(weak)


def test_a_single_system_has_a_page_without_comparisons(tmp_path: Path) -> None:
    result = found()
    alone = replace(result, means={"base": result.means["base"]}, pairs=[], changes=[])

    write_comparison(tmp_path / "page.html", alone, title="t")

    assert "<svg" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert verdict(alone) == f"base: nDCG@10 {result.means['base']['ndcg@10']:.4f}."


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_a_system_that_only_wins_or_only_loses_is_drawn_too(right: float) -> None:
    assert comparison_section(found(right=right)).count("<svg") == 2
