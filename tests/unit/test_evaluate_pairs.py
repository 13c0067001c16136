from __future__ import annotations

import json

import numpy as np
import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Collection, Passage
from stm_training.evaluate.evaluation import Settings, evaluate
from stm_training.evaluate.pairs import compare_pairs, compare_these, differences
from stm_training.evaluate.permutation import holm, permutation_test
from stm_training.evaluate.query_changes import largest_changes
from stm_training.evaluate.significance import paired_bootstrap
from stm_training.evaluate.systems import Ranked
from stm_training.evaluate.tables import changes_text, means_table, pairs_table

QUERIES = [f"q{number}" for number in range(80)]
MEASURE = "ndcg@10"


def scores(seed: int, shift: float = 0.0) -> dict[str, dict[str, float]]:
    """Scores of which about half are the same for every seed."""
    common = np.random.default_rng(100).random(80)
    rng = np.random.default_rng(seed)
    own = np.where(rng.random(80) < 0.5, common, np.clip(common + rng.normal(shift, 0.2, 80), 0, 1))
    return {MEASURE: dict(zip(QUERIES, own.tolist(), strict=True))}


def test_a_pair_has_the_figures_that_its_differences_give() -> None:
    systems = {"base": scores(0), "tuned": scores(1, 0.1)}
    diffs = np.array(
        [systems["tuned"][MEASURE][query] - systems["base"][MEASURE][query] for query in QUERIES]
    )

    (pair,) = compare_pairs(systems, [MEASURE], seed=3)

    assert (pair.reference, pair.system, pair.queries) == ("base", "tuned", 80)
    assert pair.difference == pytest.approx(diffs.mean())
    assert pair.system_mean - pair.reference_mean == pytest.approx(pair.difference)
    assert pair.ci95 == pytest.approx(paired_bootstrap(diffs, seed=3)[1:])
    assert pair.p_permutation == pair.p_holm == permutation_test(diffs, seed=3)
    assert pair.effect_size == pytest.approx(diffs.mean() / diffs.std(ddof=1))
    assert (pair.wins, pair.losses, pair.ties) == ((diffs > 0).sum(), (diffs < 0).sum(), (diffs == 0).sum())
    assert pair.wins + pair.losses + pair.ties == 80


def test_the_first_system_is_the_reference_and_all_comparisons_are_corrected_together() -> None:
    systems = {"a": scores(0), "b": scores(1, 0.1), "c": scores(2), "d": scores(3, 0.15)}

    against_first = compare_pairs(systems, [MEASURE], samples=500)
    every = compare_pairs(systems, [MEASURE], all_pairs=True, samples=500)

    assert [(pair.reference, pair.system) for pair in against_first] == [("a", "b"), ("a", "c"), ("a", "d")]
    assert [pair.reference + pair.system for pair in every] == ["ab", "ac", "ad", "bc", "bd", "cd"]
    for found in (against_first, every):
        assert [pair.p_holm for pair in found] == holm([pair.p_permutation for pair in found])
    assert [pair.p_permutation for pair in every[:3]] == [pair.p_permutation for pair in against_first]
    assert compare_pairs({"a": scores(0)}, [MEASURE]) == []


def test_named_pairs_are_compared_as_all_pairs_are_and_corrected_among_themselves() -> None:
    systems = {"a": scores(0), "b": scores(1, 0.1), "c": scores(2)}

    every = compare_pairs(systems, [MEASURE], all_pairs=True, samples=500)
    named = compare_these(systems, [("a", "b"), ("b", "c")], [MEASURE], samples=500)

    assert [(pair.reference, pair.system) for pair in named] == [("a", "b"), ("b", "c")]
    assert [pair.ci95 for pair in named] == [every[0].ci95, every[2].ci95]
    assert [pair.p_holm for pair in named] == holm([every[0].p_permutation, every[2].p_permutation])
    assert compare_these(systems, [], [MEASURE]) == []
    with pytest.raises(ConfigError, match="'bm25' cannot be compared: the scored systems are a, b, c"):
        compare_these(systems, [("bm25", "a")], [MEASURE])


def test_turning_a_pair_round_turns_its_figures_round() -> None:
    a, b = scores(0), scores(1, 0.1)
    (forth,) = compare_pairs({"a": a, "b": b}, [MEASURE], samples=500)
    (back,) = compare_pairs({"a": a, "b": b}, [MEASURE], reference="b", samples=500)

    assert back.difference == pytest.approx(-forth.difference)
    assert (back.wins, back.losses, back.ties) == (forth.losses, forth.wins, forth.ties)
    assert back.p_permutation == forth.p_permutation


