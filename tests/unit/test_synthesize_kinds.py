"""The kinds of query beyond the first four, from the request to the pair."""

from __future__ import annotations

import json
from pathlib import Path

from stm_training.data.records import Passage
from stm_training.llm.base import Completion, Request
from stm_training.llm.markers import marked_task
from stm_training.synthesize.filters import Limits
from stm_training.synthesize.parsing import parse_queries
from stm_training.synthesize.run import synthesize
from stm_training.synthesize.styles import Style
from stm_training.synthesize.writer import limits_for

PASSAGE = Passage("d1", "Gout attacks begin at night in the big toe; uric acid crystals cause them.")
STORY = (
    "My father woke up last night because his foot was burning and red. He could not even bear the blanket on "
    "it. We cooled it and it got a little better, but it is back this evening. He eats a lot of meat and drinks "
    "beer. What could it be, and when do we need a doctor?"
)


class Teller:
    name = "teller"

    def __init__(self, long: str) -> None:
        self._long = long
        self.prompts: list[str] = []

    def complete(self, request: Request) -> Completion:
        prompt = request.messages[0].content
        self.prompts.append(prompt)
        if marked_task(prompt) == "query/long":
            return Completion(self._long, self.name)
        return Completion(json.dumps({"queries": ["foot burning at nite what is it"]}), self.name)


def test_a_long_request_of_many_words_is_kept_and_a_short_one_is_not_one(tmp_path: Path) -> None:
    assert len(STORY.split()) > 50
    for text, kinds, dropped in (
        (json.dumps({"queries": [STORY * 2]}), ["long"], set()),
        (json.dumps({"queries": ["gout at night?"]}), [], {"too_short"}),
    ):
        result = synthesize(
            [PASSAGE], Teller(text), journal=tmp_path / f"{len(text)}", kinds=["long"], negatives=False
        )
        assert [pair.kind for pair in result.pairs] == kinds
        assert set(result.dropped) == dropped


def test_other_kinds_keep_the_users_limits() -> None:
    limits = Limits(shortest=3, longest=20)
    assert limits_for("question", limits) == limits
    assert limits_for("long", Limits(shortest=3, longest=900)).longest == 900


def test_a_long_request_over_several_lines_stays_one_query() -> None:
    lines = STORY.replace(". ", ".\n")
    assert parse_queries(f"Request: {lines}", limit=1, whole=True) == [STORY]
    assert len(parse_queries(lines, limit=9)) > 1


def test_few_shot_queries_are_asked_for_with_the_samples_and_become_pairs(tmp_path: Path) -> None:
    llm = Teller("")
    result = synthesize(
        [PASSAGE],
        llm,
        journal=tmp_path / "j",
        kinds=["few_shot"],
        negatives=False,
        style=Style(sample_queries=("knee hurts help", "tabletts for hedache")),
    )
    assert [(pair.kind, pair.query_id) for pair in result.pairs] == [("few_shot", "d1/few_shot/0")]
    assert "- tabletts for hedache" in llm.prompts[0]


def test_another_persona_or_sample_is_another_request(tmp_path: Path) -> None:
    styles = (
        Style(sample_queries=("a b",)),
        Style(sample_queries=("c d",)),
        Style(("a nurse",), sample_queries=("a b",)),
        Style(difficulties=("hard",), sample_queries=("a b",)),
    )
    for style in styles:
        llm = Teller("")
        synthesize([PASSAGE], llm, journal=tmp_path / "j", kinds=["few_shot"], negatives=False, style=style)
        assert len(llm.prompts) == 1
