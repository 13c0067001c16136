from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from stm_training.evaluate.compare import SystemResult
from stm_training.evaluate.selection import choose
from stm_training.report.forest import forest_plot
from stm_training.report.html import render, write_report
from stm_training.report.summary import (
    DataSummary,
    DroppedExample,
    ExpertSummary,
    LeakageSummary,
    MergeSummary,
    ParitySummary,
    RunSummary,
    SkippedLine,
    SynthesisSummary,
)

HOSTILE = "<script>alert('x')</script>"
BASE = np.linspace(0.1, 0.9, 50)
VOID = {"meta", "line", "circle"}


def full_summary(text: str = "plain") -> RunSummary:
    """A summary in which every field is filled, every free text with ``text``."""
    decision = choose(
        {"base": BASE, text: BASE + 0.05, "expert:b": BASE - 0.02},
        guards={text: {"base": BASE, text: BASE, "expert:b": BASE - 0.1}},
    )
    return RunSummary(
        name=text,
        verdict=f"{text} ships.",
        shipped=text,
        proven_on="synthetic queries only",
        systems={
            "base": SystemResult(ndcg10=0.5, recall10=0.6),
            text: SystemResult(ndcg10=0.55, recall10=0.65, delta=0.05, ci95=(0.02, 0.081)),
            "bm25": SystemResult(ndcg10=0.41, recall10=0.5, delta=-0.09, ci95=(-0.12, -0.06)),
        },
        contradiction=text,
        selection=decision,
        seconds={text: 12.5, "train": 95.0, "synthesize": 7300.0},
        versions={text: "1.2.3"},
        seed=7,
        base_model=text,
        data=DataSummary(
            corpus=text,
            documents=200,
            passages=210,
            train_pairs={text: 600},
            dev_queries=50,
            test_queries=300,
            guards={text: 40},
            truncated=3,
            sources={text: text},
        ),
        experts=(
            ExpertSummary(
                name=text,
                kinds=(text,),
                pairs=300,
                steps=100,
                batch_size=32,
                first_loss=1.5,
                last_loss=0.4,
                seconds=33.0,
            ),
            ExpertSummary(name="expert:b", pairs=300, steps=100),
        ),
        merge=MergeSummary(method=text, weights={text: 0.5}, density=0.3, trials=12),
        parity=ParitySummary(rows=20, max_abs_diff=3.2e-7, min_cosine=0.9999999, tolerance=1e-5),
        synthesis=SynthesisSummary(
            generator=text,
            documents=200,
            written=640,
            kept={text: 600},
            negatives=200,
            dropped={text: 40},
            examples=(DroppedExample(cause=text, text=text),),
            failures=2,
        ),
        leakage=LeakageSummary(train_queries=600, checked_against=350, exact=1, normalised=2, dropped=3),
        skipped_rows=(SkippedLine(file=text, line=17, cause=text),),
        notice=text,
        recipe_yaml=f"name: {text}\nseed: 7",
    )


