"""From texts to vectors: prompts, order, batches, errors, threads, copies."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_retriever import (
    ArtifactMismatchError,
    ConfigError,
    DataError,
    Document,
    Embedder,
    ModelFolderError,
    Retriever,
    embedder,
)
from stm_retriever.folder import MANIFEST_NAME, Prompts, read_manifest, write_manifest
from stm_training.commands.index import add_in_batches
from tests.tiny_retriever import PROMPTS, WORDS, make_tiny_retriever

TEXTS = ["red apple", "What does a doctor do with a heart in the winter?", "sea", "zebra crossing, 42"]


def _runs(made: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each run of the graph, as they come."""
    rows: list[int] = []
    engine = made._open().runner.engine
    run: Callable[..., Any] = engine.run

    def counting(input_ids: Any, mask: Any, **more: Any) -> Any:
        rows.append(len(input_ids))
        return run(input_ids, mask, **more)

    monkeypatch.setattr(engine, "run", counting)
    return rows


def test_vectors_are_float32_of_length_one_in_the_order_of_the_texts(tiny_embedder: Embedder) -> None:
    vectors = tiny_embedder.encode_document(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, tiny_embedder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for row, text in zip(vectors, TEXTS, strict=True):
        np.testing.assert_allclose(row, tiny_embedder.encode_document([text])[0], atol=1e-6)


def test_queries_and_documents_get_different_vectors(tiny_embedder: Embedder) -> None:
    query, document = tiny_embedder.encode_query(TEXTS), tiny_embedder.encode_document(TEXTS)
    assert np.abs(query - document).max(axis=1).min() > 1e-2


def test_a_prompt_is_text_before_the_input(tiny_embedder: Embedder, tmp_path: Path) -> None:
    plain = Embedder.load(make_tiny_retriever(tmp_path / "plain", prompts=Prompts()), threads=1)
    np.testing.assert_allclose(
        tiny_embedder.encode_query(["red"]), plain.encode_document([PROMPTS.query + "red"]), atol=1e-6
    )


def test_no_texts_give_no_vectors(tiny_embedder: Embedder) -> None:
    assert tiny_embedder.encode_query([]).shape == (0, tiny_embedder.dimension)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join), min_size=1, max_size=12)
)
def test_batch_mates_and_their_order_never_change_a_vector(tiny_embedder: Embedder, texts: list[str]) -> None:
    together = tiny_embedder.encode_document(texts)
    backwards = tiny_embedder.encode_document(texts[::-1])[::-1]
    alone = np.concatenate([tiny_embedder.encode_document([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(backwards, alone, atol=1e-6)


def test_the_padding_side_never_changes_a_vector(tiny_embedder: Embedder) -> None:
    tokenizer, session = tiny_embedder.tokenizer, tiny_embedder._open().runner.engine.session
    ids = tokenizer.encode(TEXTS, "document")
    for side in ("left", "right"):
        input_ids, mask = tokenizer.pad(ids, side)
        found = session.run(["sentence_embedding"], {"input_ids": input_ids, "attention_mask": mask})[0]
        np.testing.assert_allclose(found, tiny_embedder.encode_document(TEXTS), atol=1e-6)


def test_equal_texts_are_encoded_once_and_come_back_everywhere(
    tiny_onnx_retriever: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Embedder.load(tiny_onnx_retriever, threads=1)
    rows = _runs(made, monkeypatch)
    texts = ["red", "a long text about the sea and the mountain", "red", "blue", "red"]
    vectors = made.encode_document(texts)
    assert sum(rows) == 3
    assert (vectors[0] == vectors[2]).all() and (vectors[0] == vectors[4]).all()
    np.testing.assert_allclose(vectors[3], made.encode_document(["blue"])[0], atol=1e-6)


def test_many_texts_pass_in_windows(tiny_onnx_retriever: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Embedder.load(tiny_onnx_retriever, threads=1)
    texts = [f"{first} {second}" for first in WORDS[:8] for second in WORDS[20:25]]
    expected = made.encode_document(texts)
    monkeypatch.setattr(embedder, "WINDOW", 7)
    np.testing.assert_allclose(made.encode_document(texts), expected, atol=1e-6)


def test_variants_that_are_not_batch_invariant_run_one_text_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_retriever(tmp_path / "model", variants=("fp32", "int8"))
    for variant, expected in (("fp32", [4]), ("int8", [1, 1, 1, 1])):
        made = Embedder.load(folder, variant=variant, threads=1)
        rows = _runs(made, monkeypatch)
        made.encode_document(TEXTS)
        assert rows == expected


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_bad_texts_are_errors_that_name_them(tiny_embedder: Embedder, method: str) -> None:
    encode = getattr(tiny_embedder, method)
    with pytest.raises(ConfigError, match=r"single string 'red'.*Pass \[text\]"):
        encode("red")
    with pytest.raises(DataError, match="text number 1 is empty"):
        encode(["red", " "])
    with pytest.raises(DataError, match="lone surrogate"):
        encode(["\udc80"])
    with pytest.raises(DataError, match="NoneType"):
        encode([None])


def test_truncated_texts_are_counted_and_told_once_per_call(
    tiny_embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    long = "red " * 100
    with caplog.at_level(logging.WARNING, logger="stm_retriever"):
        tiny_embedder.encode_document(["red", long, "blue", long])
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4 document texts are longer than tiny reads (64 tokens); what lies behind is not in their "
        "vectors. Split long documents, for instance with stm-train index --max-tokens."
    ]
    assert tiny_embedder.count_truncated(["red", long], "document") == 1


def test_indexing_by_command_leaves_the_warnings_of_later_calls_on(
    empty_retriever: Retriever, tiny_embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    long = "red " * 100
    add_in_batches(empty_retriever, [Document(id="a", text=long)], total=1, quiet=True)
    assert not caplog.records
    tiny_embedder.encode_document([long])
    assert len(caplog.records) == 1


def test_progress_is_told_to_a_function_or_shown_as_a_bar_on_stderr(
    tiny_embedder: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int]] = []
    tiny_embedder.encode_document(TEXTS, show_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)
    tiny_embedder.encode_document(TEXTS, show_progress=True)
    captured = capsys.readouterr()
    assert "encoding: 100%" in captured.err and "4/4" in captured.err
    assert captured.out == ""


def test_the_properties_are_those_of_the_manifest(tiny_embedder: Embedder, tiny_onnx_retriever: Path) -> None:
    manifest = read_manifest(tiny_onnx_retriever)
    assert tiny_embedder.manifest == manifest
    assert tiny_embedder.path == tiny_onnx_retriever
    assert (tiny_embedder.name, tiny_embedder.variant) == ("tiny", "fp32")
    assert (tiny_embedder.dimension, tiny_embedder.max_length) == (32, 64)
    assert tiny_embedder.prompts == PROMPTS
    assert tiny_embedder.fingerprint == manifest.fingerprint
    assert tiny_embedder.hub_name is None


def test_the_vector_goldens_are_what_comes_out(tiny_embedder: Embedder) -> None:
    assert tiny_embedder.manifest.vector_goldens
    for golden in tiny_embedder.manifest.vector_goldens:
        encode = tiny_embedder.encode_query if golden.role == "query" else tiny_embedder.encode_document
        np.testing.assert_allclose(encode([golden.text])[0], golden.vector, atol=1e-6)


def test_a_folder_without_our_onnx_file_names_the_export_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="stm-train export"):
        Embedder.load(tmp_path)


def test_a_changed_tokenizer_is_found_at_load(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["apple"], vocabulary["pear"] = vocabulary["pear"], vocabulary["apple"]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ArtifactMismatchError, match=r"becomes the tokens.*stm-train doctor"):
        Embedder.load(folder)


def test_a_missing_tokenizer_is_a_typed_error(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json.*cannot be read"):
        Embedder.load(folder)


def test_another_dimension_than_promised_is_a_typed_error(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model")
    write_manifest(folder, read_manifest(folder).model_copy(update={"dimension": 31}))
    with pytest.raises(ArtifactMismatchError, match=r"shape \(1, 32\).*promises \(1, 31\)"):
        Embedder.load(folder).encode_query(["red"])


def test_threads_share_one_embedder(tiny_embedder: Embedder) -> None:
    expected = tiny_embedder.encode_query(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: tiny_embedder.encode_query(TEXTS), range(16)):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_copy_by_pickle_opens_the_model_itself(tiny_embedder: Embedder) -> None:
    data = pickle.dumps(tiny_embedder)
    assert len(data) < 20_000
    copy = pickle.loads(data)
    np.testing.assert_array_equal(copy.encode_query(TEXTS), tiny_embedder.encode_query(TEXTS))


def test_a_copy_by_pickle_notices_another_model_at_the_path(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model")
    data = pickle.dumps(Embedder.load(folder))
    (folder / MANIFEST_NAME).unlink()
    other = make_tiny_retriever(tmp_path / "other", seed=1)
    (other / MANIFEST_NAME).rename(folder / MANIFEST_NAME)
    with pytest.raises(ArtifactMismatchError, match="holds another model now"):
        pickle.loads(data)


def _encode_in_child(made: Embedder, pipe: Any) -> None:
    pipe.send(made.encode_query(TEXTS))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_encodes_too(tiny_onnx_retriever: Path) -> None:
    made = Embedder.load(tiny_onnx_retriever, threads=2)
    expected = made.encode_query(TEXTS)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_encode_in_child, args=(made, theirs))
    child.start()
    try:
        assert ours.poll(30), "the child never answered"
        np.testing.assert_allclose(ours.recv(), expected, atol=1e-6)
    finally:
        child.kill()
        child.join()
