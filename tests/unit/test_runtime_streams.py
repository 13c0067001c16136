"""Streams, asyncio, several processes: same vectors, errors that surface, clean ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stm_retriever import ConfigError, DataError, Embedder, StmError
from stm_retriever.encoding import pool as pool_module
from stm_retriever.encoding.pool import EmbedderPool
from tests.tiny_retriever import WORDS

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"{first} {second}" for first in WORDS[:10] for second in WORDS[30:35]] + ["find", "find"]


def test_a_stream_gives_the_same_vectors_window_by_window(tiny_embedder: Embedder) -> None:
    expected = tiny_embedder.encode_document(TEXTS)
    parts = list(tiny_embedder.encode_document_stream(iter(TEXTS), window=20))
    assert [len(part) for part in parts] == [20, 20, 12]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)
    queries = np.concatenate(list(tiny_embedder.encode_query_stream(TEXTS, window=1000)))
    np.testing.assert_allclose(queries, tiny_embedder.encode_query(TEXTS), atol=1e-6)
    assert list(tiny_embedder.encode_document_stream(iter([]))) == []


def test_a_stream_reads_two_windows_ahead_at_most_and_its_memory_stays_flat(tiny_embedder: Embedder) -> None:
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for read in range(12_000):
            yield f"red {read}"

    stream = tiny_embedder.encode_document_stream(source(), window=500)
    peaks = []
    tracemalloc.start()
    try:
        for number, part in enumerate(stream):
            assert len(part) == 500
            assert read <= (number + 3) * 500
            if number in (5, 23):
                peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert len(peaks) == 2
    assert peaks[1] < peaks[0] * 1.5


def test_what_stops_a_stream_is_raised_after_the_windows_before_it(tiny_embedder: Embedder) -> None:
    class GoneError(Exception):
        pass

    def breaks() -> Iterator[str]:
        yield from TEXTS[:6]
        raise GoneError("the connection is gone")

    stream = tiny_embedder.encode_document_stream(breaks(), window=3)
    assert [len(next(stream)) for _ in range(2)] == [3, 3]
    with pytest.raises(GoneError):
        next(stream)
    stream = tiny_embedder.encode_document_stream([*TEXTS[:5], " "], window=2)
    assert [len(next(stream)) for _ in range(2)] == [2, 2]
    with pytest.raises(DataError, match="text number 5 is empty"):
        next(stream)
    with pytest.raises(ConfigError, match="single string"):
        next(tiny_embedder.encode_document_stream("red"))
    with pytest.raises(ConfigError, match="window=0"):
        next(tiny_embedder.encode_document_stream(["red"], window=0))


def test_a_stream_that_is_left_early_leaves_no_thread_behind(tiny_embedder: Embedder) -> None:
    stream = tiny_embedder.encode_document_stream(iter(TEXTS), window=5)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stm-tokenise")]


def test_truncation_in_a_stream_is_told_once(
    tiny_embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    long = "red " * 100
    list(tiny_embedder.encode_document_stream([long, "sea", long, long], window=2))
    assert [record.getMessage()[:18] for record in caplog.records] == ["3 of 4 document te"]


def test_a_stream_tells_its_progress(tiny_embedder: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    tell = lambda done, total: seen.append((done, total))  # noqa: E731
    list(tiny_embedder.encode_document_stream(TEXTS[:50], window=10, show_progress=tell))
    assert seen[-1] == (50, 0)
    list(tiny_embedder.encode_document_stream(TEXTS[:50], window=10, show_progress=True))
    assert "encoding: 50text" in capsys.readouterr().err


async def test_the_event_loop_goes_on_while_texts_are_encoded(
    tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    at_work = 0
    most = 0
    lock = threading.Lock()
    encode = tiny_embedder._encode

    def slow(*arguments: object) -> object:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        assert release.wait(20)
        with lock:
            at_work -= 1
        return encode(*arguments)

    monkeypatch.setattr(tiny_embedder, "_encode", slow)
    tasks = [asyncio.create_task(tiny_embedder.aencode_query([text])) for text in TEXTS[:20]]
    tasks.append(asyncio.create_task(tiny_embedder.aencode_document(["sea"])))
    for _ in range(1000):
        await asyncio.sleep(0.002)  # runs only if the loop is free
        if most == 4:
            break
    release.set()
    found = await asyncio.gather(*tasks)
    assert most == 4, "calls at a time"
    monkeypatch.undo()
    np.testing.assert_allclose(np.concatenate(found[:20]), tiny_embedder.encode_query(TEXTS[:20]), atol=1e-6)
    np.testing.assert_allclose(found[20], tiny_embedder.encode_document(["sea"]), atol=1e-6)
    with pytest.raises(DataError):
        await tiny_embedder.aencode_query([""])


@pytest.fixture(scope="module")
def processes(tiny_embedder: Embedder) -> Iterator[EmbedderPool]:
    with EmbedderPool(tiny_embedder, processes=2) as made:
        yield made


def test_processes_give_the_same_vectors_in_order(
    processes: EmbedderPool, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_CHUNK", 7)
    np.testing.assert_allclose(
        processes.encode_document(TEXTS), tiny_embedder.encode_document(TEXTS), atol=1e-6
    )
    parts = list(processes.encode_query_stream(iter(TEXTS), window=5))
    np.testing.assert_allclose(np.concatenate(parts), tiny_embedder.encode_query(TEXTS), atol=1e-6)
    assert processes.encode_query([]).shape == (0, tiny_embedder.dimension)


def test_errors_of_processes_surface_and_the_pool_lives_on(
    processes: EmbedderPool, tiny_embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match="text number 2 is empty"):
        processes.encode_document(["red", "sea", ""])
    processes.encode_document(["red " * 100, "sea"])
    assert "1 of 2 document texts are longer than tiny reads" in caplog.text
    for number in (0, -1):
        with pytest.raises(ConfigError, match=f"processes={number}"):
            EmbedderPool(tiny_embedder, processes=number)


def test_a_process_that_dies_is_a_typed_error(tiny_embedder: Embedder) -> None:
    with EmbedderPool(tiny_embedder, processes=1) as made:
        made.encode_query(["red"])
        for process in list(made._pool._processes.values()):
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(StmError, match="died without a word"):
            for _ in range(100):
                made.encode_query(["red"])


ENDLESS = """
import sys, itertools
from stm_retriever import Embedder
from stm_retriever.encoding.pool import EmbedderPool

def main():
    embedder = Embedder.load(sys.argv[1], threads=2)
    texts = (f"red {number}" for number in itertools.count())
    if sys.argv[2] == "pool":
        with EmbedderPool(embedder, processes=2) as pool:
            for part in pool.encode_document_stream(texts, window=64):
                print([p.pid for p in pool._pool._processes.values()], flush=True)
    else:
        for part in embedder.encode_document_stream(texts, window=64):
            print("part", flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize("how", ["alone", "pool"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_kill_leave_nothing_running(
    tiny_onnx_retriever: Path, tmp_path: Path, how: str, sent: signal.Signals
) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tiny_onnx_retriever), how],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    line = [process.stdout.readline() for _ in range(3)][-1]
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (-sent, 130 if sent == signal.SIGINT else -sent)
    assert "KeyboardInterrupt" in error or sent == signal.SIGKILL
    children = [int(pid) for pid in line.strip("[]\n").split(",")] if how == "pool" else []
    until = time.monotonic() + 20
    while time.monotonic() < until and any(_is_alive(pid) for pid in children):
        time.sleep(0.02)
    assert not [pid for pid in children if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    gc.collect()
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"
