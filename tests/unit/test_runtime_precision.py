"""Cut and stored vectors: Matryoshka, int8 with a fixed scale, bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm_retriever import ConfigError, Embedder
from stm_retriever.encoding.precision import from_stored, int8_limit, to_stored, unit
from stm_retriever.folder import read_manifest, write_manifest
from tests.tiny_retriever import make_tiny_retriever

TEXTS = ["red apple", "sea", "a doctor and a heart", "red apple"]


@pytest.fixture(scope="module")
def matryoshka(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_retriever(tmp_path_factory.mktemp("matryoshka") / "model")
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"dimensions_allowed": [8, 16, 32]}))
    return folder


def test_cut_vectors_are_the_first_components_at_length_one(matryoshka: Path) -> None:
    whole = Embedder.load(matryoshka, threads=1).encode_document(TEXTS)
    made = Embedder.load(matryoshka, threads=1, dimension=8)
    assert made.dimension == 8
    np.testing.assert_allclose(made.encode_document(TEXTS), unit(whole[:, :8]), atol=1e-6)
    assert made.encode_query([]).shape == (0, 8)


def test_only_the_lengths_of_the_manifest_are_allowed(matryoshka: Path, tiny_onnx_retriever: Path) -> None:
    with pytest.raises(ConfigError, match=r"dimension=12.*8, 16, 32"):
        Embedder.load(matryoshka, dimension=12)
    with pytest.raises(ConfigError, match=r"dimension=16.*cut to 32;"):
        Embedder.load(tiny_onnx_retriever, dimension=16)


def test_stored_vectors_have_their_types_and_shapes(matryoshka: Path) -> None:
    whole = Embedder.load(matryoshka, threads=1, dimension=16).encode_document(TEXTS)
    for precision, dtype, width in (("int8", np.int8, 16), ("binary", np.uint8, 2)):
        made = Embedder.load(matryoshka, threads=1, dimension=16, precision=precision)
        found = made.encode_document(TEXTS)
        assert (found.dtype, found.shape, made.precision) == (dtype, (4, width), precision)
        np.testing.assert_array_equal(found, to_stored(whole, precision))
        np.testing.assert_array_equal(
            np.concatenate(list(made.encode_document_stream(TEXTS, window=2))), found
        )
        assert made.encode_query([]).shape == (0, width) and made.encode_query([]).dtype == dtype


def test_bits_are_packed_as_numpy_packs_them() -> None:
    vector = np.array([[0.5, -0.5, 0.5, -0.5, -0.1, -0.1, -0.1, 0.1]], np.float32)
    assert to_stored(vector, "binary").tolist() == [[0b10100001]]


@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 64, 384, 1024]))
def test_int8_keeps_cosines_and_does_not_depend_on_the_other_vectors(seed: int, dimension: int) -> None:
    vectors = unit(np.random.default_rng(seed).standard_normal((6, dimension)).astype(np.float32))
    stored = to_stored(vectors, "int8")
    for row in range(6):
        np.testing.assert_array_equal(to_stored(vectors[row : row + 1], "int8")[0], stored[row])
    found = from_stored(stored, "int8")
    assert (found * vectors).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(found @ found.T, vectors @ vectors.T, atol=0.02)


def test_int8_s_scale_is_the_documented_one_and_larger_components_are_cut_off_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert int8_limit(16) == 1.0
    assert int8_limit(1024) == 0.25
    vector = np.zeros((1, 1024), np.float32)
    vector[0, 0], vector[0, 1] = 0.9, -0.25
    stored = to_stored(vector, "int8")
    assert stored[0, :3].tolist() == [127, -127, 0]
    assert "1 of 1024 components are beyond int8's range" in caplog.text


def test_impossible_precisions_are_errors(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model", dimension=12)
    with pytest.raises(ConfigError, match=r"precision='int4'.*float32, int8, binary"):
        Embedder.load(folder, precision="int4")
    with pytest.raises(ConfigError, match="length 12 do not"):
        Embedder.load(folder, precision="binary")
