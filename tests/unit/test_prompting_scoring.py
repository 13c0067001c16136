"""Scoring prompts: documents are encoded once, each query once per prompt, and nothing is left changed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_retriever.folder import Prompts
from stm_training.data.records import Passage
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.scoring import encode_passages, score_vectors
from stm_training.prompting import scoring
from stm_training.prompting.applying import query_prompt, set_query_prompt, with_query_prompt
from stm_training.prompting.kept_vectors import kept_documents
from stm_training.prompting.scoring import PromptScorer
from tests.tiny_models import SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES = {f"q{number}": " ".join(text.split()[2:6]) for number, text in enumerate(SENTENCES)}
PROBLEM = Problem(
    "sentences",
    [Passage(f"d{number}", text) for number, text in enumerate(SENTENCES)],
    QUERIES,
    {f"q{number}": {f"d{number}": 1} for number in range(len(SENTENCES))},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "query: ", "document": "passage: "}
    return build_tiny_model("bert", tmp_path_factory.mktemp("bert"), prompts=prompts)


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return load_backbone(BackboneSpec(str(folder)))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each text was encoded, by role."""
    counts: Counter[tuple[str, str]] = Counter()
    real = encode_texts

    def counting(backbone: Backbone, texts: list[str], role: Any, **options: Any) -> Any:
        counts.update((role, backbone.prompts.of(role) + text) for text in texts)
        return real(backbone, texts, role, **options)

    monkeypatch.setattr(scoring, "encode_texts", counting)
    return counts


def test_documents_are_encoded_once_and_queries_once_per_prompt(
    backbone: Backbone, encoded: Counter[tuple[str, str]]
) -> None:
    scorer = PromptScorer(backbone, PROBLEM)
    for prompt in ("query: ", "Find: ", "query: ", "Search this: "):
        scorer.score(prompt, ["q3", "q1"])
        scorer.score(prompt, list(QUERIES))
    expected = {("document", f"passage: {text}"): 1 for text in SENTENCES}
    for prompt in ("query: ", "Find: ", "Search this: "):
        expected |= {("query", prompt + text): 1 for text in QUERIES.values()}
    assert dict(encoded) == expected


def test_known_document_vectors_are_used_and_none_is_encoded(
    backbone: Backbone, encoded: Counter[tuple[str, str]]
) -> None:
    known = encode_passages(backbone, PROBLEM)
    scorer = PromptScorer(backbone, PROBLEM, documents=known)
    scorer.score("Find: ", ["q0"])
    assert {role for role, _ in encoded} == {"query"}


def test_a_prompt_scores_as_a_model_that_was_loaded_with_it(folder: Path, backbone: Backbone) -> None:
    scorer = PromptScorer(backbone, PROBLEM)
    for prompt in ("", "Find the sentence about this: "):
        loaded = load_backbone(with_query_prompt(folder, prompt))
        vectors = encode_texts(loaded, list(QUERIES.values()), "query", precision="fp32")
        expected = score_vectors(vectors, encode_passages(loaded, PROBLEM), PROBLEM)["ndcg@10"]
        results = scorer.score(prompt, list(QUERIES))
        assert {name: result.ndcg for name, result in zip(QUERIES, results, strict=True)} == expected


def test_the_models_own_prompts_are_back_after_scoring_and_after_an_error(backbone: Backbone) -> None:
    PromptScorer(backbone, PROBLEM).score("Find: ", ["q0"])
    assert backbone.prompts == backbone.tokenizer.prompts == Prompts(query="query: ", document="passage: ")
    with pytest.raises(KeyError), query_prompt(backbone, "Find: "):
        assert backbone.tokenizer.prompts.query == "Find: "
        raise KeyError
    assert backbone.tokenizer.prompts.query == backbone.prompts.query == "query: "
    set_query_prompt(backbone, "Find: ")
    assert backbone.tokenizer.prompts == Prompts(query="Find: ", document="passage: ")


def test_a_spec_with_another_query_prompt_keeps_everything_else(folder: Path) -> None:
    spec = BackboneSpec(str(folder), max_length=64, pooling="cls")
    assert with_query_prompt(spec, "x: ") == dataclasses.replace(
        spec, prompts=Prompts(query="x: ", document="passage: ")
    )
    given = dataclasses.replace(spec, prompts=Prompts(query="a", document="b"))
    assert with_query_prompt(given, "x: ").prompts == Prompts(query="x: ", document="b")


def test_a_result_says_where_the_first_relevant_document_stands_and_what_is_above_it(
    backbone: Backbone,
) -> None:
    pieces = [
        Passage("d0#0", SENTENCES[0], parent_id="d0"),
        Passage("d0#1", SENTENCES[1], parent_id="d0"),
        *(Passage(f"d{n}", SENTENCES[n]) for n in range(2, 10)),
    ]
    queries = {"d0": SENTENCES[0], "best": SENTENCES[5], "lost": SENTENCES[0]}
    qrels = {"d0": {"d7": 1}, "best": {"d5": 1}, "lost": {"nowhere": 1}}
    prompts = Prompts(query="", document="")
    plain = load_backbone(dataclasses.replace(backbone.spec, prompts=prompts))
    scorer = PromptScorer(plain, Problem("p", pieces, queries, qrels, exclude_self=True))
    own, best, lost = scorer.score("", list(queries))
    assert (best.rank, best.above, best.missed, best.ndcg) == (1, (), False, 1.0)
    assert (lost.rank, lost.missed, lost.ndcg) == (None, True, 0.0)
    assert lost.above[0] == "d0#0"
    assert own.rank is not None
    assert not any(name.startswith("d0") for name in own.above), "the query's own document is left out"
    assert own.ndcg == pytest.approx(1 / np.log2(own.rank + 1))


def test_kept_scores_are_used_again_for_the_same_inputs_and_forgotten_for_others(
    tmp_path: Path, backbone: Backbone, encoded: Counter[tuple[str, str]]
) -> None:
    file = tmp_path / "work" / "scores.jsonl"
    first = PromptScorer(backbone, PROBLEM, kept=file).score("Find: ", list(QUERIES))
    with file.open("ab") as torn:
        torn.write(b'{"prompt": "Find')
    encoded.clear()
    again = PromptScorer(backbone, PROBLEM, kept=file)
    assert again.score("Find: ", list(QUERIES)) == first
    assert not any(role == "query" for role, _ in encoded)
    assert file.stat().st_mode & 0o777 == 0o600
    again.score("Other: ", ["q0"])
    assert PromptScorer(backbone, PROBLEM, kept=file).score("Other: ", ["q0"])
    other = dataclasses.replace(PROBLEM, qrels={name: {"d0": 1} for name in QUERIES})
    encoded.clear()
    PromptScorer(backbone, other, kept=file).score("Find: ", ["q0"])
    assert sum(role == "query" for role, _ in encoded) == 1


def test_kept_document_vectors_are_read_again_and_made_anew_for_another_model(
    tmp_path: Path, backbone: Backbone
) -> None:
    calls: list[int] = []
    first = kept_documents(backbone, PROBLEM, tmp_path, lambda done, total: calls.append(done))
    assert calls[-1] == len(SENTENCES)
    calls.clear()
    assert np.array_equal(kept_documents(backbone, PROBLEM, tmp_path, lambda *_: calls.append(1)), first)
    assert calls == []
    other = load_backbone(dataclasses.replace(backbone.spec, pooling="cls"))
    assert not np.array_equal(kept_documents(other, PROBLEM, tmp_path), first)
