"""SIGKILL at random instants under a mixed load of writes, snapshots and compactions."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.manifest import EmbedderRef
from tests.integration.index_load import DIMENSION, document_of, vector_of

ROOT = Path(__file__).parents[2]
EMBEDDER = EmbedderRef(name="none", fingerprint="sha256:0", dimension=DIMENSION, variant="fp32")
KILLS = 50

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")


def _run_and_kill(index: Path, seed: int, seconds: float) -> list[list[Any]]:
    """Run the load, kill it some time after its first acknowledgement; return what it acknowledged."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.index_load", str(index), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        rest = child.communicate()[0]
    finally:
        child.kill()
        child.wait()
    return [json.loads(line) for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")]


def _apply(known: dict[str, str], step: list[Any]) -> dict[str, str]:
    kind, what = step
    if kind == "put":
        return {**known, **what}
    if kind == "delete":
        return {name: text for name, text in known.items() if name not in what}
    return known


def _check(index: Path, known: dict[str, str]) -> dict[str, str]:
    """All of what was acknowledged is there; at most one more call came into effect, as a whole."""
    folder = IndexFolder(index, read_only=True)
    try:
        documents = list(folder.documents())
        found = {document.id: document.text for document in documents}
        assert documents == [document_of(document.id, document.text) for document in documents]
        changed = {name for name in known.keys() | found.keys() if known.get(name) != found.get(name)}
        if changed:
            added = {found[name].rsplit(" ", 1)[0] for name in changed if name in found}
            assert len(added) <= 1  # one step's texts share their beginning
            assert not (added and changed - found.keys())  # and a step either puts or deletes
            assert len(changed) <= 8
        assert folder.count() == len(found)
        for name, text in list(found.items())[:: max(len(found) // 10, 1)]:
            hits = folder.search(vector_of(text)[None], 3)[0]
            assert hits[0][0].id == name
            assert hits[0][1] == pytest.approx(1, abs=1e-5)
        for group in (0, 3):
            expected = {name for name, text in found.items() if len(text) % 7 == group}
            assert {document.id for document in folder.documents(where={"group": group})} == expected
        assert len(folder.lexical(["words"], 1000)[0]) == len(found)
        return found
    finally:
        folder.close()


def _kill_many(index: Path, kind: str, kills: int) -> None:
    dice = random.Random(kind)
    IndexFolder.create(index, embedder=EMBEDDER, kind=kind).close()
    known: dict[str, str] = {}
    steps = 0
    for number in range(kills):
        acknowledged = _run_and_kill(index, number, dice.uniform(0, 0.25))
        steps += len(acknowledged)
        for step in acknowledged:
            known = _apply(known, step)
        known = _check(index, known)
    assert steps > 5 * kills
    partial = [path.name for path in index.iterdir() if path.name.endswith(".partial")]
    folder = IndexFolder(index)
    folder.compact()
    folder.close()
    assert len(partial) <= kills
    assert not list(index.glob("*.faiss*.partial"))
    assert _check(index, known) == known


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_nothing_acknowledged_is_lost_and_nothing_is_half_made(tmp_path: Path, kind: str) -> None:
    _kill_many(tmp_path / "index", kind, KILLS)


def test_a_few_kills_in_every_run_of_the_tests(tmp_path: Path) -> None:
    _kill_many(tmp_path / "index", "flat", 4)
