"""Scoring merges of a tiny model in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stm_retriever.errors import ConfigError
from stm_training.data.records import Passage
from stm_training.evaluate.compare import NDCG
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.merge.apply import MergedModel
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search import evaluator as evaluator_module
from stm_training.merge.search.evaluator import ModelEvaluator, evaluator_for
from stm_training.merge.search.grid import random_candidates
from stm_training.merge.search.job import SearchJob
from stm_training.merge.search.settings import SearchSection
from stm_training.merge.search.space import Space
from stm_training.merge.search.study import search
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.scoring import score_vectors
from tests.tiny_models import SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = " ".join(SENTENCES).split()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = build_tiny_model(
        "bert", tmp_path_factory.mktemp("bert"), prompts={"query": "find: ", "document": ""}
    )
    return load_backbone(BackboneSpec(str(folder)))


@pytest.fixture(scope="module")
def experts(backbone: Backbone) -> dict[str, dict[str, torch.Tensor]]:
    """Full deltas of two random low-rank adapters on all linear layers."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in ("a", "b"):
        found[name] = {
            key: 0.02
            * (
                torch.randn(value.shape[0], 4, generator=generator)
                @ torch.randn(4, value.shape[1], generator=generator)
            )
            for key, value in backbone.model.named_parameters()
            if value.ndim == 2 and "layer" in key and "Norm" not in key
        }
    return found


def problem(name: str, seed: int, *, queries: int = 40, passages: int = 60, **changes: Any) -> Problem:
    rng = np.random.default_rng(seed)

    def text(length: int) -> str:
        return " ".join(rng.choice(WORDS, length))

    rows = [Passage(id=f"{name}-{n}", text=text(8)) for n in range(passages)]
    asked = {f"{name}-q{n}": text(4) for n in range(queries)}
    qrels = {query: {f"{name}-{n % passages}": 1} for n, query in enumerate(asked)}
    return Problem(name, rows, asked, qrels, **changes)


def test_scores_are_those_of_encoding_and_ranking_a_merged_model_anew(
    backbone: Backbone, experts: dict[str, dict[str, torch.Tensor]]
) -> None:
    dev, other, guard = problem("dev", 0), problem("other", 1), problem("guard", 2, exclude_self=True)
    recipe = MergeRecipe(method="ties", weights={"a": 0.8, "b": 0.4}, density=0.5, scale=0.8)
    with ModelEvaluator(
        backbone, experts, [dev, other], [guard], prune_share=0.4, precision="fp32"
    ) as evaluate:
        found = evaluate(recipe)
        vectors = evaluate.vectors(recipe)
    with MergedModel(backbone, experts) as merged:
        merged.apply(recipe)
        for one, scores in ((dev, found.dev), (other, found.dev), (guard, found.guards)):
            queries = encode_texts(backbone, list(one.queries.values()), "query", precision="fp32")
            texts = [row.content for row in one.passages]
            documents = encode_texts(backbone, texts, "document", precision="fp32")
            assert scores[one.name] == pytest.approx(score_vectors(queries, documents, one)[NDCG], abs=1e-6)
        texts = [row.content for row in dev.passages]
        documents = encode_texts(backbone, texts, "document", precision="fp32")
        np.testing.assert_allclose(vectors["dev"].documents, documents, atol=1e-5)
    assert found.complete
    assert set(found.part) == {"dev", "other"}
    assert len(found.part["dev"]) == 16
    assert set(found.part["dev"]) < set(found.dev["dev"])