def test_a_rounding_error_is_a_tie() -> None:
    a = {MEASURE: {"q": 0.1 + 0.2}}
    b = {MEASURE: {"q": 0.3}}

    (pair,) = compare_pairs({"a": a, "b": b}, [MEASURE])

    assert (pair.ties, pair.p_permutation, pair.effect_size) == (1, 1.0, 0.0)


def test_systems_that_cannot_be_paired_are_refused() -> None:
    short = {MEASURE: {query: 0.5 for query in QUERIES[:-1]}}
    with pytest.raises(DataError, match="1 differ, for instance 'q79'"):
        compare_pairs({"a": scores(0), "b": short}, [MEASURE])
    with pytest.raises(DataError, match="there are none"):
        differences({"a": {MEASURE: {}}, "b": {MEASURE: {}}}, "a", "b", MEASURE)
    with pytest.raises(ConfigError, match=r"a has no map@100; it has ndcg@10"):
        compare_pairs({"a": scores(0), "b": scores(1)}, ["map@100"])
    with pytest.raises(ConfigError, match="'z' is not among the systems: a, b"):
        compare_pairs({"a": scores(0), "b": scores(1)}, [MEASURE], reference="z")


@pytest.fixture
def collection() -> Collection:
    texts = {"gout": "Colchicine helps.", "flu": "Vaccines prevent it.", "long": "word " * 60}
    return Collection(
        "tiny",
        {
            name: Passage(name, text, title="" if name == "long" else name.title())
            for name, text in texts.items()
        },
        {"q1": "what helps\nagainst gout", "q2": "prevent influenza", "q3": "words"},
        {"q1": {"gout": 2, "flu": 0}, "q2": {"flu": 1}, "q3": {"long": 1}},
    )


BEFORE = {"q1": [("flu", 2.0), ("gout", 1.0)], "q2": [("flu", 1.0)], "q3": [("long", 1.0)]}
AFTER = {"q1": [("gout", 2.0), ("flu", 1.0)], "q2": [("gout", 2.0)], "q3": [("long", 1.0)]}


def test_the_queries_that_changed_most_come_with_texts_and_ranks(collection: Collection) -> None:
    diffs, before = {"q1": 0.37, "q2": -1.0, "q3": 0.0}, {"q1": 0.63, "q2": 1.0, "q3": 1.0}

    changes = largest_changes(diffs, before, collection, (BEFORE, AFTER))

    (gain,), (loss,) = changes.gains, changes.losses
    assert (gain.query, gain.before) == ("q1", 0.63)
    assert gain.after == pytest.approx(1.0)
    assert [(one.id, one.title, one.grade, one.before, one.after) for one in gain.relevant] == [
        ("gout", "Gout", 2, 2, 1)
    ]
    assert (loss.relevant[0].before, loss.relevant[0].after) == (1, None)
    assert loss.top_after is not None
    assert (loss.top_after.id, loss.top_after.grade) == ("gout", 0)
    assert json.loads(json.dumps(changes.figures()))["losses"][0]["relevant"][0]["after"] is None


def test_only_so_many_changes_are_given_the_largest_first(collection: Collection) -> None:
    diffs, before = {"q1": 0.1, "q2": 0.3, "q3": 0.2}, dict.fromkeys(("q1", "q2", "q3"), 0.5)

    changes = largest_changes(diffs, before, collection, (BEFORE, AFTER), count=2)

    assert [change.query for change in changes.gains] == ["q2", "q3"]
    assert changes.losses == ()
    assert changes.gains[1].relevant[0].title.endswith("...")
    assert largest_changes(diffs, before, collection, (BEFORE, AFTER), count=0).gains == ()


def test_the_tables_say_points_p_and_ranks_in_words(collection: Collection) -> None:
    ranked = {"base": Ranked(BEFORE, {}), "tuned": Ranked(AFTER, {})}

    found = evaluate(ranked, collection, Settings(measures=("mrr@10",), tested=("ndcg@10",)))

    assert list(found.means["base"]) == ["mrr@10"]
    assert means_table(found.means).splitlines()[0].split() == ["model", "MRR@10"]
    row = next(line for line in pairs_table(found.pairs).splitlines() if line.startswith("tuned"))
    assert f"{100 * found.pairs[0].difference:+.2f}" in row
    assert row.endswith("1/1/1")
    ((pair, changes),) = found.changes
    text = changes_text(pair, changes)
    assert "q1: what helps against gout" in text
    assert "relevant, rank 2 -> 1: gout: Gout" in text
    assert "relevant, rank 1 -> none: flu: Flu" in text
    assert "now first, not relevant: gout: Gout" in text


def test_queries_without_results_are_counted(collection: Collection) -> None:
    found = evaluate({"a": Ranked({"q1": BEFORE["q1"], "q2": []}, {})}, collection)

    assert found.unanswered == {"a": 2}
    assert found.scores["a"]["ndcg@10"]["q3"] == 0.0
