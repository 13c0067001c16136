from __future__ import annotations

import json

import numpy as np
import pytest

from stm_retriever.errors import DataError
from stm_training.data.records import Pair, Passage
from stm_training.mining.histogram import ScoreCounts, common_edges, draw
from stm_training.mining.mine import mine_negatives
from stm_training.mining.report import MiningReport
from stm_training.mining.settings import MineSection


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def mined_report(section: MineSection) -> MiningReport:
    rng = np.random.default_rng(0)
    documents = unit(rng, 80, 8)
    queries = documents[:30] + 0.6 * unit(rng, 30, 8)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    _, report = mine_negatives(
        [Pair(f"query {n}", f"text {n}") for n in range(30)],
        [Passage(str(n), f"text {n}") for n in range(80)],
        section,
        encode_query=lambda texts: queries,
        encode_document=lambda texts: documents,
        model="tiny",
    )
    return report


def test_every_candidate_is_counted_once() -> None:
    section = MineSection(skip_top=3, max_rank=40, positive_share=0.7, num_negatives=2)
    report = mined_report(section)

    assert report.counts["candidates"] == 30 * 40
    assert report.rules["skip_top"] == 30 * 3
    assert report.counts["kept"] + sum(report.rules.values()) == 30 * 40
    assert report.kept.total == report.counts["kept"]
    assert report.rejected.total == sum(report.rules.values())
    assert report.positives.total == 30
    assert report.rules["positive_share"] > 0


def test_the_band_in_quantiles_is_reported_in_scores() -> None:
    report = mined_report(MineSection(band_quantiles=(None, 0.5)))

    assert report.band is not None
    assert report.band[1] == pytest.approx(report.positives.quantile(0.5), abs=0.01)
    assert report.kept.span[1] <= report.band[1] + 0.001
    assert report.band[0] == -np.inf
    assert report.to_json()["band"] == [None, report.band[1]]


def test_samples_show_what_was_taken_and_what_was_not() -> None:
    report = mined_report(MineSection(skip_top=3, num_negatives=2))

    assert len(report.samples) == 20
    sample = report.samples[0]
    assert [mined.verdict for mined in sample.negatives] == ["kept", "kept"]
    assert sample.rejected[0].rank == 1
    assert sample.rejected[0].verdict == "skip_top"
    assert sample.query in report.text()
    assert sample.negatives[0].text in report.text()


def test_json_holds_everything_that_the_text_shows() -> None:
    report = mined_report(MineSection(num_negatives=2))
    stored = json.loads(json.dumps(report.to_json()))

    assert stored["model"] == "tiny"
    assert stored["settings"]["num_negatives"] == 2
    histogram = stored["histogram"]
    assert len(histogram["edges"]) == len(histogram["kept"]) + 1
    assert sum(histogram["kept"]) == stored["counts"]["kept"]
    assert len(stored["samples"]) == 20
    assert MineSection.model_validate(stored["settings"]) == MineSection(num_negatives=2)


def test_a_band_that_rejects_almost_everything_is_an_error_with_a_histogram() -> None:
    with pytest.raises(DataError, match=r"band 0.97 to 0.99 rejects .* of tiny\. Positives score") as caught:
        mined_report(MineSection(preset="refine", band=(0.97, 0.99)))

    message = str(caught.value)
    assert "band_quantiles" in message
    assert "positives (30)" in message
    assert "####" in message


def test_a_band_that_rejects_less_is_none() -> None:
    report = mined_report(MineSection(preset="refine", band=(0.2, 0.5), max_rank=40))

    behind_top = report.counts["candidates"] - report.rules["skip_top"]
    assert 0 < report.outside_band < 0.95 * behind_top


def test_counts_in_bins_give_quantiles_to_the_width_of_a_bin() -> None:
    scores = np.random.default_rng(0).normal(0.2, 0.3, 5000).astype(np.float32)
    counts = ScoreCounts(0.001)
    for part in np.array_split(scores, 7):
        counts.add(part)

    assert counts.total == 5000
    for share in (0.05, 0.25, 0.5, 0.95):
        assert counts.quantile(share) == pytest.approx(float(np.quantile(scores, share)), abs=0.005)
    edges = common_edges([counts])
    np.testing.assert_allclose(counts.rebinned(edges), np.histogram(scores, edges)[0], atol=25)
    assert sum(counts.rebinned(edges)) == 5000


def test_an_empty_distribution_can_be_drawn() -> None:
    drawn = draw({"kept": ScoreCounts(0.001), "rejected": ScoreCounts(0.001)})

    assert "kept (0)" in drawn
    assert ScoreCounts(0.001).summary() == {"count": 0}


def test_scores_of_any_scale_are_drawn_in_some_twenty_rows() -> None:
    counts = ScoreCounts(0.01)
    counts.add(np.linspace(0.0, 87.3, 500, dtype=np.float32))

    rows = draw({"kept": counts}).splitlines()[1:]

    assert 10 <= len(rows) <= 22