def test_the_base_comes_back_bit_for_bit_after_a_hundred_trials(
    tmp_path: Path, backbone: Backbone, experts: dict[str, dict[str, torch.Tensor]]
) -> None:
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    settings = SearchSection(
        methods=("linear", "task_arithmetic", "ties"), sampler="random", trials=100, pruning=True
    )
    small = [problem("dev", 0, queries=20, passages=12)]
    guard = [problem("guard", 1, queries=20, passages=12)]
    with evaluator_for(backbone, experts, small, guard, prune_share=0.5) as evaluate:
        result = search(SearchJob(settings, ("a", "b"), tmp_path, "x"), evaluate)
        changed = any(
            not torch.equal(value, before[name]) for name, value in backbone.model.state_dict().items()
        )
    assert len(result.trials) == 100
    assert changed
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_every_trial_starts_from_the_base(
    backbone: Backbone, experts: dict[str, dict[str, torch.Tensor]]
) -> None:
    recipe = MergeRecipe(method="task_arithmetic", weights={"a": 0.5, "b": 0.5})
    space = Space(SearchSection(methods=("dare_ties", "linear")), ("a", "b"))
    with evaluator_for(backbone, experts, [problem("dev", 0)]) as evaluate:
        first, base = evaluate.vectors(recipe)["dev"], evaluate.vectors(None)["dev"]
        for _, other in random_candidates(space, seed=0, most=5):
            evaluate(other)
        np.testing.assert_array_equal(evaluate.vectors(recipe)["dev"].documents, first.documents)
        np.testing.assert_array_equal(evaluate.vectors(None)["dev"].queries, base.queries)


class Counting:
    """Counts texts that a prepared batch encodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts = 0
        real = evaluator_module.PreparedTexts.encode

        def encode(prepared: Any, precision: Any = "auto") -> Any:
            vectors = real(prepared, precision)
            self.texts += len(vectors)
            return vectors

        monkeypatch.setattr(evaluator_module.PreparedTexts, "encode", encode)


def test_a_text_that_several_collections_share_is_encoded_once_per_trial(
    backbone: Backbone, experts: dict[str, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = problem("one", 0)
    asked = {f"two-{name}": text for name, text in one.queries.items()}
    two = Problem("two", one.passages, asked, {f"two-{name}": grades for name, grades in one.qrels.items()})
    evaluate = evaluator_for(backbone, experts, [one], [two], prune_share=0.3)
    counting = Counting(monkeypatch)
    scores = evaluate(None)
    distinct = len(set(one.queries.values())) + len({row.content for row in one.passages})
    assert counting.texts == distinct
    assert list(scores.dev["one"].values()) == list(scores.guards["two"].values())


def test_a_trial_that_is_ended_early_spares_the_documents_it_did_not_need(
    backbone: Backbone, experts: dict[str, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dev, guard = problem("dev", 0, queries=64, passages=400), problem("guard", 1, passages=300)
    evaluate = evaluator_for(backbone, experts, [dev], [guard], prune_share=0.25)
    counting = Counting(monkeypatch)
    counts = {}
    for last in ("part", "dev", "all"):
        counting.texts = 0
        scores = evaluate(None, lambda known, last=last: "enough" if known.stage == last else "")
        assert (scores.stage, scores.stopped) == (last, "" if last == "all" else "enough")
        counts[last] = counting.texts
    evaluate.restore()
    assert counts["part"] == 16 + 100  # a quarter of the queries and of the documents
    assert counts["dev"] == 64 + 400
    assert counts["all"] == 64 + 400 + 40 + 300


def test_the_surrogate_knows_the_base_and_the_experts_exactly_and_spares_their_trials(
    backbone: Backbone, experts: dict[str, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = MergeRecipe(method="task_arithmetic", weights={"b": 1.0})
    with evaluator_for(backbone, experts, [problem("dev", 0)], [problem("guard", 1)]) as evaluate:
        exact = evaluate(alone)
        surrogate = evaluate.surrogate()
        predicted = surrogate.predict(alone)
        counting = Counting(monkeypatch)
        assert evaluate(alone).dev == exact.dev
        assert counting.texts == 0
        mixed = surrogate.predict(MergeRecipe(method="task_arithmetic", weights={"a": 0.4, "b": 0.4}))
    assert predicted is not None and mixed is not None
    assert np.mean(list(predicted.dev["dev"].values())) == pytest.approx(
        np.mean(list(exact.dev["dev"].values())), abs=1e-3
    )
    assert set(mixed.guards) == {"guard"}


def test_collections_of_one_name_and_a_search_without_dev_are_refused(
    backbone: Backbone, experts: dict[str, dict[str, torch.Tensor]]
) -> None:
    with pytest.raises(ConfigError, match="development set"):
        evaluator_for(backbone, experts, [])
    with pytest.raises(ConfigError, match="'dev'"):
        evaluator_for(backbone, experts, [problem("dev", 0)], [problem("dev", 1)])
