from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from stm_training.evaluate.compare import SystemResult
from stm_training.evaluate.selection import choose
from stm_training.leakage.report import Example, LeakageReport, Overlap
from stm_training.report.forest import Row, forest_svg, limits_of, rows_of
from stm_training.report.html import render, write_report
from stm_training.report.negatives import negatives_svg
from stm_training.report.sections import (
    negative_scores,
    query_changes,
    variants_of,
    with_near_duplicates,
)
from stm_training.report.summary import (
    DataSummary,
    DroppedExample,
    ExpertSummary,
    LeakageSummary,
    MergeSummary,
    NegativeScores,
    ParitySummary,
    RunSummary,
    SkippedLine,
    SynthesisSummary,
)
from tests.report_summaries import rich_summary

HOSTILE = "<script>alert('x')</script>"
BASE = np.linspace(0.1, 0.9, 50)
VOID = {"meta", "br"}


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
    html = render(rich_summary())
    # A drawing's namespaces are names, not addresses.
    html = re.sub(r'xmlns(:xlink)?="http://www.w3.org/[\w/]+"', "", html.replace("http-equiv", ""))
    assert "http" not in html
    assert "url(" not in html.replace("url(#", "")
    assert not re.findall(r'href="[^#]', html)
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


def test_systems_are_shown_against_each_other_with_their_tests() -> None:
    summary = rich_summary()
    pair = summary.comparisons[1]
    assert (pair.reference, pair.system) == ("all_data", "merged")

    text = page(summary).text

    assert "System against system" in text
    assert f"mergedall_datanDCG@10 {100 * pair.difference:+.2f}" in text
    assert f"{pair.wins} / {pair.losses} / {pair.ties}" in text
    assert "corrected for all 2 comparisons" in text
    assert "System against system" not in page(minimal_summary()).text
    assert RunSummary.model_validate_json(summary.model_dump_json()).comparisons == summary.comparisons


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


def test_the_forest_plot_scales_to_the_systems_that_are_near_each_other() -> None:
    rows = rows_of(full_summary("merged").systems)

    assert [row.name for row in rows] == ["merged", "bm25"]
    assert rows[0].label == "+5.00  (+2.00 to +8.10)"
    low, high = limits_of(rows)
    assert low < -12.0
    assert high > 8.1
    encoders = [Row(str(number), 2.0 + number, 3.0 + number, 4.0 + number) for number in range(3)]
    low, high = limits_of([*encoders, Row("bm25", -30.0, -25.0, -20.0)])
    assert -2.0 < low <= 0.0
    assert high >= 6.0


def test_a_system_beyond_the_scale_keeps_its_figures() -> None:
    systems = rich_summary().systems

    drawn = forest_svg(systems, shipped="merged")

    assert drawn is not None
    for words in ("bm25", "-24.97", "merged", "(ships)", "+4.36"):
        assert words in drawn


def test_a_plot_of_no_differences_at_all_still_has_a_scale() -> None:
    same = SystemResult(ndcg10=0.5, recall10=0.5, delta=0.0, ci95=(0.0, 0.0))

    low, high = limits_of(rows_of({"same": same}))

    assert low < 0.0 < high
    assert forest_svg({"same": same}) is not None


def test_without_any_interval_there_is_no_plot() -> None:
    assert forest_svg({"base": SystemResult(ndcg10=0.5, recall10=0.5)}) is None
    assert "<svg" not in render(minimal_summary())


@pytest.mark.parametrize(
    "shown",
    [
        "better on 1 of the queries, worse on 1, alike on 1",
        "a handbook 0.20 → 1.00",
        "relevant: a handbook",
        "90.3 MB",
        "4.23 ms",
        "-0.25",
        "2 development and test queries are nearly training queries",
        "3 of their documents are, or nearly are, training documents",
        "(0.86) a handbook",
    ],
)
def test_the_parts_that_a_run_may_record_are_shown(shown: str) -> None:
    assert shown in page(rich_summary()).text


