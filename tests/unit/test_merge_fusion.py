"""Fused vectors and the lambda curve."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, DataError
from stm_training.merge.fusion import LAMBDA, FusionCurve, FusionSet, fuse, lambda_curve

Vectors = NDArray[np.float32]


def unit(seed: int, rows: int = 6, size: int = 5) -> Vectors:
    values = np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)
    scaled: Vectors = values / np.linalg.norm(values, axis=1, keepdims=True)
    return scaled


def test_the_ends_are_the_base_and_the_tuned_model() -> None:
    base, tuned = unit(0), unit(1)
    np.testing.assert_allclose(fuse(base, tuned, 0.0), base, atol=1e-6)
    np.testing.assert_allclose(fuse(base, tuned, 1.0), tuned, atol=1e-6)


def test_a_fused_vector_is_the_weighted_sum_at_unit_length_with_refines_share() -> None:
    base, tuned = unit(0), unit(1)
    expected = 0.35 * tuned.astype(np.float64) + 0.65 * base
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    fused = fuse(base, tuned)
    assert LAMBDA == 0.35
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, expected, atol=1e-6)


def test_unusable_shares_shapes_and_vectors_that_cancel_out_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"lambda is 1\.2"):
        fuse(unit(0), unit(1), 1.2)
    with pytest.raises(ConfigError, match=r"\(6, 5\).*\(6, 4\)"):
        fuse(unit(0), unit(1, size=4))
    opposed = unit(0)
    opposed[3] = -opposed[3]
    with pytest.raises(DataError, match="row 3"):
        fuse(unit(0), opposed, 0.5)


def fusion_set(name: str, *, in_domain: bool, slope: float) -> FusionSet:
    """Scores rise with the tuned model's share by ``slope``; base and tuned are at right angles."""
    base, tuned = np.eye(2, dtype=np.float32)[:1], np.eye(2, dtype=np.float32)[1:]

    def score(queries: Vectors, documents: Vectors) -> Mapping[str, float]:
        assert np.array_equal(queries, documents)
        share = float(queries[0, 1] / queries[0].sum())
        return {"q1": 0.5 + slope * share, "q2": 0.5 + slope * share}

    return FusionSet(name, in_domain, base, base, tuned, tuned, score)


SETS = (
    fusion_set("dev", in_domain=True, slope=0.2),
    fusion_set("guard", in_domain=False, slope=-0.02),
    fusion_set("other", in_domain=False, slope=-0.1),
)


def test_the_curve_has_a_point_per_lambda_with_scores_in_and_out_of_the_domain() -> None:
    curve = lambda_curve(SETS, (0.5,))
    assert [point.share for point in curve.points] == [0.0, 0.35, 0.5, 1.0]
    at = curve.at(0.5)
    assert at is not None
    assert at.domain == pytest.approx(0.6)
    assert at.general == pytest.approx(0.5 - (0.01 + 0.05) / 2)
    assert at.worst_loss == pytest.approx(5.0)
    assert set(at.scores["guard"]) == {"q1", "q2"}
    assert curve.at(0.42) is None
    assert FusionCurve.model_validate_json(curve.model_dump_json()) == curve


def test_the_share_is_chosen_by_the_loss_that_is_allowed_on_every_other_set() -> None:
    curve = lambda_curve(SETS, (0.05, 0.2, 0.5))
    chosen = [curve.choose_by(loss) for loss in (0.0, 0.6, 4.0, 20.0)]
    assert [point.share if point else None for point in chosen] == [0.0, 0.05, 0.35, 1.0]


def test_the_cost_is_stated() -> None:
    cost = lambda_curve(SETS[:1]).cost
    assert (cost.encoders, cost.latency, cost.memory) == (2, 2.0, 2.0)
    assert "2 times the time and 2 times the memory" in cost.statement


def test_a_curve_needs_a_set_of_the_domain_and_without_others_loses_nothing() -> None:
    with pytest.raises(ConfigError, match="in-domain"):
        lambda_curve(SETS[1:])
    alone = lambda_curve(SETS[:1])
    assert {point.general for point in alone.points} == {None}
    best = alone.choose_by(0.0)
    assert best is not None and best.share == 1.0
