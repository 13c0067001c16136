"""``stm-train encode``: shards, resuming after a kill, several processes, Ray."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stm_retriever import ArtifactMismatchError, ConfigError, DataError, Embedder
from stm_training.commands import encode
from stm_training.encoding.shards import MANIFEST, read_vectors, shard_path
from tests.tiny_retriever import WORDS, make_tiny_retriever

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"{first} {second} {first}" for first in WORDS[:9] for second in WORDS[10:14]]


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    encode.add_parser(parser.add_subparsers(dest="command"))
    return encode.run(parser.parse_args(["encode", *arguments]))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_shards_hold_the_embedder_s_vectors_in_the_order_of_the_input(
    tiny_onnx_retriever: Path, tiny_embedder: Embedder, documents: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    common = (str(documents), "--model", str(tiny_onnx_retriever), "--shard-size", "10")
    assert run(*common, "--out", str(out)) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        MANIFEST,
        *(shard_path(out, shard).name for shard in range(4)),
    ]
    ids, vectors = read_vectors(out)
    assert ids == [f"d{number}" for number in range(len(TEXTS))]
    np.testing.assert_allclose(vectors, tiny_embedder.encode_document(TEXTS), atol=1e-6)
    assert json.loads((out / MANIFEST).read_text())["fingerprint"] == tiny_embedder.fingerprint

    assert run(*common, "--out", str(tmp_path / "queries"), "--role", "query", "--precision", "int8") == 0
    _, queries = read_vectors(tmp_path / "queries")
    stored = Embedder.load(tiny_onnx_retriever, threads=1, precision="int8").encode_query(TEXTS)
    assert queries.dtype == np.int8
    assert np.abs(queries.astype(int) - stored).max() <= 1


def test_several_processes_write_the_same(
    tiny_onnx_retriever: Path, tiny_embedder: Embedder, documents: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    model = str(tiny_onnx_retriever)
    assert run(str(documents), "--model", model, "--out", out, "--processes", "2", "--shard-size", "20") == 0
    np.testing.assert_allclose(
        read_vectors(tmp_path / "out")[1], tiny_embedder.encode_document(TEXTS), atol=1e-6
    )


def test_a_killed_run_goes_on_with_the_shard_that_it_was_at(
    tiny_onnx_retriever: Path, tiny_embedder: Embedder, tmp_path: Path
) -> None:
    texts = [f"{text} {number}" for number in range(400) for text in TEXTS]
    documents = tmp_path / "documents.jsonl"
    documents.write_text(
        "".join(json.dumps({"_id": str(number), "text": text}) + "\n" for number, text in enumerate(texts))
    )
    out = tmp_path / "out"
    arguments = (
        str(documents),
        "--model",
        str(tiny_onnx_retriever),
        "--out",
        str(out),
        "--shard-size",
        "200",
    )
    script = f"from tests.integration.test_encode_command import run; run(*{arguments!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    until = time.monotonic() + 60
    while process.poll() is None and not shard_path(out, 3).is_file() and time.monotonic() < until:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL, "it ended before it could be killed"
    with pytest.raises(DataError, match=r"lacks \d+ of 72 shards"):
        read_vectors(out)
    first = shard_path(out, 0)
    before = first.stat().st_mtime_ns
    assert run(*arguments) == 0
    assert first.stat().st_mtime_ns == before
    ids, vectors = read_vectors(out)
    assert ids == [str(number) for number in range(len(texts))]
    np.testing.assert_allclose(vectors, tiny_embedder.encode_document(texts), atol=1e-6)
    assert not list(out.glob(".*"))


def test_another_model_input_or_precision_in_the_same_folder_is_an_error(
    tiny_onnx_retriever: Path, documents: Path, tmp_path: Path
) -> None:
    out, model = str(tmp_path / "out"), str(tiny_onnx_retriever)
    assert run(str(documents), "--model", model, "--out", out) == 0
    other = str(make_tiny_retriever(tmp_path / "other", seed=1))
    with pytest.raises(ArtifactMismatchError, match=r"fingerprint .* there, .* now"):
        run(str(documents), "--model", other, "--out", out)
    with pytest.raises(ArtifactMismatchError, match="precision 'float32' there, 'binary' now"):
        run(str(documents), "--model", model, "--out", out, "--precision", "binary")
    changed = tmp_path / "changed.jsonl"
    changed.write_text(documents.read_text().replace("find", "found", 1))
    with pytest.raises(ArtifactMismatchError, match="input_sha256"):
        run(str(changed), "--model", model, "--out", out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        run(str(documents), "--model", model, "--out", str(tmp_path / "full"))


def test_a_damaged_manifest_and_impossible_numbers_are_typed_errors(
    tiny_onnx_retriever: Path, documents: Path, tmp_path: Path
) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    common = (str(documents), "--model", str(tiny_onnx_retriever), "--out", str(tmp_path))
    with pytest.raises(DataError, match="does not say what was encoded"):
        run(*common)
    with pytest.raises(ConfigError, match="--shard-size 0"):
        run(*common, "--shard-size", "0")
    with pytest.raises(ConfigError, match="--processes 0"):
        run(*common, "--processes", "0")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra [ray])")
def test_ray_writes_the_same_shards_and_resumes(
    tiny_onnx_retriever: Path, tiny_embedder: Embedder, documents: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (str(documents), "--model", str(tiny_onnx_retriever), "--out", str(out))
    script = (
        "from tests.integration.test_encode_command import run; "
        f"run(*{arguments!r}, '--engine', 'ray', '--processes', '2', '--shard-size', '10')"
    )
    environment = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True, timeout=240)
    expected = tiny_embedder.encode_document(TEXTS)
    np.testing.assert_allclose(read_vectors(out)[1], expected, atol=1e-6)
    kept = shard_path(out, 0).stat().st_mtime_ns
    shard_path(out, 2).unlink()
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True, timeout=240)
    np.testing.assert_allclose(read_vectors(out)[1], expected, atol=1e-6)
    assert shard_path(out, 0).stat().st_mtime_ns == kept
