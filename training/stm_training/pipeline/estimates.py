"""What the rest of a run takes, in time and on disk: rough figures, each with what it is based on."""

from __future__ import annotations

import json
import math
import shutil
import struct
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stm_training.data.records import Passage
from stm_training.data.sample import sample_passages
from stm_training.pipeline.experts import ExpertPlan
from stm_training.pipeline.settings import load_base
from stm_training.recipe import Recipe

if TYPE_CHECKING:
    from stm_training.pipeline.planning import PlannedStage

_MEASURED_ON = 48  # documents: a second or a few of a small model
_BACKWARD = 3.0  # a training step costs about three forward passes over its texts
_COPIES = 3  # a checkpoint holds trained weights and two moments of AdamW
_ROW = 4.0  # bytes on disk per byte of text: SQLite, its word index, JSON
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Stretch:
    """Work of one stage that grows with the data.

    Attributes:
        stage: The stage.
        steps: Optimiser steps.
        texts: Texts read by the model, training steps counted as what they cost in encoded texts.
        what: In words.
    """

    stage: str
    steps: int
    texts: int
    what: str


def stretches(
    recipe: Recipe,
    stages: Sequence[PlannedStage],
    experts: Sequence[ExpertPlan] | None,
    documents: Sequence[Passage],
) -> list[Stretch]:
    """The work of the stages that are not done; upper bounds where a search may end early."""
    waiting = [stage.name for stage in stages if stage.state != "done"]
    models = sum(stage.name.startswith("expert-") for stage in stages)
    count = len(documents)
    scored = min(count, recipe.evaluate.dev_documents or count)
    found = [_training(recipe, name, experts) for name in waiting if name.startswith("expert-")]
    encodings = {
        "merge": (models + 1 + recipe.merge.trials) * scored,
        "evaluate": (models + 2) * count,
        "index": count,
    }
    for stage, texts in encodings.items():
        if stage in waiting:
            found.append(Stretch(stage, 0, texts, f"at most {texts} documents to encode"))
    return found


def _training(recipe: Recipe, name: str, experts: Sequence[ExpertPlan] | None) -> Stretch:
    plan = next((one for one in experts or () if f"expert-{one.name}" == name), None)
    section = recipe.experts.get(name.removeprefix("expert-").removesuffix("-random"))
    train = plan.train if plan is not None else (section.training(recipe.train) if section else recipe.train)
    steps = train.steps
    if steps is None and plan is not None:
        steps = train.epochs * math.ceil(len(plan.pairs) / train.batch_size)
    elif steps is not None and plan is None and section is None:  # all data: as many as the experts together
        each = [one.training(recipe.train).steps for one in recipe.experts.values()]
        steps = None if None in each else sum(step or 0 for step in each)
    if steps is None:
        return Stretch(name, 0, 0, "steps not known before the pairs are")
    per_step = train.batch_size * (2 + train.hard_negatives)
    words = f"{steps} steps of {train.batch_size} pairs"
    return Stretch(name, steps, int(_BACKWARD * steps * per_step), words)


def measured_pace(recipe: Recipe, documents: Sequence[Passage]) -> float:
    """Documents per second that the base encodes here and now; reads the base, writes nothing."""
    from stm_training.finetune.encode import encode_texts

    backbone = load_base(recipe)
    chosen = sample_passages(documents, min(_MEASURED_ON, len(documents)), seed=recipe.seed)
    texts = [passage.content for passage in chosen]
    encode_texts(backbone, texts[:8], "document")  # the first pass warms up
    started = time.perf_counter()
    encode_texts(backbone, texts, "document")
    return len(texts) / max(time.perf_counter() - started, 1e-6)


