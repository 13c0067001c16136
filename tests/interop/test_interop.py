"""Programs that know nothing of us give our vectors: encoders and causal decoders in all, prompts included.

`make interop` makes the environments, runs this, and writes what the model cards list as tested.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.exported_models import TEXTS, exported, exported_minilm
from tests.interop.environments import is_made, reason
from tests.interop.matrix import BIDIRECTIONAL, CAUSAL, CELLS, ENCODER, MINILM, Cell, run_cell, write_results

pytestmark = [pytest.mark.interop, pytest.mark.timeout(3600)]

PROMISED = (ENCODER, CAUSAL, MINILM)
# These run the ONNX file, which attends in both directions by itself.
_RUN_OUR_GRAPH = (
    "fastembed",
    "onnxruntime and tokenizers alone",
    "optimum-onnx",
    "sentence-transformers, ONNX backend",
)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, dict[str, Any]]:
    """Every cell, run once; written to the file that STM_INTEROP_RESULTS names, if it names one."""
    if not any(is_made(cell.environment) for cell in CELLS):
        pytest.skip("no environment is made; run: make interop")
    folders = {
        ENCODER: exported("bert").folder,
        CAUSAL: exported("qwen3").folder,
        BIDIRECTIONAL: exported("qwen3", "bidirectional").folder,
    }
    try:
        folders[MINILM] = exported_minilm().folder
    except ImportError:
        pass  # its package is in the extra [demo]
    scratch = tmp_path_factory.mktemp("interop")
    rows = {cell: run_cell(cell, folders, TEXTS, scratch) for cell in CELLS}
    target = os.environ.get("STM_INTEROP_RESULTS")
    if target:
        write_results(Path(target), list(rows.values()))
    return rows


def results_of(matrix: dict[Cell, dict[str, Any]], cell: Cell) -> dict[str, Any]:
    if not is_made(cell.environment):
        pytest.skip(f"{cell.environment} is not made: {reason(cell.environment) or 'run: make interop'}")
    return dict(matrix[cell]["results"])


@pytest.mark.parametrize("kind", PROMISED)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_program_gives_our_vectors(matrix: dict[Cell, dict[str, Any]], cell: Cell, kind: str) -> None:
    results = results_of(matrix, cell)
    if kind not in results:
        pytest.skip("the MiniLM package is not installed")
    assert results[kind]["agrees"], results[kind]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_bidirectional_decoder_agrees_where_our_graph_runs(
    matrix: dict[Cell, dict[str, Any]], cell: Cell
) -> None:
    found = results_of(matrix, cell)[BIDIRECTIONAL]
    if cell.program in _RUN_OUR_GRAPH:
        assert found["agrees"], found
    elif matrix[cell]["versions"].get("transformers", "5").startswith("4"):
        assert not found["agrees"], "transformers 4 unmasks it now: the card and the doctor may say so"


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.conflicts], ids=lambda cell: cell.name)
def test_an_environment_that_pip_refuses_names_the_conflict(cell: Cell) -> None:
    if is_made(cell.environment):
        pytest.fail(f"{cell.environment} installs now: take conflicts=True from its cell")
    if reason(cell.environment) is None:
        pytest.skip("never tried; run: make interop")
    assert "conflict" in str(reason(cell.environment)).lower()
