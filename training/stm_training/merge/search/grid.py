"""Candidates listed beforehand: the grid of all weights and densities, or random draws between them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.plan import Known, Proposal
from stm_training.merge.search.records import recipe_key
from stm_training.merge.search.space import METHOD, Params, Space
from stm_training.merge.search.surrogate import SurrogateGuide

# Above this size a grid is sampled without being listed.
_LISTED = 200_000
_TRIES = 1000  # draws without a new candidate after which there are none left


class ListedPlanner:
    """Takes the first candidate of a list that has not been tried; the surrogate may reorder what is next.

    Args:
        candidates: Parameters and the merges they mean, each merge once, in the order of trying.
        trials: Trials of the search.
        guide: Picks among the next few candidates; None: in order.
    """

    def __init__(
        self,
        candidates: Sequence[tuple[Params, MergeRecipe]],
        trials: int,
        guide: SurrogateGuide | None = None,
    ) -> None:
        self._candidates = candidates
        self._guide = guide
        self.total = min(trials, len(candidates))

    def propose(self, known: Sequence[Known], number: int) -> Proposal | None:
        """The next untried candidate."""
        tried = {recipe_key(one.recipe) for one in known}
        left = [(params, recipe) for params, recipe in self._candidates if recipe_key(recipe) not in tried]
        if self._guide is None:
            return Proposal(left[0][0])
        place, guided = self._guide.pick([recipe for _, recipe in left])
        return Proposal(left[place][0], {"chosen_by_surrogate": guided})


def grid_candidates(space: Space, *, seed: int, most: int) -> list[tuple[Params, MergeRecipe]]:
    """The grid without repeats: whole in a seeded order, or a seeded sample of ``most``.

    Equal weights come first, since they are what one would do without a search; they take at most half.
    """
    tables = {method: list(space.parameters(method).items()) for method in space.methods}
    sizes = [math.prod(len(values) for _, values in table) for table in tables.values()]
    points = (_point(tables, sizes, place) for place in _shuffled(sum(sizes), seed))
    equal = _equal_points(space, random.Random(seed))[: max(1, most // 2)]
    return _distinct(space, itertools.chain(equal, points), most)


def random_candidates(space: Space, *, seed: int, most: int) -> list[tuple[Params, MergeRecipe]]:
    """Uniform draws between the lowest and the highest listed values, equal weights first (at most half)."""
    equal = _equal_points(space, random.Random(seed))[: max(1, most // 2)]
    return _distinct(space, itertools.chain(equal, _draws(space, random.Random(seed))), most)


def _draws(space: Space, rng: random.Random) -> Iterator[Params]:
    while True:
        method = rng.choice(space.methods)
        values = {
            name: round(rng.uniform(min(listed), max(listed)), 2) if min(listed) < max(listed) else listed[0]
            for name, listed in space.parameters(method).items()
        }
        yield {METHOD: method, **values}


def _distinct(space: Space, points: Iterator[Params], most: int) -> list[tuple[Params, MergeRecipe]]:
    found: dict[str, tuple[Params, MergeRecipe]] = {}
    misses = 0
    for params in points:
        if space.is_empty(params):
            continue
        recipe = space.recipe(params)
        known = recipe_key(recipe) in found
        found.setdefault(recipe_key(recipe), (params, recipe))
        misses = misses + 1 if known else 0
        if len(found) >= most or misses >= _TRIES:
            break
    return list(found.values())


def _point(tables: Mapping[Any, list[tuple[str, tuple[float, ...]]]], sizes: list[int], place: int) -> Params:
    for (method, table), size in zip(tables.items(), sizes, strict=True):
        if place < size:
            values: dict[str, object] = {METHOD: method}
            for name, listed in table:
                place, digit = divmod(place, len(listed))
                values[name] = listed[digit]
            return values
        place -= size
    message = f"{place} is beyond the grid"
    raise IndexError(message)


def _shuffled(size: int, seed: int) -> Iterator[int]:
    rng = random.Random(seed)
    if size <= _LISTED:
        places = list(range(size))
        rng.shuffle(places)
        yield from places
        return
    seen: set[int] = set()
    while len(seen) < size:
        place = rng.randrange(size)
        if place not in seen:
            seen.add(place)
            yield place


def _equal_points(space: Space, rng: random.Random) -> list[Params]:
    """Every method with the same weight for all experts, and the same density."""
    points: list[Params] = []
    for method in space.methods:
        table = space.parameters(method)
        weights = [value for value in table[f"weight:{space.experts[0]}"] if value]
        others = {name: values for name, values in table.items() if not name.startswith("weight:")}
        shared = sorted({values for values in others.values()})
        for weight, *rest in itertools.product(weights, *shared):
            chosen = dict(zip(shared, rest, strict=True))
            points.append(
                {METHOD: method}
                | {f"weight:{expert}": weight for expert in space.experts}
                | {name: chosen[values] for name, values in others.items()}
            )
    rng.shuffle(points)
    return points
