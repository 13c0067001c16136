"""Every family that we promise goes the whole way: train, merge, export, encode without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stm_retriever import Embedder
from stm_retriever.folder import Prompts
from stm_training.data.records import Pair
from stm_training.export.folder_writer import write_retriever_folder
from stm_training.finetune.backbone import BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.finetune.lora import full_deltas
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import train_expert
from stm_training.merge.apply import MergedModel
from stm_training.merge.recipe import MergeRecipe
from tests.tiny_models import FAMILIES, SENTENCES, build_tiny_model

PROMPTS = Prompts(query="query: ", document="passage: ")
_ALWAYS = ("bert",)
CASES = [family if family in _ALWAYS else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]


def pairs() -> list[Pair]:
    return [
        Pair(
            query=f"question {n}",
            positive=text,
            negatives=(SENTENCES[n - 1],),
            positive_id=str(n),
            kind="question",
        )
        for n, text in enumerate(SENTENCES)
    ]


@pytest.mark.parametrize("family", CASES)
def test_a_family_goes_from_training_to_serving(tmp_path: Path, family: str) -> None:
    spec = BackboneSpec(source=str(build_tiny_model(family, tmp_path / "base")), prompts=PROMPTS)
    settings = TrainSettings(steps=2, batch_size=3, learning_rate=0.05, lora_rank=2, lora_alpha=4)
    adapters = {
        name: train_expert(spec, pairs(), settings=settings, out_dir=tmp_path / name, seed=seed).adapter_dir
        for seed, name in enumerate(("first", "second"))
    }
    backbone = load_backbone(spec)
    before = encode_texts(backbone, SENTENCES, "document", precision="fp32")
    merged = MergedModel(backbone, {name: full_deltas(folder, backbone) for name, folder in adapters.items()})
    merged.apply(MergeRecipe(method="task_arithmetic", weights={"first": 0.6, "second": 0.6}))
    after = encode_texts(backbone, SENTENCES, "document", precision="fp32")
    assert np.abs(after - before).max() > 1e-4, "the experts must have changed something"
    write_retriever_folder(backbone, tmp_path / "retriever", name=family, base={"name": family})
    embedder = Embedder.load(tmp_path / "retriever", threads=1)
    assert np.abs(embedder.encode_document(list(SENTENCES)) - after).max() <= 1e-5
    queries = encode_texts(backbone, SENTENCES, "query", precision="fp32")
    assert np.abs(embedder.encode_query(list(SENTENCES)) - queries).max() <= 1e-5
    short = ["fever"]  # a longer text fills the sliding windows, and the last token no longer sees the prompt
    difference = np.abs(embedder.encode_query(short) - embedder.encode_document(short)).max()
    assert difference > 1e-4, "the two prompts must make a difference"
