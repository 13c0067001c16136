"""Our side: train_expert with its defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gate import Gate
from numpy.typing import NDArray

from stm_training.data.records import Pair
from stm_training.finetune.backbone import BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import train_expert

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


def train(task: dict[str, Any], gate: Gate) -> tuple[list[float], Callable[[], Encode]]:
    """Train, and return the losses and a function that gives the trained model in float32."""
    spec = BackboneSpec(task["model"])
    result = train_expert(
        spec,
        [
            Pair(query, positive, query_id=f"q{row}", positive_id=f"d{row}")
            for row, (query, positive) in enumerate(task["rows"])
        ],
        settings=TrainSettings(
            batch_size=task["batch_size"],
            steps=len(task["batches"]),
            learning_rate=task["learning_rate"],
            warmup_steps=task["warmup_steps"],
            temperature=1 / task["scale"],
            lora_rank=task["rank"],
            lora_alpha=task["alpha"],
            lora_dropout=0.0,
        ),
        out_dir=Path(task["folder"]),
        seed=task["seed"],
        callbacks=[gate],
    )

    def load() -> Encode:
        from peft import PeftModel

        backbone = load_backbone(spec)
        backbone.model = PeftModel.from_pretrained(backbone.model, result.adapter_dir)
        return lambda texts: encode_texts(backbone.eval(), texts, "document", precision="fp32")

    return list(result.losses), load
