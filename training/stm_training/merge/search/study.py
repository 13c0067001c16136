"""The search in Optuna's SQLite storage: it outlives a kill, and several processes may work on it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event

from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.cmaes_planner import CmaEsPlanner
from stm_training.merge.search.greedy import GreedyPlanner
from stm_training.merge.search.grid import ListedPlanner, grid_candidates, random_candidates
from stm_training.merge.search.job import SearchJob
from stm_training.merge.search.objective import Objective, domain, general, guard_losses, mean_of_means
from stm_training.merge.search.owners import Owner
from stm_training.merge.search.pareto import pareto_front
from stm_training.merge.search.plan import Known, Planner, Proposal
from stm_training.merge.search.pruning import Pruner
from stm_training.merge.search.records import Evaluate, SearchResult, Trial, TrialScores
from stm_training.merge.search.samplers import FixedSampler, tpe_sampler
from stm_training.merge.search.space import Space
from stm_training.merge.search.store import ScoreStore
from stm_training.merge.search.surrogate import Surrogate, SurrogateGuide

_POLL = 0.1  # seconds between looks at trials that other processes still run
_BUSY = 120  # seconds that SQLite waits for another process's write
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

Progress = Callable[[Trial, int], None]
"""Called after each trial of this process with the trial and the number of trials of the search."""


def search(
    job: SearchJob,
    evaluate: Evaluate,
    *,
    surrogate: Surrogate | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Run a search to its end, together with whatever other processes are running it.

    A search that was killed goes on: trials that a dead process left are failed and run again with the same
    parameters, so that it ends with exactly its number of trials. Raising ``trials`` continues it.

    Args:
        job: What to search.
        evaluate: Scores a merge on development queries.
        surrogate: Predicts scores; needed where ``settings.surrogate`` is on, ignored elsewhere.
        progress: Called after each trial of this process.

    Returns:
        All trials of the search, those of other processes too.

    Raises:
        ConfigError: If the settings do not fit the experts.
        DataError: If there are no development queries to score.
    """
    job.storage.parent.mkdir(parents=True, exist_ok=True)
    with _optuna_study(job) as study, Owner(_beside(job, "-owners")) as owner:
        return _Search(job, study, owner, evaluate, surrogate).run(progress)


