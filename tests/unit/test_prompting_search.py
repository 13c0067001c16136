"""The search on real tiny models: it finds a prompt that helps, and keeps the plain one where none does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stm_retriever.errors import ConfigError
from stm_retriever.folder import Prompts
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.pipeline.collections import Problem
from stm_training.prompting import scoring
from stm_training.prompting.scoring import PromptScorer
from stm_training.prompting.search import search_prompt
from stm_training.prompting.settings import GepaSection, PromptSearchSection
from tests.prompted_model import (
    NEW_TOPICS,
    PLANTED,
    PLANTED_PROMPT,
    TOPICS,
    USELESS,
    deaf_backbone,
    obedient_backbone,
    problem,
)
from tests.tiny_models import build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

LIST = PromptSearchSection(prompts=(*USELESS, PLANTED), bootstrap_samples=500)


@pytest.fixture(scope="module")
def obedient() -> Backbone:
    return obedient_backbone()


def test_the_planted_better_prompt_is_found_in_a_list(obedient: Backbone) -> None:
    decision = search_prompt(obedient, problem(), LIST)
    assert decision.changed
    assert decision.prompt == PLANTED_PROMPT
    assert decision.queries == {"search": 18, "decide": 18}
    plain, *others = decision.candidates
    planted = others[-1]
    assert plain.origin == "plain"
    assert planted.dev is not None and plain.dev is not None
    assert planted.dev > plain.dev + 0.2
    assert planted.interval is not None
    assert planted.interval.lo > 0
    assert obedient.prompts == obedient.tokenizer.prompts == Prompts()


def test_documents_are_encoded_once_for_all_candidates(
    obedient: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles: Counter[str] = Counter()
    real = encode_texts

    def counting(backbone: Backbone, texts: list[str], role: Any, **options: Any) -> Any:
        roles[role] += len(texts)
        return real(backbone, texts, role, **options)

    monkeypatch.setattr(scoring, "encode_texts", counting)
    search_prompt(obedient, problem(), LIST)
    assert roles == {"document": 2 * len(TOPICS), "query": 5 * len(TOPICS)}


def test_the_planted_prompt_being_plain_already_nothing_is_changed() -> None:
    backbone = obedient_backbone()
    told = load_backbone(BackboneSpec(str(backbone.path), prompts=Prompts(query=PLANTED_PROMPT)))
    decision = search_prompt(told, problem(), LIST)
    assert not decision.changed
    assert [one.origin for one in decision.candidates] == ["plain", "list", "list", "list"]


def test_a_model_that_does_not_hear_prompts_keeps_the_plain_one_with_equal_scores(tmp_path: Path) -> None:
    settings = LIST.model_copy(update={"random": 5, "max_characters": 400})
    decision = search_prompt(deaf_backbone(tmp_path), problem(), settings)
    assert not decision.changed
    assert decision.prompt == ""
    assert len({round(one.dev, 9) for one in decision.candidates if one.dev is not None}) == 1
    assert "none of" in decision.reason


def test_what_is_chosen_on_an_untrained_model_also_helps_queries_and_documents_that_are_new(
    tmp_path: Path,
) -> None:
    """A prompt shifts an untrained model's rankings for good; what was luck would be gone on new topics."""
    new = problem("new", NEW_TOPICS)
    gains = []
    for seed in range(6):
        base = build_tiny_model("bert", tmp_path / str(seed), seed=seed)
        backbone = load_backbone(BackboneSpec(str(base), prompts=Prompts()))
        settings = PromptSearchSection(random=10, bootstrap_samples=500)
        decision = search_prompt(backbone, problem(), settings, seed=seed)
        scorer = PromptScorer(backbone, new)
        plain, chosen = (
            sum(result.ndcg for result in scorer.score(prompt, list(new.queries)))
            for prompt in (decision.plain, decision.prompt)
        )
        gains += [chosen - plain] if decision.changed else []
    assert all(gain > 0 for gain in gains)


def test_refused_prompts_are_reported_with_reasons_and_not_scored(obedient: Backbone) -> None:
    settings = LIST.model_copy(
        update={"prompts": ("Maximise nDCG.", "Search the wards collection.", "Answer asthma night gout.")}
    )
    decision = search_prompt(
        obedient,
        problem(),
        settings,
        held_out=["what about asthma night gout wrist"],
        dataset_names=["Asthma"],
    )
    table = {one.prompt.partition("\n")[0]: one for one in decision.candidates}
    assert [f.rule for f in table["Maximise nDCG."].findings] == ["metric"]
    assert [f.rule for f in table["Search the wards collection."].findings] == ["test_data"]
    assert table["Maximise nDCG."].dev is None
    assert table["Answer asthma night gout."].dev is not None, "a word of the documents is no data set's name"
    assert decision.notes == ("2 given prompts were refused by the linter and not scored.",)
    figures = decision.figures()["candidates"]
    assert figures[-1]["lint"][0].keys() == {"rule", "reason"}


def test_the_same_seed_gives_the_same_decision_and_progress_ends_at_its_total(obedient: Backbone) -> None:
    seen: list[tuple[int, int, str]] = []
    first = search_prompt(obedient, problem(), LIST, seed=5, progress=lambda *step: seen.append(step))
    assert search_prompt(obedient, problem(), LIST, seed=5) == first
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5]
    assert {total for _, total, _ in seen} == {5}


def test_too_few_development_queries_keep_the_plain_prompt_and_say_so(obedient: Backbone) -> None:
    whole = problem()
    few = list(whole.queries)[:15]
    small = Problem(
        "few",
        whole.passages,
        {name: whole.queries[name] for name in few},
        {name: whole.qrels[name] for name in few},
    )
    decision = search_prompt(obedient, small, LIST)
    assert not decision.changed
    assert "too few to tell prompts apart" in decision.reason


def test_nothing_to_try_and_gepa_without_a_model_are_errors(obedient: Backbone) -> None:
    with pytest.raises(ConfigError, match="no prompt to try"):
        search_prompt(obedient, problem(), PromptSearchSection())
    with pytest.raises(ConfigError, match="needs a language model"):
        search_prompt(obedient, problem(), PromptSearchSection(gepa=GepaSection()))