def time_lines(earlier: Mapping[str, float | None], work: Sequence[Stretch], pace: float | None) -> list[str]:
    """The time of every stage that grows with the data, and of all together.

    Args:
        earlier: Seconds that each stage took when it was last run in this folder.
        work: What there is to do.
        pace: Documents per second, if it was measured.
    """
    if not work:
        return ["time: little; no stage that grows with the data is left"]
    lines, total, unknown = [], 0.0, False
    for one in work:
        before = earlier.get(one.stage)
        if before is not None:
            seconds, basis = before, "as the last time in this folder"
        elif pace is not None and one.texts:
            seconds, basis = one.texts / pace, "by the measured pace"
        else:
            lines.append(f"time of {one.stage}: not known ({one.what})")
            unknown = True
            continue
        total += seconds
        lines.append(f"time of {one.stage}: {about(seconds)} ({one.what}; {basis})")
    lines.append(f"time together: {about(total)}{', and what is not known' if unknown else ''}")
    if pace is not None:
        lines.append(
            f"  pace: the base encodes about {float(f'{pace:.2g}'):g} of these documents a second here, "
            f"as busy as this machine is now; expect half to double the time. An LLM's own time comes on top."
        )
    return lines


def disk_lines(
    recipe: Recipe,
    folder: Path,
    base: Path | None,
    documents: Sequence[Passage],
    experts: Sequence[ExpertPlan] | None,
    waiting: AbstractSet[str],
) -> list[str]:
    """Bytes that the stages which are not done would add, and what is free."""
    if base is None:
        return ["disk: not known before the base is here"]
    shapes = _shapes(base)
    weights = 4 * sum(math.prod(shape) for shape in shapes.values())
    dimension = _dimension(base)
    models = [name for name in waiting if name.startswith("expert-")]
    trained = weights if recipe.train.adapter == "full" else _lora_bytes(shapes, recipe.train.lora_rank)
    parts = {
        "experts": len(models) * trained,
        "checkpoints while training": (_COPIES * trained) if models else 0,
        "retriever": 2 * weights if "retriever" in waiting else 0,
        "index": _index_bytes(documents, dimension) if "index" in waiting else 0,
        "vectors of scored models": _vector_bytes(recipe, len(documents), dimension)
        if "merge" in waiting
        else 0,
    }
    needed = {name: size for name, size in parts.items() if size}
    free = shutil.disk_usage(next(one for one in (folder, *folder.absolute().parents) if one.exists())).free
    if not needed:
        return [f"disk: next to nothing more; {in_units(free)} are free"]
    listed = ", ".join(f"{name} {in_units(size)}" for name, size in needed.items())
    short = "" if sum(needed.values()) < free else "  NOT ENOUGH IS FREE."
    return [
        f"disk: about {in_units(sum(needed.values()))} ({listed}); {in_units(free)} are free.{short}",
        "  by the shapes in the base's weights, float32, and the length of the texts",
    ]


def about(seconds: float) -> str:
    """A duration to one significant figure."""
    if seconds < 60:
        return "under a minute"
    value, unit = (seconds / 60, "min") if seconds < 5400 else (seconds / 3600, "h")
    digits = 10 ** math.floor(math.log10(value))
    return f"about {round(value / digits) * digits:g} {unit}"


def in_units(size: float) -> str:
    """A number of bytes to two significant figures."""
    for unit, name in _UNITS:
        if size >= unit:
            return f"{float(f'{size / unit:.2g}'):g} {name}"
    return f"{size:.0f} bytes"


def _index_bytes(documents: Sequence[Passage], dimension: int) -> int:
    text = sum(len(passage.content.encode()) for passage in documents)
    return int(2 * 4 * dimension * len(documents) + _ROW * text)  # vectors lie in FAISS and in SQLite


def _vector_bytes(recipe: Recipe, count: int, dimension: int) -> int:
    kept = len(recipe.experts) + int(recipe.all_data) + 2  # the experts, the base, the merge
    return kept * min(count, recipe.evaluate.dev_documents or count) * dimension * 4


def _shapes(base: Path) -> dict[str, list[int]]:
    """Shapes of the base's tensors, from the headers of its files."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(base.rglob("*.safetensors")):
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        shapes |= {name: one["shape"] for name, one in header.items() if name != "__metadata__"}
    return shapes


def _lora_bytes(shapes: Mapping[str, Sequence[int]], rank: int) -> int:
    """Two thin matrices beside every linear layer."""
    linear = [shape for name, shape in shapes.items() if len(shape) == 2 and "embed" not in name]
    return 4 * rank * sum(sum(shape) for shape in linear)


def _dimension(base: Path) -> int:
    for file in sorted(base.rglob("config.json"), key=lambda path: len(path.parts)):
        found = json.loads(file.read_text(encoding="utf-8")).get("hidden_size")
        if isinstance(found, int):
            return found
    return 768
