"""The cross-encoder: a tiny random model, read as transformers saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_retriever.errors import ConfigError, ModelFolderError
from stm_training.data.records import Pair, Passage
from stm_training.filtering.cross_encoder import CrossEncoder
from stm_training.filtering.run import filter_pairs
from stm_training.filtering.settings import FilterSection
from tests.tiny_models import SENTENCES, build_tiny_model

PAIRS = [(SENTENCES[4], text) for text in SENTENCES[:4]] + [(SENTENCES[8], SENTENCES[0] * 3)]


def save_cross_encoder(folder: Path, labels: int) -> Path:
    """The tiny BERT with a scoring head whose weights are large enough to tell texts apart."""
    import torch
    from transformers import AutoModelForSequenceClassification

    build_tiny_model("bert", folder)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
        torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("cross"), labels=1)


def reference(folder: Path) -> np.ndarray[Any, Any]:
    """Each pair alone, unpadded, through transformers itself."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = [
            model(
                **tokenizer(q, p, return_tensors="pt", truncation=True, max_length=64, padding=False)
            ).logits[0]
            for q, p in PAIRS
        ]
    return np.array([float(row[0]) if len(row) == 1 else float(row[1] - row[0]) for row in rows])


def test_batches_score_as_each_pair_alone_does(folder: Path) -> None:
    expected = reference(folder)
    assert len(set(np.round(expected, 4))) > 3, "the head must tell the texts apart"
    for budget in (1, 100, 10_000):
        scores = CrossEncoder(str(folder), max_length=64, token_budget=budget)(PAIRS)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_two_labels_are_read_as_relevant_over_not_relevant(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path, labels=2)
    np.testing.assert_allclose(CrossEncoder(str(folder), max_length=64)(PAIRS), reference(folder), atol=1e-5)


def test_nothing_to_score_is_fine(folder: Path) -> None:
    assert CrossEncoder(str(folder))([]).shape == (0,)


def test_more_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 labels"):
        CrossEncoder(str(save_cross_encoder(tmp_path, labels=3)))


def test_a_model_without_a_scoring_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scoring head"):
        CrossEncoder(str(build_tiny_model("bert", tmp_path)))


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ModelFolderError, match="AutoModelForSequenceClassification"):
            CrossEncoder(str(path))


def test_the_filter_takes_the_model_from_its_settings(folder: Path) -> None:
    passages = [Passage(f"d{n}", text) for n, text in enumerate(SENTENCES)]
    pairs = [Pair(f"Tell me about: {p.text[:30]}", p.text, positive_id=p.id) for p in passages]
    settings = FilterSection.model_validate(
        {
            "text": {"enabled": False},
            "duplicates": {"enabled": False},
            "language": {"enabled": False},
            "round_trip": {"enabled": False},
            "reranker": {"enabled": True, "model": str(folder), "candidates": 9},
        }
    )
    kept = {pair.positive_id for pair in filter_pairs(pairs, passages, settings).pairs}
    scorer = CrossEncoder(str(folder))
    expected = set()
    for pair in pairs:  # BM25 gives as rivals what shares a word with the query
        rivals = [p.text for p in passages if p.id != pair.positive_id]
        scores = scorer([(pair.query, pair.positive), *((pair.query, text) for text in rivals)])
        if scores[0] >= scores.max():
            expected.add(pair.positive_id)
    assert expected <= kept, "what is first among all passages is first among the candidates"
    assert len(kept) < len(pairs), "a random reranker does not put every source first"
