"""sentence-transformers loads a retriever folder unchanged and gives the same vectors, prompts included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stm_retriever import Embedder
from stm_retriever.tokenization import TextTokenizer
from stm_retriever.types import Role
from tests.exported_models import PROMPTS, TEXTS, Exported, exported, exported_minilm

sentence_transformers = pytest.importorskip("sentence_transformers")

MODELS: dict[str, Callable[[], Exported]] = {
    "an encoder with prompts": lambda: exported("bert"),
    "a causal decoder with prompts": lambda: exported("qwen3"),
    "a decoder whose tokenizer puts a token first": lambda: exported("llama"),
    "MiniLM, without prompts": exported_minilm,
}
WITH_PROMPTS = [name for name in MODELS if name != "MiniLM, without prompts"]


def load(model: Exported) -> object:
    return sentence_transformers.SentenceTransformer(
        str(model.folder), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
    )


@pytest.mark.parametrize("name", MODELS)
def test_queries_and_documents_get_the_same_vectors_as_from_our_embedder(name: str) -> None:
    model = MODELS[name]()
    other = load(model)
    ours = Embedder.load(model.folder, threads=1)
    assert np.abs(other.encode_query(TEXTS) - ours.encode_query(TEXTS)).max() <= 1e-5
    assert np.abs(other.encode_document(TEXTS) - ours.encode_document(TEXTS)).max() <= 1e-5


@pytest.mark.parametrize("name", WITH_PROMPTS)
def test_the_prompts_are_applied_and_not_forced_on_plain_texts(name: str) -> None:
    other = load(MODELS[name]())
    query, document, plain = (
        encode(["What helps against a runny nose?"])
        for encode in (other.encode_query, other.encode_document, other.encode)
    )
    assert np.abs(query - document).max() > 1e-3
    assert np.abs(query - plain).max() > 1e-3
    assert np.abs(document - plain).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_its_tokenizer_gives_our_token_ids(name: str) -> None:
    model = MODELS[name]()
    other = load(model)
    ours = Embedder.load(model.folder, threads=1).tokenizer
    assert isinstance(ours, TextTokenizer)
    roles: tuple[Role, ...] = ("query", "document")
    for role in roles:
        prompt = model.manifest.prompts.of(role)
        for text, ids in zip(TEXTS, ours.encode(TEXTS, role), strict=True):
            theirs = other.tokenizer(prompt + text, truncation=True)
            assert theirs["input_ids"] == ids.tolist(), text
            assert set(theirs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("name", MODELS)
def test_length_similarity_and_prompts_are_read_from_the_folder(name: str) -> None:
    model = MODELS[name]()
    other = load(model)
    assert other.max_seq_length == model.manifest.max_length
    assert other.similarity_fn_name == "cosine"
    wanted = PROMPTS if name in WITH_PROMPTS else type(PROMPTS)()
    assert {role: other.prompts.get(role, "") for role in ("query", "document")} == wanted.model_dump()