def test_each_text_of_those_parts_is_escaped() -> None:
    html = render(rich_summary(HOSTILE))

    assert "<script" not in html
    assert page(rich_summary(HOSTILE)).open == []


def test_two_charts_of_one_page_share_no_id() -> None:
    found = re.findall(r'\bid="([^"]+)"', render(rich_summary()))

    assert len(found) == len(set(found))


def test_wins_and_losses_are_counted_and_the_largest_are_shown_first() -> None:
    before = {f"q{number}": 0.5 for number in range(10)}
    after = before | {"q1": 0.9, "q2": 0.6, "q3": 0.1, "q4": 0.5 + 1e-12}

    found = query_changes(before, after, {"q1": "one " * 100}, {"q1": ["a", "b", "c"]}, count=1)

    assert (found.wins, found.losses, found.ties) == (2, 1, 7)
    assert [one.after for one in found.gains] == [0.9]
    assert [one.query for one in found.drops] == ["q3"]
    assert len(found.gains[0].query) <= 160
    assert found.gains[0].relevant == ("a", "b")


def test_a_system_that_lacks_a_query_is_not_compared() -> None:
    with pytest.raises(KeyError):
        query_changes({"a": 1.0}, {}, {}, {})


def test_the_histogram_of_a_mining_is_read_as_the_run_records_it() -> None:
    histogram = {"edges": [0.0, 0.5, 1.0], "positives": [0, 3], "kept": [2, 1], "rejected": [9, 0]}

    scores = negative_scores({"model": "m", "histogram": histogram, "counts": {}})

    assert scores is not None
    assert scores.kept == (2, 1)
    drawn = negatives_svg(scores)
    assert drawn is not None
    assert "kept (3)" in drawn
    assert negative_scores(None) is None
    assert negatives_svg(scores.model_copy(update={"kept": (0, 0)})) is None
    with pytest.raises(ValidationError, match="counts for 3 edges"):
        NegativeScores(model="m", edges=(0, 1, 2), positives=(1,), kept=(1, 1), rejected=(1, 1))


def test_variants_are_read_from_the_retriever_folder(tiny_onnx_retriever: Path) -> None:
    (one,) = variants_of(tiny_onnx_retriever)

    assert one.name == "fp32"
    assert one.size == (tiny_onnx_retriever / "onnx" / "model.onnx").stat().st_size


def test_the_speed_of_a_variant_is_shown_with_the_machine_and_how_it_was_measured() -> None:
    text = page(rich_summary("My CPU")).text

    assert "one querydocuments/s" in text
    assert "4.23 ms1,234" in text  # fp32; w8 was not timed
    assert "on this machine (My CPU, 2 threads), beside whatever else ran there, after one warm-up" in text
    assert "median of up to 20 test queries one at a time, and up to 64 documents" in text
    assert "documents/s" not in page(rich_summary().model_copy(update={"speed": None})).text


def test_near_duplicates_are_added_from_the_search_for_them() -> None:
    example = Example("near", 0.85, "q1", "how is gout treated " * 20, "t1", "how is gout treated now")
    common = {"train": "pairs", "test": "mine/test", "train_texts": 10, "test_texts": 5, "train_hits": 1}
    queries = Overlap(
        **common,
        train_role="query",
        test_role="query",
        exact=0,
        normalised=1,
        near=1,
        test_ids=("q0", "q1"),
        examples=(example,),
    )
    documents = replace(queries, train_role="document", test_role="document", exact=3, near=2, examples=())
    crossed = replace(queries, train_role="query", test_role="document", near=7, examples=())

    found = with_near_duplicates(
        LeakageSummary(train_queries=10), LeakageReport((queries, documents, crossed), threshold=0.8)
    )

    assert (found.train_queries, found.near, found.near_documents, found.threshold) == (10, 1, 6, 0.8)
    assert [one.similarity for one in found.examples] == [0.85]
    assert len(found.examples[0].test) <= 160
