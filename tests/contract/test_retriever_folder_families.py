"""Every promised family goes through export, and the light runtime gives the torch model's vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stm_retriever import Embedder
from stm_retriever.types import Role
from stm_training.finetune.backbone import BackboneSpec, load_backbone
from tests.exported_models import TEXTS, Exported, exported
from tests.tiny_models import DECODERS, FAMILIES

# Unmasked, the other decoders only differ in their windows; they run with -m slow.
_ALWAYS_UNMASKED = "qwen3"
CASES = [(family, "auto") for family in FAMILIES] + [
    pytest.param(family, "bidirectional", marks=() if family == _ALWAYS_UNMASKED else pytest.mark.slow)
    for family in DECODERS
]


def torch_vectors(model: Exported, role: Role, attention: str) -> np.ndarray:
    """Each text alone and unpadded, in a model loaded from where the export came from."""
    import torch

    backbone = load_backbone(BackboneSpec(source=str(model.source), attention=attention))  # type: ignore[arg-type]
    vectors = []
    with torch.inference_mode():
        for ids in backbone.tokenizer.encode(TEXTS, role):
            row = torch.from_numpy(ids[None])
            vectors.append(backbone(row, torch.ones_like(row))[1][0].numpy())
    return np.stack(vectors)


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_a_family_is_served_with_the_vectors_of_the_torch_model(family: str, attention: str) -> None:
    model = exported(family, attention)  # type: ignore[arg-type]
    embedder = Embedder.load(model.folder, threads=1)
    queries, documents = embedder.encode_query(TEXTS), embedder.encode_document(TEXTS)
    assert np.abs(queries - torch_vectors(model, "query", attention)).max() <= 1e-5
    assert np.abs(documents - torch_vectors(model, "document", attention)).max() <= 1e-5
    assert np.abs(queries - documents).max() > 1e-3, "the two prompts must make a difference"
    report = json.loads((model.folder / "onnx" / "parity.json").read_text("utf-8"))["fp32"]
    assert report["native"] is not None, "transformers' own forward should have been compared"
    assert report["max_abs_diff"] <= 1e-5


def test_unmasking_a_decoder_changes_its_vectors_and_is_written_down() -> None:
    causal, unmasked = exported(_ALWAYS_UNMASKED), exported(_ALWAYS_UNMASKED, "bidirectional")
    assert causal.manifest.attention == "causal"
    assert unmasked.manifest.attention == "bidirectional"
    assert causal.manifest.fingerprint != unmasked.manifest.fingerprint
    vectors = [Embedder.load(model.folder, threads=1).encode_query(TEXTS) for model in (causal, unmasked)]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    configs = [json.loads((model.folder / "config.json").read_text("utf-8")) for model in (causal, unmasked)]
    assert configs[0].get("is_causal") is not False
    assert configs[1]["is_causal"] is False
    assert "ONNX only" not in (causal.folder / "README.md").read_text("utf-8")
    assert "ONNX only" in (unmasked.folder / "README.md").read_text("utf-8")
