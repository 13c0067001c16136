"""A tiny model that was trained to obey an instruction, and the collection that shows it."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from stm_retriever.folder import Prompts
from stm_training.data.records import Pair, Passage
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.lora import full_deltas
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import train_expert
from stm_training.merge.apply import MergedModel
from stm_training.merge.recipe import MergeRecipe
from stm_training.pipeline.collections import Problem
from tests.tiny_models import build_tiny_model

PLANTED = "Find the medicine that is given."
PLANTED_PROMPT = f"{PLANTED}\nQuery: "
USELESS = ("Retrieve the text.", "Search for passages.", "Given a query, find documents.")

_FIRST = ("asthma", "fever", "cough", "gout", "wrist", "heart")
_SECOND = ("night", "spring", "attack", "blood", "pressure", "light")
TOPICS = tuple(f"{first} {second}" for first in _FIRST for second in _SECOND)
NEW_TOPICS = tuple(
    f"{first} {second}"
    for first in ("migraine", "iron", "insulin", "pneumonia", "uric", "eyes")
    for second in ("headache", "nausea", "kidneys", "months", "chest", "toe")
)

_FOLDER = tempfile.TemporaryDirectory(prefix="stm-prompted-")  # removed when the process ends


def as_prompt(instruction: str) -> str:
    """In the form that the model was trained with."""
    return f"{instruction}\nQuery: "


def passages(topics: tuple[str, ...] = TOPICS) -> list[Passage]:
    """Two per topic: what it feels like, and what is given for it."""
    return [
        Passage(f"{kind}-{number}", text.format(topic))
        for number, topic in enumerate(topics)
        for kind, text in (("signs", "signs of {0}: pain in {0}"), ("drug", "tablets for {0}: take for {0}"))
    ]


def problem(name: str = "wards", topics: tuple[str, ...] = TOPICS) -> Problem:
    """The query names a topic; relevant is what is given for it, which the plain model ranks second."""
    queries = {f"q{number}": topic for number, topic in enumerate(topics)}
    qrels = {query: {f"drug-{query[1:]}": 1} for query in queries}
    return Problem(name, passages(topics), queries, qrels)


def write_collection(folder: Path, *, splits: tuple[str, ...] = ("dev",)) -> Path:
    """The same as a BEIR folder."""
    made = problem()
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": one.id, "text": one.text} for one in made.passages]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": name, "text": text} for name, text in made.queries.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\tdrug-{n}\t1" for n in range(len(TOPICS)))]
    for split in splits:
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@cache
def obedient_model() -> Path:
    """A model folder without prompts. Signs without the instruction, medicines with it."""
    folder = Path(_FOLDER.name)
    base = build_tiny_model("qwen3", folder / "base", initializer_range=0.1)
    spec = BackboneSpec(str(base), prompts=Prompts())
    settings = TrainSettings(
        batch_size=16,
        learning_rate=1e-2,
        steps=150,
        lora_rank=16,
        precision="fp32",
        temperature=0.1,
        max_grad_norm=1.0,
    )
    result = train_expert(spec, _pairs(), settings=settings, out_dir=folder / "expert")
    backbone = load_backbone(spec)
    merged = MergedModel(backbone, {"expert": full_deltas(result.adapter_dir, backbone)})
    merged.apply(MergeRecipe(method="task_arithmetic", weights={"expert": 1.0}))
    shutil.copytree(base, folder / "model")
    backbone.model.save_pretrained(folder / "model")
    return folder / "model"


def obedient_backbone() -> Backbone:
    """The same, loaded anew."""
    return load_backbone(BackboneSpec(str(obedient_model())))


def deaf_backbone(folder: Path) -> Backbone:
    """A decoder that hears no prompt: its vector is that of the last three tokens, wherever they stand.

    Each of the two layers sees two tokens, and weighs them alike (no queries), so that positions do not count.
    """
    import torch

    base = build_tiny_model("mistral", folder, sliding_window=2)
    backbone = load_backbone(BackboneSpec(str(base), prompts=Prompts()))
    with torch.no_grad():
        for layer in backbone.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    backbone.model.save_pretrained(base)
    return backbone


def _pairs() -> list[Pair]:
    """The same query means two things; the instruction tells which."""
    pairs = []
    for number, topic in enumerate(TOPICS):
        signs, drug = passages()[2 * number : 2 * number + 2]
        for prompt in (None, *map(as_prompt, USELESS)):
            pairs.append(Pair(topic, signs.text, (drug.text,), positive_id=signs.id, prompt=prompt))
        told = Pair(topic, drug.text, (signs.text,), positive_id=drug.id, prompt=PLANTED_PROMPT)
        pairs += [told] * 3
    return pairs