class Page(HTMLParser):
    """Collects tags and text, and checks that what is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def page(summary: RunSummary) -> Page:
    parsed = Page(render(summary))
    parsed.text = " ".join(parsed.text.split())
    return parsed


def minimal_summary(**changes: object) -> RunSummary:
    values: dict[str, object] = {
        "name": "small",
        "verdict": "The base ships.",
        "shipped": "base",
        "proven_on": "user queries",
        "systems": {"base": SystemResult(ndcg10=0.5, recall10=0.6)},
    }
    return RunSummary.model_validate(values | changes)


def test_every_free_text_is_escaped() -> None:
    html = render(full_summary(HOSTILE))

    assert "<script" not in html
    assert "&lt;script&gt;" in html
    # A text that was forgotten would be missing, not escaped: each field shows it at least once.
    assert html.count("&lt;script&gt;") >= 28


def test_the_page_loads_nothing_from_anywhere() -> None:
    parsed = page(full_summary(HOSTILE))

    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _ in parsed.tags}
    assert not [attrs for _, attrs in parsed.tags if {"src", "href", "onload", "onclick"} & attrs.keys()]
    html = render(full_summary())
    assert "http" not in html.replace("http-equiv", "")
    assert "url(" not in html
    assert "@import" not in html
    policy = next(attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy


def test_the_markup_is_well_formed() -> None:
    assert page(full_summary()).open == []
    assert page(minimal_summary()).open == []


def test_the_page_suits_dark_screens_paper_and_phones() -> None:
    html = render(minimal_summary())

    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert 'name="viewport" content="width=device-width' in html


@pytest.mark.parametrize(
    "shown",
    [
        "plain ships.",  # the verdict
        "0.5500",
        "+5.00",
        "+2.00 to +8.10",
        "300 queries (synthetic queries only)",
        "Proven on synthetic queries only",
        "plain ships: nDCG@10 0.5500 on 50 development queries",  # why
        "worse than the base on the development queries; lost 10.00 points on guard plain",
        "200 documents of plain, 210 passages, of which 3 are longer than the model reads",
        "1.500 → 0.400",
        "Merge: plain, density 0.3; weights plain 0.5; the best of 12 merges",
        "640 written, 600 pairs kept, 40 dropped, 200 hard negatives; 2 requests gave no usable answer",
        "600 training queries against 350 development and test queries: 1 exact and 2 normalised",
        "20 padded rows",
        "3.20e-07 (allowed 1e-05), lowest cosine 0.9999999",
        "1 rows of the data were left out",
        "plain:17: plain",
        "12.5 s",
        "1 min 35 s",
        "2 h 1 min",
        "name: plain",
        "plain 1.2.3",
        "Seed 7.",
    ],
)
def test_the_page_shows(shown: str) -> None:
    assert shown in page(full_summary()).text


def test_what_was_not_done_is_said_and_what_is_not_there_is_left_out() -> None:
    text = page(minimal_summary()).text

    assert "Leakage: not checked in this run." in text
    assert "ONNX parity: not measured in this run." in text
    assert "No row of the data was left out." in text
    assert "How the choice was made" not in text
    assert "Synthetic queries" not in text
    assert "Proven on synthetic" not in text


def test_a_notice_and_a_contradiction_are_shown_only_where_given() -> None:
    assert "Not medical advice" not in page(minimal_summary()).text
    text = page(
        minimal_summary(notice="Not medical advice.", contradiction="The test queries contradict it.")
    ).text
    assert "Not medical advice." in text
    assert "The test queries contradict it." in text


def test_many_skipped_rows_are_counted_whole_and_listed_in_part() -> None:
    rows = [SkippedLine(file="corpus.jsonl", line=number, cause="empty text") for number in range(1, 501)]

    text = page(minimal_summary(skipped_rows=rows)).text

    assert "500 rows of the data were left out" in text
    assert "corpus.jsonl:200: empty text" in text
    assert "corpus.jsonl:201: empty text" not in text
    assert "and 300 more" in text


def test_the_file_is_written_whole_and_over_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"

    write_report(minimal_summary(name="older run"), path)
    write_report(minimal_summary(name="newer run").model_dump(), path)

    assert "newer run" in path.read_text(encoding="utf-8")
    assert "older run" not in path.read_text(encoding="utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_a_mapping_that_is_no_summary_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="verdict"):
        write_report({"name": "x"}, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_summary_survives_being_stored_as_json() -> None:
    summary = full_summary()

    assert RunSummary.model_validate_json(summary.model_dump_json()) == summary


def test_the_figures_are_exactly_what_the_json_option_promises() -> None:
    figures = json.loads(json.dumps(full_summary("merged").figures()))

    assert set(figures) == {"systems", "shipped", "seconds", "versions", "seed"}
    assert figures["systems"]["merged"] == {
        "ndcg@10": 0.55,
        "recall@10": 0.65,
        "delta": 0.05,
        "ci95": [0.02, 0.081],
    }
    assert figures["systems"]["base"]["delta"] is None
    assert figures["systems"]["base"]["ci95"] is None
    assert figures["shipped"] == "merged"
    assert figures["seed"] == 7


def test_the_forest_plot_puts_every_interval_on_one_scale() -> None:
    plot = forest_plot(full_summary("merged").systems)

    assert plot is not None
    merged, bm25 = plot.rows
    assert (merged.name, bm25.name) == ("merged", "bm25")
    assert bm25.lo < bm25.mid < bm25.hi < plot.zero < merged.lo < merged.mid < merged.hi
    per_point = (merged.mid - plot.zero) / 5.0
    assert (plot.zero - bm25.lo) / 12.0 == pytest.approx(per_point, rel=1e-3)
    positions = {label: x for x, label in plot.ticks}
    assert positions["0"] == plot.zero
    assert all(0 <= x <= plot.width for x in (bm25.lo, merged.hi, *positions.values()))


def test_a_plot_of_no_differences_at_all_still_has_a_scale() -> None:
    same = SystemResult(ndcg10=0.5, recall10=0.5, delta=0.0, ci95=(0.0, 0.0))

    plot = forest_plot({"same": same})

    assert plot is not None
    assert plot.rows[0].lo == plot.rows[0].hi == plot.zero
    assert len(plot.ticks) >= 2


def test_without_any_interval_there_is_no_plot() -> None:
    assert forest_plot({"base": SystemResult(ndcg10=0.5, recall10=0.5)}) is None
    assert "<svg" not in render(minimal_summary())