@contextmanager
def _optuna_study(job: SearchJob) -> Iterator[optuna.Study]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with FileLock(_beside(job, ".lock")):  # two processes must not make the tables at once
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{job.storage}", engine_kwargs={"connect_args": {"timeout": _BUSY}}
        )
        event.listen(storage.engine, "connect", _spare_the_disk)
        storage.engine.dispose()  # what it opened before it knew
        study = optuna.create_study(
            study_name=job.study, storage=storage, direction="maximize", load_if_exists=True
        )
    try:
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _spare_the_disk(connection: Any, _: Any) -> None:
    """Optuna commits some ten times per trial; waiting for the disk each time may take longer than scoring.

    With a write-ahead log a kill loses nothing and a power failure at most the last trials.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _beside(job: SearchJob, ending: str) -> Path:
    return job.storage.with_name(job.storage.stem + ending)


class _Search:
    def __init__(
        self,
        job: SearchJob,
        study: optuna.Study,
        owner: Owner,
        evaluate: Evaluate,
        surrogate: Surrogate | None,
    ) -> None:
        self._job, self._settings = job, job.settings
        self._study = study
        self._owner = owner
        self._evaluate = evaluate
        self._lock = FileLock(_beside(job, ".lock"))
        # Whether scores hold a first part, and which, depends on these.
        share = job.settings.prune_share if job.settings.pruning else None
        self._store = ScoreStore(_beside(job, "-scores") / _short(job.inputs, share))
        self._read: dict[int, Trial] = {}
        self._base = self._base_scores()
        self._objective = Objective(self._base, job.settings.guard_penalty, job.tolerance)
        self._base_value = self._objective(self._base)
        self._guide: SurrogateGuide | None = None
        if surrogate is not None and job.settings.surrogate:
            self._guide = SurrogateGuide(surrogate, self._objective, job.settings, self._trials)
        self._space = Space(job.settings, job.experts)
        self._planner = self._make_planner()
        self._total = job.settings.trials if self._planner is None else self._planner.total

    def run(self, progress: Progress | None) -> SearchResult:
        while True:
            claimed = self._claim()
            if claimed is not None:
                trial = self._run(*claimed)
                if progress is not None:
                    progress(trial, self._total)
            elif self._is_done():
                return self._result()
            else:
                time.sleep(_POLL)

    def _base_scores(self) -> TrialScores:
        with self._lock:  # every process needs them before it can do anything
            scores = self._store.read(None)
            if scores is None or not scores.complete:
                scores = self._evaluate(None)
                self._store.write(None, scores)
        return scores

    def _make_planner(self) -> Planner | None:
        """None: TPE, which Optuna asks by itself."""
        settings, seed = self._settings, self._job.actual_seed
        if settings.sampler == "greedy":
            planner = GreedyPlanner(self._job.experts, self._base_value)
            self._space = planner.space
            return planner
        if settings.sampler == "cmaes":
            return CmaEsPlanner(self._space, settings.trials, seed)
        if settings.sampler == "tpe":
            return None
        make = grid_candidates if settings.sampler == "grid" else random_candidates
        most = settings.trials * (1 if self._guide is None else settings.surrogate_pool)
        return ListedPlanner(make(self._space, seed=seed, most=most), settings.trials, self._guide)

    # Claiming a trial

    def _claim(self) -> tuple[optuna.Trial, MergeRecipe] | None:
        with self._lock:
            trials = self._study.get_trials(deepcopy=False)
            if self._fail_orphans(trials):
                trials = self._study.get_trials(deepcopy=False)
            taken = [trial for trial in trials if trial.state in (*_FINISHED, TrialState.RUNNING)]
            if len(taken) >= self._total:
                return None
            proposal = self._proposal(trials, taken)
            if proposal is None and self._planner is not None:
                return None
            self._study.sampler = (
                FixedSampler(proposal.params)
                if proposal
                else tpe_sampler(self._job.actual_seed, len(trials), self._total)
            )
            trial = self._study.ask()
            recipe = self._space.recipe(self._space.suggest(trial))
            for name, value in (proposal.attributes if proposal else {}).items():
                if value is not False:
                    trial.set_user_attr(name, value)
            trial.set_user_attr("recipe", recipe.model_dump(mode="json"))
            trial.set_user_attr("owner", self._owner.name)
            return trial, recipe

    def _proposal(self, trials: Sequence[FrozenTrial], taken: Sequence[FrozenTrial]) -> Proposal | None:
        again = {trial.user_attrs.get("again") for trial in trials}
        for trial in trials:  # what was under way at a kill is not lost
            if trial.state == TrialState.FAIL and "recipe" in trial.user_attrs and trial.number not in again:
                guided = trial.user_attrs.get("chosen_by_surrogate", False)
                return Proposal(trial.params, {"again": trial.number, "chosen_by_surrogate": guided})
        if self._planner is None:
            return None
        return self._planner.propose([_known(trial) for trial in taken], len(trials))

    def _fail_orphans(self, trials: Sequence[FrozenTrial]) -> bool:
        """Fail what dead processes left running; whether there was any."""
        orphans = [
            trial.number
            for trial in trials
            if trial.state == TrialState.RUNNING and not self._owner.is_alive(trial.user_attrs.get("owner"))
        ]
        for number in orphans:
            self._study.tell(number, state=TrialState.FAIL)
        return bool(orphans)

    def _is_done(self) -> bool:
        states = [trial.state for trial in self._study.get_trials(deepcopy=False)]
        return sum(state in _FINISHED for state in states) >= self._total

    # Running it

    def _run(self, trial: optuna.Trial, recipe: MergeRecipe) -> Trial:
        try:
            predicted = None if self._guide is None else self._guide.predict(recipe)
            scores = self._store.read(recipe)
            reused = scores is not None and scores.complete
            if scores is None or not reused:
                scores = self._evaluate(recipe, self._pruner())
                self._store.write(recipe, scores)
            for name, value in self._figures(scores).items():
                trial.set_user_attr(name, value)
            trial.set_user_attr(
                "details",
                {
                    "stopped": scores.stopped,
                    "seconds": scores.seconds,
                    "predicted": predicted,
                    "reused": reused,
                },
            )
            if scores.complete:
                self._study.tell(trial, self._objective(scores))
            else:
                trial.report(self._estimate(scores), step=0)
                self._study.tell(trial, state=TrialState.PRUNED)
        except BaseException:
            self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        return self._as_trial(frozen)

    def _pruner(self) -> Pruner | None:
        if not self._settings.pruning or self._settings.sampler == "greedy":
            return None  # the greedy soup compares every value
        return Pruner(self._incumbent, self._objective, self._settings.prune_confidence)

    def _incumbent(self) -> TrialScores:
        complete = [trial for trial in self._trials() if trial.value is not None]
        best = max(complete, key=lambda trial: trial.value or 0.0, default=None)
        if best is None or (best.value or 0.0) < self._base_value:
            return self._base
        return best.scores

    def _estimate(self, scores: TrialScores) -> float:
        """The objective as far as it is known, for samplers that learn from trials ended early."""
        if scores.stage == "dev":
            return domain(scores)
        return self._base_value + mean_of_means(scores.part) - mean_of_means(self._base.part)

    def _figures(self, scores: TrialScores) -> dict[str, Any]:
        """What a dashboard shows beside the value."""
        return {
            "domain": None if scores.stage == "part" else domain(scores),
            "general": general(scores) if scores.complete else None,
            "guard_losses": guard_losses(scores, self._base) if scores.complete else {},
        }

    # Reading

    def _trials(self) -> list[Trial]:
        return [self._as_trial(trial) for trial in self._study.get_trials(deepcopy=False, states=_FINISHED)]

    def _as_trial(self, trial: FrozenTrial) -> Trial:
        if trial.number not in self._read:
            recipe = MergeRecipe.model_validate(trial.user_attrs["recipe"])
            scores = self._store.read(recipe)
            if scores is None:  # removed by hand: the figures are still there
                scores = TrialScores(stage="part", stopped="its scores are no longer on disk")
            details = trial.user_attrs["details"]
            self._read[trial.number] = Trial(
                number=trial.number,
                recipe=recipe,
                value=trial.value if trial.state == TrialState.COMPLETE else None,
                scores=scores,
                domain=trial.user_attrs["domain"],
                general=trial.user_attrs["general"],
                guard_losses=trial.user_attrs["guard_losses"],
                predicted=details["predicted"],
                chosen_by_surrogate=trial.user_attrs.get("chosen_by_surrogate", False),
                reused=details["reused"],
                seconds=0.0 if details["reused"] else details["seconds"],
            )
        return self._read[trial.number]

    def _result(self) -> SearchResult:
        trials = self._trials()
        complete = [index for index, trial in enumerate(trials) if trial.value is not None]
        best = max(complete, key=lambda index: (trials[index].value or 0.0, -index), default=None)
        return SearchResult(
            trials=tuple(trials),
            base=self._base,
            best=best,
            pareto=pareto_front(trials),
            surrogate=None if self._guide is None else self._guide.report(),
            seconds=self._base.seconds + sum(trial.seconds for trial in trials),
            pruned=sum(trial.pruned for trial in trials),
            storage=str(self._job.storage),
            study=self._job.study,
        )


def _known(trial: FrozenTrial) -> Known:
    value = trial.value
    if trial.state == TrialState.PRUNED:
        value = trial.intermediate_values.get(0)
    recipe = MergeRecipe.model_validate(trial.user_attrs["recipe"])
    return Known(trial.params, recipe, value, running=trial.state == TrialState.RUNNING)


def _short(inputs: str, share: float | None) -> str:
    return hashlib.sha256(f"{inputs} {share}".encode()).hexdigest()[:16]
