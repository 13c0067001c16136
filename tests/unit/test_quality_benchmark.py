"""The quality benchmark's own parts: its tables, its section of the results page, its splits and its choice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

# Benchmarks are scripts: their modules find each other by their folder.
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import panel as panel_module
import quality
import quality_report as report
import quality_sentence_transformers as peer
import quality_systems as systems
from cells import CellStore, NotStoredError, only_stored
from panel import DOMAINS, GUARDS, Panel, apart

from stm_training.data.records import Pair, Passage
from stm_training.finetune.settings import TrainSettings
from stm_training.merge.search.objective import Objective
from stm_training.merge.search.records import TrialScores
from stm_training.pipeline.collections import Problem

SETS = (*DOMAINS, *GUARDS)


def cell(score: Callable[[str, int], float]) -> dict[str, Any]:
    # Sets of different sizes: a mean over sets is then no mean over queries.
    scores = {
        name: {f"q{query}": score(name, query) for query in range(10 * (place + 1))}
        for place, name in enumerate(SETS)
    }
    means = {name: float(np.mean(list(values.values()))) for name, values in scores.items()}
    return {"commit": "abc1234", "versions": {"numpy": "2"}, "means": means, "scores": scores}


@pytest.fixture
def cells() -> dict[str, dict[str, Any] | None]:
    found: dict[str, dict[str, Any] | None] = dict.fromkeys(quality.SYSTEMS)
    found["base"] = cell(lambda name, query: 0.5)
    found["ours"] = cell(lambda name, query: 0.5 + 0.06 * (name in DOMAINS) + 0.01 * (query % 2))
    found["all-data"] = cell(lambda name, query: 0.5 + 0.06 * (name in DOMAINS) - 0.02 * (name in GUARDS))
    return found


def test_the_document_names_every_set_and_group_with_its_score_difference_and_interval(
    cells: dict[str, Any],
) -> None:
    found = json.loads(json.dumps(report.results(cells, quality.PEERS)))

    assert list(found) == list(quality.SYSTEMS)
    assert set(found["ours"]) == {*SETS, "domain", "guards", "all"}
    for entry in found["ours"].values():
        assert set(entry) == {"ndcg@10", "delta", "ci95"}
        low, high = entry["ci95"]
        assert low <= entry["delta"] <= high
    assert found["ours"]["domain"]["ndcg@10"] == pytest.approx(0.565)
    assert found["ours"]["guards"]["delta"] == pytest.approx(0.005)
    assert found["base"]["all"] == {"ndcg@10": 0.5, "delta": 0.0, "ci95": [0.0, 0.0]}


def test_every_set_weighs_the_same_whatever_its_number_of_queries(cells: dict[str, Any]) -> None:
    lone = SETS[0]
    cells["ours"] = cell(lambda name, query: 0.8 if name == lone else 0.5)

    found = report.results(cells, quality.PEERS)

    assert found["ours"]["all"]["delta"] == pytest.approx(0.3 / len(SETS))
    assert found["ours"]["all"]["ndcg@10"] == pytest.approx(0.5 + 0.3 / len(SETS))


def test_a_peer_is_also_compared_with_ours_and_no_other_system_is(cells: dict[str, Any]) -> None:
    found = report.results(cells, quality.PEERS)

    against = found["all-data"][report.AGAINST_OURS]
    assert against["domain"]["delta"] == pytest.approx(0.005)
    assert against["guards"]["delta"] == pytest.approx(0.025)
    assert against["all"]["delta"] == pytest.approx((4 * 0.005 + 2 * 0.025) / 6)
    assert not any(report.AGAINST_OURS in found[name] for name in found if name not in quality.PEERS)


def test_what_was_not_run_keeps_its_row_says_so_and_has_no_figure(cells: dict[str, Any]) -> None:
    found = report.results(cells, quality.PEERS)

    rows = report.table(found, quality.LABELS).splitlines()
    assert len(rows) == 2 + len(quality.SYSTEMS)
    gpl = next(row for row in rows if "GPL" in row)
    assert set(gpl.strip("| ").split(" | ")[1:]) == {"not run here"}
    assert "not run here" not in next(row for row in rows if row.startswith("| ours: "))
    assert found["gpl"] == {}
    assert len({row.count("|") for row in rows}) == 1
    assert "| GPL (cross-encoder teacher) | not run here | not run here | not run here |" in (
        report.peers_table(found, quality.LABELS, quality.PEERS)
    )


def test_without_the_base_there_is_nothing_to_compare_with(cells: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="base"):
        report.results({**cells, "base": None}, quality.PEERS)


def test_the_section_is_replaced_and_the_prose_around_it_stays(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text("# Results\n\nold prose\n\n## After\nmore\n", encoding="utf-8")

    report.write_section(page, "first table")
    once = page.read_text(encoding="utf-8")
    page.write_text(once + "\nwhat this shows\n", encoding="utf-8")
    report.write_section(page, "second table")

    twice = page.read_text(encoding="utf-8")
    assert once.startswith("# Results\n\nold prose\n\n## After\nmore\n")
    assert twice == once.replace("first table", "second table") + "\nwhat this shows\n"
    assert twice.count(report.BEGIN) == twice.count(report.END) == twice.count(report.HEADING) == 1


@pytest.mark.parametrize("document", [report.BEGIN, report.END, f"{report.END}\n{report.BEGIN}"])
def test_a_section_with_half_its_markers_is_not_guessed_at(document: str) -> None:
    with pytest.raises(SystemExit, match="quality:end"):
        report.with_section(f"prose\n{document}\nprose", "table")


def test_the_page_says_which_commits_and_versions_the_cells_are_of(cells: dict[str, Any]) -> None:
    cells["ours"] |= {"commit": "def5678", "versions": {"numpy": "3"}}

    said = report.provenance(cells, "python benchmarks/quality.py --full")

    assert "`python benchmarks/quality.py --full`" in said
    assert "abc1234, def5678" in said
    assert "numpy 2 and 3" in said


def write_guard(folder: Path, ids: range) -> None:
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{number}", "title": "", "text": f"text {number}"} for number in range(60)]
    # The id's parity is lost: two ids have one text but for its case.
    queries = [
        {"_id": f"q{number}", "text": f"{'Query' if number % 2 else 'query'} {number // 2}"} for number in ids
    ]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    judged = "".join(f"q{number}\td{number}\t1\n" for number in ids)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")


def test_no_query_of_a_guards_development_half_is_in_its_full_test_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in GUARDS:
        write_guard(tmp_path / "panel" / name, range(0, 40, 2))
        write_guard(tmp_path / name, range(60))
        with (tmp_path / name / "qrels" / "test.tsv").open("a", encoding="utf-8") as judged:
            judged.write("q59\tnot-in-the-corpus\t1\n")  # as in ArguAna
    for name in DOMAINS:
        write_guard(tmp_path / name, range(10))
    monkeypatch.setenv("STM_DATA", str(tmp_path))

    panel = Panel(full=True, dev_documents=30, full_guards=True)

    for name in GUARDS:
        dev, test = panel.dev_guards[name], panel.tests[name]
        assert dev.queries
        assert not dev.queries.keys() & test.queries.keys()
        assert not {text.casefold() for text in dev.queries.values()} & {
            text.casefold() for text in test.queries.values()
        }
        assert test.queries.keys() == test.qrels.keys()
        assert len(test.passages) == 60
        assert any(int(query[1:]) >= 40 for query in test.queries)


def test_queries_are_set_apart_by_id_and_by_what_they_say() -> None:
    problem = Problem(
        "made up",
        [Passage("d", "text")],
        {"a": "Does it hurt?", "b": "is it rare", "c": "other"},
        {name: {"d": 1} for name in "abc"},
    )

    assert list(apart(problem, ["does it  HURT"]).queries) == ["b", "c"]
    assert list(apart(problem, {"b": "reworded", "z": "Other"}).qrels) == ["a"]


def test_the_full_tests_hold_no_query_that_something_was_trained_or_chosen_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def problem(name: str, *texts: str) -> Problem:
        queries = {f"{name}/{row}": text for row, text in enumerate(texts)}
        return Problem(name, [Passage("d", "text")], queries, {query: {"d": 1} for query in queries})

    made = SimpleNamespace(
        dev={"medquad": problem("dev", "chosen by")},
        dev_guards={"arguana": problem("guard", "guarded by")},
        tests={"medquad": problem("test", "Trained on!", "chosen by", "guarded by", "fresh")},
    )
    bench = systems.Bench(full=True, panel=made, full_tests=lambda: made)  # type: ignore[arg-type]
    monkeypatch.setattr(systems.Members, "every_pair", lambda self: [Pair("trained on", "positive")])

    assert list(bench.tests["medquad"].queries.values()) == ["fresh"]
    assert replace(bench, full=False).tests is made.tests


def test_the_winner_has_the_highest_objective_and_guards_count() -> None:
    def scores(domain: float, guard: float) -> TrialScores:
        return TrialScores(dev={"d": {"q": domain}}, guards={"g": {"q": guard}})

    objective = Objective(scores(0.5, 0.5), penalty=2.0, tolerance=0.5)
    trials = {1: scores(0.60, 0.50), 2: scores(0.62, 0.45), 3: scores(0.60, 0.50)}

    assert systems.choose(trials, objective) == 1
    assert systems.choose(trials | {4: scores(0.61, 0.496)}, objective) == 4
    figures = systems.trial_figures(trials, objective)
    assert figures["2"]["worst_guard_loss"] == pytest.approx(5.0)
    assert figures["2"]["objective"] == pytest.approx(0.62 - 0.09)


def test_peers_see_as_many_pairs_as_the_steps_take_the_same_at_every_call() -> None:
    pairs = [Pair(f"query {row}", f"positive {row % 7}", positive_id=f"d{row % 7}") for row in range(50)]
    settings = TrainSettings(steps=3, batch_size=8)

    drawn = systems.training_sample(pairs, settings)

    assert len(drawn) == len({pair.query for pair in drawn}) == 24
    assert drawn == systems.training_sample(pairs, settings)
    assert drawn != pairs[:24]
    assert len(systems.training_sample(pairs, settings.model_copy(update={"steps": 100}))) == 50
    assert sorted(passage.text for passage in systems.own_corpus(pairs)) == [
        f"positive {n}" for n in range(7)
    ]


@pytest.mark.parametrize(
    ("total", "trials", "steps"), [(260, 6, [43, 87, 130, 173, 217, 260]), (3, 2, [2, 3]), (2, 6, [1, 2])]
)
def test_checkpoints_are_spread_over_the_run_and_the_last_step_is_one(
    total: int, trials: int, steps: list[int]
) -> None:
    assert peer.checkpoint_steps(total, trials) == steps


def test_every_trained_system_gets_as_many_trials_and_steps() -> None:
    trials = systems.merging.TRIALS
    total = sum(settings.steps or 0 for settings in systems.experts.EXPERTS.values())

    assert len(systems.refine_shares()) == len(systems.merging.SHARES) == trials
    assert len(peer.schedule()["steps"]) == trials
    assert peer.schedule()["steps"][-1] == systems.all_data_settings().steps == total


def test_a_checkpoint_that_is_read_as_another_model_is_refused() -> None:
    vectors = np.eye(3, dtype=np.float32)

    assert peer.agreement(vectors, 2 * vectors) == pytest.approx(1.0)
    with pytest.raises(peer.PeerFailed, match=r"0\.7"):
        peer.agreement(vectors, vectors + np.eye(3, k=1, dtype=np.float32))


def test_a_cell_that_shall_only_be_read_is_not_computed(tmp_path: Path) -> None:
    store = CellStore(tmp_path, (), {})

    with only_stored(), pytest.raises(NotStoredError):
        store.run("one", 1, lambda: pytest.fail("it was computed"))
    store.run("one", 1, lambda: {"means": {}})
    with only_stored():
        assert store.run("one", 1, lambda: pytest.fail("it was computed again"))["cell"] == "one"
        with pytest.raises(NotStoredError):
            store.run("one", 2, lambda: pytest.fail("another key"))


def test_systems_that_are_not_asked_for_are_read_where_they_are_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def stored(bench: object) -> dict[str, Any]:
        return {"stored": True}

    def missing(bench: object) -> dict[str, Any]:
        asked.append("ran")
        raise NotStoredError("missing")

    made = {
        "base": quality.System("base", stored),
        "ours": quality.System("ours", missing),
        "gpl": quality.System("GPL", None),
    }
    monkeypatch.setattr(quality, "SYSTEMS", made)

    assert quality.chosen(None) == ["base", "ours"]
    assert quality.chosen("ours") == ["base", "ours"]
    with pytest.raises(SystemExit, match="unknown system theirs"):
        quality.chosen("theirs,ours")
    found = quality.cells_of(systems.Bench(), quality.chosen("base"))
    assert found == {"base": {"stored": True}, "ours": None, "gpl": None}
    assert asked == ["ran"]


def test_training_may_hold_out_the_queries_of_the_full_tests_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*DOMAINS, *GUARDS):
        write_guard(tmp_path / name, range(40))
        write_guard(tmp_path / "panel" / name, range(20))
    monkeypatch.setenv("STM_DATA", str(tmp_path))
    nothing: dict[str, Problem] = {}
    monkeypatch.setattr(panel_module.Panel, "dev", nothing)

    cut, whole = Panel(), Panel(hold_out_full=True)

    assert "query 15" not in cut._held_out
    assert "query 15" in whole._held_out
    assert set(cut._held_out) <= set(whole._held_out)
