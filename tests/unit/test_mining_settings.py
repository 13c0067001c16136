from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stm_training.mining.settings import PRESETS, MineSection


def test_the_default_band_is_in_quantiles_and_skips_the_nearest() -> None:
    section = MineSection()

    assert section.band is None
    assert section.band_quantiles is not None
    assert section.skip_top == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_sets_what_it_says_and_can_be_written_back(preset: str) -> None:
    section = MineSection.model_validate({"preset": preset})

    assert {name: getattr(section, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert MineSection.model_validate(section.model_dump(mode="json")) == section


def test_refine_is_the_papers_band() -> None:
    section = MineSection(preset="refine")

    assert (section.band, section.band_quantiles, section.skip_top) == ((0.5, 0.7), None, 5)


def test_given_fields_override_the_preset() -> None:
    section = MineSection(preset="margin", positive_share=0.9, pool=None)

    assert (section.positive_share, section.pool, section.pool_size) == (0.9, None, 1)


def test_a_band_of_ones_own_takes_the_place_of_the_presets() -> None:
    assert MineSection(band=(0.3, 0.6)).band_quantiles is None
    assert MineSection(preset="refine", band_quantiles=(0.1, 0.5)).band is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"band": (0.7, 0.5)}, "first must be the lower"),
        ({"band": (None, None)}, "no bound on either side"),
        ({"band_quantiles": (0.1, 1.5)}, "between 0 and 1"),
        ({"band": (0.1, 0.5), "band_quantiles": (0.1, 0.5)}, "both set"),
        ({"num_negatives": 4, "max_rank": 8}, "ranks 6 to 8 hold 3 candidates"),
        ({"preset": "margin", "num_negatives": 11}, "drawn among 10"),
        ({"preset": "refine", "miner": "bm25"}, "no fixed scale"),
        ({"preset": "margin", "absolute_margin": 0.05, "miner": "bm25"}, "no fixed scale"),
        ({"preset": "unheard"}, "'band', 'refine', 'margin' or 'ranks'"),
        ({"negatives": 3}, "Extra inputs"),
        ({"positive_share": 1.2}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MineSection.model_validate(given)


def test_every_field_is_described() -> None:
    assert all(field.description for field in MineSection.model_fields.values())
