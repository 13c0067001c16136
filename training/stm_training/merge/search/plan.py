"""What a sampler's next trial is, given all trials so far: nothing is kept but the trials themselves.

So a killed search goes on where it stopped, and several processes need to agree on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.space import Params


@dataclass(frozen=True)
class Known:
    """A trial as the planners see it.

    Attributes:
        params: Its parameters.
        recipe: The merge they mean.
        value: The objective, or the estimate at which it was ended; None while it runs.
        running: Whether it is being scored.
    """

    params: Params
    recipe: MergeRecipe
    value: float | None = None
    running: bool = False


@dataclass(frozen=True)
class Proposal:
    """Parameters of the next trial.

    Attributes:
        params: The parameters.
        attributes: What to note with the trial.
    """

    params: Params
    attributes: dict[str, Any] = field(default_factory=dict)


class Planner(Protocol):
    """Proposes trials."""

    @property
    def total(self) -> int:
        """How many trials the search has."""

    def propose(self, known: Sequence[Known], number: int) -> Proposal | None:
        """The next trial, whose number is ``number``; None while it depends on one that still runs."""
