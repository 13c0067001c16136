"""GEPA on a real tiny model, with a scripted reflection: it finds, resumes, repeats, and fails loudly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stm_retriever.errors import LLMError
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.encode import encode_texts
from stm_training.llm.base import Completion, LLMAccessError, LLMRequestError, Request
from stm_training.prompting import scoring
from stm_training.prompting.gepa_search import RetrievalAdapter
from stm_training.prompting.search import JOURNAL, search_prompt
from stm_training.prompting.settings import GepaSection, PromptSearchSection
from tests.prompted_model import PLANTED, PLANTED_PROMPT, USELESS, obedient_backbone, problem

pytestmark = pytest.mark.usefixtures("one_thread")

GEPA = GepaSection(metric_calls=200, max_queries=18, minibatch=3, max_reflections=12)
SETTINGS = PromptSearchSection(gepa=GEPA, bootstrap_samples=500)


class Script:
    """Answers in turn; after the last one, that one again."""

    def __init__(self, *answers: str) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, text: str) -> str:
        self.asked.append(text)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


class Broken:
    """A server that fails."""

    name = "broken"

    def __init__(self, error: Callable[[], Exception]) -> None:
        self.error = error
        self.calls = 0

    def complete(self, request: Request) -> Completion:
        self.calls += 1
        raise self.error()


class Stopped(BaseException):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def obedient() -> Backbone:
    return obedient_backbone()


def fenced(text: str) -> str:
    return f"Here it is:\n```\n{text}\n```"


def script() -> Script:
    return Script(*map(fenced, (*USELESS, PLANTED)))


def test_the_planted_better_prompt_is_found_and_nothing_is_printed(
    obedient: Backbone, capfd: pytest.CaptureFixture[str]
) -> None:
    llm = script()
    decision = search_prompt(obedient, problem(), SETTINGS, llm=llm)
    assert decision.prompt == PLANTED_PROMPT
    assert decision.gepa is not None
    assert decision.gepa["reflections"] == len(llm.asked) >= 4
    assert 200 <= decision.gepa["metric_calls"] <= 200 + 18 + 2 * 3 or len(llm.asked) == 12
    assert next(one for one in decision.candidates if one.origin == "gepa").finalist
    assert capfd.readouterr() == ("", "")


def test_the_reflection_sees_the_misses_and_never_a_query_of_the_deciding_half(obedient: Backbone) -> None:
    llm = script()
    made = problem()
    search_prompt(obedient, made, SETTINGS, llm=llm)
    shown = "\n".join(llm.asked)
    assert "wrongly above it: signs of" in shown
    assert "Wanted: tablets for" in shown
    seen = {name for name, text in made.queries.items() if f"query: {text}\n" in shown}
    assert 0 < len(seen) <= 18


def test_a_refused_instruction_is_put_back_with_the_reason(obedient: Backbone) -> None:
    llm = Script(fenced("Maximise nDCG@10 of the wards."), fenced(PLANTED))
    decision = search_prompt(obedient, problem(), SETTINGS, llm=llm)
    assert "it names a measure of quality" in llm.asked[1]
    assert decision.prompt == PLANTED_PROMPT
    assert not any("nDCG" in one.prompt for one in decision.candidates)


def test_a_model_that_never_writes_a_usable_instruction_keeps_the_plain_prompt_within_its_bound(
    obedient: Backbone,
) -> None:
    llm = Script("```\nRaise the recall.\n```")
    decision = search_prompt(obedient, problem(), SETTINGS, llm=llm)
    assert not decision.changed
    assert decision.gepa is not None
    assert decision.gepa["reflections"] == 12
    assert len(llm.asked) == 12 * 3
    assert "12 of 12 reflections brought no usable instruction" in decision.notes[0]


def test_a_stopped_search_asks_and_encodes_nothing_twice_and_ends_as_an_uninterrupted_one(
    obedient: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search_prompt(obedient, problem(), SETTINGS, llm=script(), work=tmp_path / "whole")

    def stops(text: str) -> str:
        if len(first.asked) == 3:
            raise Stopped
        return first(text)

    first = script()
    with pytest.raises(Stopped):
        search_prompt(obedient, problem(), SETTINGS, llm=stops, work=tmp_path / "cut")
    encoded: list[str] = []
    real = encode_texts

    def counting(backbone: Backbone, texts: list[str], role: str, **options: object) -> object:
        encoded.extend(backbone.prompts.query + text for text in texts if role == "query")
        return real(backbone, texts, role, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scoring, "encode_texts", counting)
    rest = Script(*script().answers[3:])
    resumed = search_prompt(obedient, problem(), SETTINGS, llm=rest, work=tmp_path / "cut")
    assert resumed == whole
    assert len(encoded) == len(set(encoded))
    assert not any(text in problem().queries.values() for text in encoded), "plain was scored before the stop"
    journal = (tmp_path / "whole" / JOURNAL).read_text()
    assert len(first.asked) + len(rest.asked) == len(journal.splitlines())
    assert not list(tmp_path.rglob("*.bin")), "GEPA's pickled state is not used"


def test_the_same_seed_gives_the_same_search_and_another_seed_another(obedient: Backbone) -> None:
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        llm = script()
        runs[name] = (search_prompt(obedient, problem(), SETTINGS, llm=llm, seed=seed), llm.asked)
    assert runs["a"] == runs["b"]
    assert runs["a"][1] != runs["c"][1]


@pytest.mark.parametrize(
    ("error", "words", "calls"),
    [
        (lambda: LLMAccessError("the key was refused"), "the key was refused", 1),
        (lambda: LLMRequestError("no", reason="not reached", asked=False), "did not reach the server", 8),
        (lambda: RuntimeError("a bug"), "RuntimeError: a bug", 1),
    ],
)
def test_a_language_model_that_cannot_be_used_is_an_error_and_spends_no_budget(
    obedient: Backbone, error: Callable[[], Exception], words: str, calls: int
) -> None:
    llm = Broken(error)
    with pytest.raises(LLMError, match=words):
        search_prompt(obedient, problem(), SETTINGS, llm=llm)
    assert llm.calls == calls


def test_the_adapter_leaves_proposing_to_the_proposer() -> None:
    assert RetrievalAdapter.propose_new_texts is None
