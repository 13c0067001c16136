"""Any text gives a unit vector or a typed error; order, company and threads never change it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stm_retriever import DataError, Embedder
from tests.exported_models import exported

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


@pytest.fixture(scope="module", params=["tiny", "decoder"])
def embedder(request: pytest.FixtureRequest, tiny_embedder: Embedder) -> Embedder:
    if request.param == "tiny":
        return tiny_embedder
    return Embedder.load(exported("qwen3").folder, threads=2)


def encodable(text: str) -> bool:
    return bool(text.strip()) and not any("\ud800" <= character <= "\udfff" for character in text)


@settings(max_examples=60, deadline=None)
@given(ANY_TEXT)
@example("")
@example("\u0000\u0007\u200b\ufeff")
@example("\ud83d")
@example("🦉🏽‍🚀" * 30)
@example("e\u0301" * 40)
@example("\u202eright to left\u202c")
@example("</s>[CLS][PAD]<|endoftext|>")
def test_any_text_gives_a_unit_vector_or_a_typed_error(embedder: Embedder, text: str) -> None:
    for encode in (embedder.encode_query, embedder.encode_document):
        if not encodable(text):
            with pytest.raises(DataError, match=r"empty|lone surrogate"):
                encode([text])
            continue
        vectors = encode([text])
        assert vectors.shape == (1, embedder.dimension)
        assert np.isfinite(vectors).all()
        assert abs(np.linalg.norm(vectors) - 1) < 1e-5


@pytest.mark.parametrize("unit", ["a", "word ", "🦉", "\u0301"])
def test_a_million_characters_give_the_vector_of_their_beginning(embedder: Embedder, unit: str) -> None:
    long = unit * (1_000_000 // len(unit))
    vector = embedder.encode_document([long])[0]
    assert abs(np.linalg.norm(vector) - 1) < 1e-5
    assert embedder.count_truncated([long], "document") in (0, 1)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(ANY_TEXT.filter(encodable), min_size=1, max_size=25),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
def test_batches_in_any_order_from_any_number_of_threads_give_the_same_vectors(
    embedder: Embedder, texts: list[str], chance: random.Random, threads: int
) -> None:
    expected = {text: embedder.encode_document([text])[0] for text in texts}
    orders = [chance.sample(texts, len(texts)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for order, found in zip(orders, pool.map(embedder.encode_document, orders), strict=True):
            for text, vector in zip(order, found, strict=True):
                np.testing.assert_allclose(vector, expected[text], atol=2e-6)


def test_a_stream_and_other_numbers_of_threads_agree(tiny_onnx_retriever: Path) -> None:
    texts = [f"{'sea ' * (number % 40)}{number}" for number in range(300)]
    one = Embedder.load(tiny_onnx_retriever, threads=1).encode_document(texts)
    many = Embedder.load(tiny_onnx_retriever, threads=3)
    np.testing.assert_allclose(many.encode_document(texts), one, atol=2e-6)
    parts = list(many.encode_document_stream(iter(texts), window=37))
    np.testing.assert_allclose(np.concatenate(parts), one, atol=2e-6)
