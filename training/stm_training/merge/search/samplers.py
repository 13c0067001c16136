"""Samplers for one trial each, since a sampler's random state would die with its process."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial

from stm_training.merge.search.space import Params


def tpe_sampler(seed: int, number: int, total: int) -> optuna.samplers.BaseSampler:
    """Optuna's TPE (Bergstra et al. 2011) for one trial.

    Args:
        seed: The search's seed.
        number: The trial's number, which seeds its draws too.
        total: Trials of the search; at most a quarter of them, and ten, are drawn at random.
    """
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=own,
            n_startup_trials=max(4, min(10, total // 4)),
            multivariate=True,  # weights only mean something together
            group=True,  # every method has its own parameters
            constant_liar=True,  # other processes' running trials
        )


class FixedSampler(optuna.samplers.BaseSampler):
    """Gives a trial the parameters that were planned for it."""

    def __init__(self, params: Params) -> None:
        self._params = params

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing is drawn together."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing is drawn together."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The planned value of one parameter."""
        return self._params[param_name]
