"""The greedy soup: experts join the average one by one, the best first, as long as they do not harm."""

from __future__ import annotations

from collections.abc import Sequence

from stm_training.merge.search.plan import Known, Proposal
from stm_training.merge.search.records import recipe_key
from stm_training.merge.search.settings import SearchSection
from stm_training.merge.search.space import METHOD, Params, Space

_BASE = ""  # as a member; no expert has an empty name


class GreedyPlanner:
    """Greedy soup of Wortsman et al. 2022 (arXiv 2203.05482), recipe 1, with the base as one of the models.

    The models are sorted by their own objective; the soup starts with the best and each next one joins if the
    average with it is at least as good. That is a trial per expert and one per joining.

    Args:
        experts: Names of the experts.
        base_value: The objective of the untouched base.

    Attributes:
        space: The soups' parameters.
        total: How many trials it takes.
    """

    def __init__(self, experts: Sequence[str], base_value: float) -> None:
        settings = SearchSection(methods=("linear",), weights=(0.0, 1.0), base_weights=(0.0, 1.0))
        self.space = Space(settings, experts)
        self.total = 2 * len(experts)
        self._base_value = base_value

    def propose(self, known: Sequence[Known], number: int) -> Proposal | None:
        """An expert that is not scored alone yet, else the next soup; None until what it needs is scored."""
        values = {recipe_key(one.recipe): one.value for one in known}
        for expert in self.space.experts:
            if self._key((expert,)) not in values:
                return Proposal(self._params((expert,)))
        alone = {_BASE: self._base_value}
        for expert in self.space.experts:
            value = values[self._key((expert,))]
            if value is None:
                return None
            alone[expert] = value
        return self._next_soup(alone, values)

    def _next_soup(self, alone: dict[str, float], values: dict[str, float | None]) -> Proposal | None:
        # Of equally good ones the base goes first: a soup without need of an expert is the plainer one.
        first, *others = sorted(alone, key=lambda name: -alone[name])
        members: tuple[str, ...] = (first,)
        best = alone[first]
        for name in others:
            tried = (*members, name)
            if self._key(tried) not in values:
                return Proposal(self._params(tried))
            value = values[self._key(tried)]
            if value is None:
                return None
            if value >= best:
                members, best = tried, value
        return None

    def _params(self, members: Sequence[str]) -> Params:
        experts = {f"weight:{name}": float(name in members) for name in self.space.experts}
        # The base's weight stands beside the experts' total of 1: an equal share is one over their number.
        count = sum(experts.values())
        return {METHOD: "linear", **experts, "linear:base_weight": 1 / count if _BASE in members else 0.0}

    def _key(self, members: Sequence[str]) -> str:
        return recipe_key(self.space.recipe(self._params(members)))
