"""CMA-ES, rebuilt from the trials at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stm_retriever.errors import require
from stm_training.merge.search.plan import Known, Proposal
from stm_training.merge.search.space import METHOD, Space

_FIRST_STEP = 0.25  # of the range: the first draws cover it, and few fall outside


class CmaEsPlanner:
    """CMA-ES (Hansen 2016, arXiv 1604.00772) by the library behind Optuna's sampler, one run per method.

    Optuna's own sampler keeps the optimiser pickled in the storage, and what loads a pickle runs code. Here
    the optimiser is rebuilt by telling it the finished trials again, a population at a time, which costs
    nothing beside a trial. Methods take turns, because they do not share a distribution.

    Args:
        space: What may be set.
        trials: Trials of the search.
        seed: Seeds the draws.
    """

    def __init__(self, space: Space, trials: int, seed: int) -> None:
        self._space = space
        self._seed = seed
        self.total = trials

    def propose(self, known: Sequence[Known], number: int) -> Proposal | None:
        """A draw from the distribution of the method whose turn it is."""
        counts = {method: 0 for method in self._space.methods}
        for one in known:
            counts[one.params[METHOD]] += 1
        method = min(counts, key=lambda name: counts[name])
        table = self._space.parameters(method)
        free = [name for name, listed in table.items() if min(listed) < max(listed)]
        optimizer = self._rebuild([one for one in known if one.params[METHOD] == method], free, table)
        optimizer.reseed_rng(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        drawn = dict(zip(free, optimizer.ask().tolist(), strict=False))
        values = {
            name: min(listed) + (max(listed) - min(listed)) * drawn.get(name, 0.0)
            for name, listed in table.items()
        }
        return Proposal({METHOD: method, **values})

    def _rebuild(self, known: Sequence[Known], free: list[str], table: dict[str, tuple[float, ...]]) -> Any:
        cmaes = require("cmaes", extra="train", purpose="the CMA-ES search")
        size = max(1, len(free))
        bounds = np.tile([0.0, 1.0], (size, 1))
        optimizer = cmaes.CMA(mean=np.full(size, 0.5), sigma=_FIRST_STEP, bounds=bounds, seed=self._seed)
        told = [(_place(one, free, table, size), -one.value) for one in known if one.value is not None]
        count = optimizer.population_size
        for start in range(0, len(told) - count + 1, count):
            optimizer.tell(told[start : start + count])
        return optimizer


def _place(one: Known, free: list[str], table: dict[str, tuple[float, ...]], size: int) -> Any:
    place = np.full(size, 0.5)
    for index, name in enumerate(free):
        low, high = min(table[name]), max(table[name])
        place[index] = (float(one.params[name]) - low) / (high - low)
    return place
