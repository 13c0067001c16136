"""What ships, and how to make every system of a run again: the base, experts, their merge, a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm_training.evaluate.selection import Decision
from stm_training.finetune.backbone import Backbone
from stm_training.merge.apply import MergedModel
from stm_training.merge.recipe import MergeRecipe
from stm_training.pipeline.members import member_deltas
from stm_training.prompting.applying import set_query_prompt

BASE, ALL_DATA, MERGED = "base", "all_data", "merged"
EXPERT = "expert:"  # before the name of an expert that may be merged
PROMPTED = "prompted"  # what ships, with another query prompt than the base's


@dataclass(frozen=True)
class Choice:
    """What ships, and how to make every system of the run again.

    Attributes:
        system: The weights that ship: ``base``, an expert, ``all_data`` or ``merged``.
        members: Experts in what ships.
        merge: The best merge on dev, as ``MergeRecipe`` stores it.
        trials: How many merges were tried.
        decision: The table that the choice rests on.
        prompt: The query prompt that ships, where the prompt search found a better one than the base's.
    """

    system: str
    members: Sequence[str]
    merge: dict[str, Any]
    trials: int
    decision: Decision
    prompt: str | None = None

    @property
    def shipped(self) -> str:
        """Name of what ships, in tables."""
        return self.system if self.prompt is None else PROMPTED


def alone(expert: str) -> MergeRecipe:
    """The expert as it was trained."""
    return MergeRecipe(method="task_arithmetic", weights={expert: 1.0})


class Systems:
    """Turns one base into the run's systems, one after the other.

    Args:
        backbone: The untouched base.
        choice: What was chosen.
        experts: Folder of each expert's stage by system name; those that are never asked for may be missing.
    """

    def __init__(self, backbone: Backbone, choice: Choice, experts: Mapping[str, Path]) -> None:
        self._backbone = backbone
        self._choice = choice
        self._prompt = backbone.prompts.query
        deltas = {name: member_deltas(folder, backbone) for name, folder in experts.items()}
        self._merged = MergedModel(backbone, deltas) if deltas else None

    def become(self, system: str) -> None:
        """Make the backbone the system of this name."""
        choice = self._choice
        prompted = system == PROMPTED and choice.prompt is not None
        set_query_prompt(self._backbone, choice.prompt if prompted and choice.prompt else self._prompt)
        merge = recipe_of(choice.system if prompted else system, choice)
        if self._merged is None:
            return
        if merge is None:
            self._merged.restore()
        else:
            self._merged.apply(merge)


def recipe_of(system: str, choice: Choice) -> MergeRecipe | None:
    """The merge that makes a system; ``None`` for the base."""
    if system == BASE:
        return None
    return MergeRecipe.model_validate(choice.merge) if system == MERGED else alone(system)


def apply_choice(backbone: Backbone, choice: Choice, experts: Mapping[str, Path]) -> None:
    """Turn a freshly loaded base into what ships."""
    merge = recipe_of(choice.system, choice)
    needed = {name: experts[name] for name in (merge.weights if merge is not None else ())}
    Systems(backbone, choice, needed).become(choice.shipped)
