"""How fast a retriever folder is: what is asked, and what is counted; no time is asserted."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from stm_retriever import Embedder
from stm_retriever.errors import ArtifactMismatchError
from stm_retriever.onnx_session import usable_cpus
from stm_training.pipeline.speed import cpu_name, measure_speed, timed


@pytest.fixture
def two_variants(tmp_path: Path) -> Path:
    from tests.tiny_retriever import make_tiny_retriever

    return make_tiny_retriever(tmp_path / "model", variants=("fp32", "w8"))


def test_the_warm_up_comes_first_and_is_not_counted() -> None:
    asked: list[list[str]] = []

    assert len(timed(asked.append, [["a"], ["b"], ["c"]])) == 3
    assert asked == [["a"], ["a"], ["b"], ["c"]]
    asked.clear()
    assert len(timed(asked.append, [["a", "b"]], warm_up=["z"])) == 1
    assert asked == [["z"], ["a", "b"]]


def test_no_further_call_is_begun_once_the_time_is_up() -> None:
    asked: list[list[str]] = []

    assert len(timed(asked.append, [["a"], ["b"], ["c"]], limit=0.0)) == 1
    assert asked == [["a"], ["a"]]


def test_every_variant_is_timed_on_few_texts(two_variants: Path) -> None:
    texts = [f"red apple {number}" for number in range(500)]

    found = measure_speed(two_variants, texts, texts)

    assert set(found.variants) == {"fp32", "w8"}
    assert found.threads == usable_cpus()
    assert found.cpu == cpu_name() != ""
    for one in found.variants.values():
        assert (one.queries, one.documents) == (20, 64)
        assert one.query_ms > 0
        assert one.documents_per_s > 0


def test_fewer_texts_are_all_taken_and_none_gives_no_figures(two_variants: Path) -> None:
    found = measure_speed(two_variants, ["red"], ["blue", "green"])

    assert {(one.queries, one.documents) for one in found.variants.values()} == {(1, 2)}
    assert measure_speed(two_variants, [], ["blue"]).variants == {}


def test_a_variant_that_this_cpu_does_not_run_rightly_is_left_out_and_named(
    two_variants: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = Embedder.load

    def picky(folder: Path, *, variant: str) -> Embedder:
        if variant == "w8":
            raise ArtifactMismatchError("other vectors on this CPU")
        return load(folder, variant=variant)

    monkeypatch.setattr(Embedder, "load", picky)

    assert set(measure_speed(two_variants, ["red"], ["blue"]).variants) == {"fp32"}
    assert "w8 was not timed: other vectors on this CPU" in caplog.text


def test_the_cpu_is_named_as_the_kernel_names_it(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: Fast  CPU @ 3 GHz\n", encoding="utf-8")

    assert cpu_name(file) == "Fast CPU @ 3 GHz"
    assert cpu_name(tmp_path / "none") in {platform.processor(), platform.machine()}
