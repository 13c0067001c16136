"""Scores merges in place: weights change in memory, and a text is encoded once per trial, if at all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError
from stm_training.data.records import Passage
from stm_training.evaluate.compare import NDCG
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.precision import Precision
from stm_training.merge.apply import Deltas, MergedModel
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.batches import PreparedTexts
from stm_training.merge.search.pruning import FEWEST_QUERIES
from stm_training.merge.search.records import Stage, StopEarly, TrialScores, recipe_key
from stm_training.merge.search.surrogate import MemberVectors, Surrogate, SurrogateSet
from stm_training.pipeline.collections import Problem, judged_and_sample
from stm_training.pipeline.scoring import score_vectors

Vectors = NDArray[np.float32]

_STAGES: tuple[Stage, ...] = ("part", "dev", "all")


@dataclass(frozen=True)
class _Rows:
    """Where a problem's queries and passages lie among all distinct texts."""

    problem: Problem
    queries: NDArray[np.int64]
    passages: NDArray[np.int64]


class _Texts:
    """Distinct texts of one role, each ready to be encoded at the first stage that needs it."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._stage: dict[str, Stage] = {}

    def add(self, texts: Sequence[str], stage: Stage) -> NDArray[np.int64]:
        """Rows of the texts, in their order."""
        for text in texts:
            self._rows.setdefault(text, len(self._rows))
            self._stage.setdefault(text, stage)
        return np.array([self._rows[text] for text in texts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, stage: Stage) -> tuple[list[str], NDArray[np.int64]]:
        """The texts that are first needed at a stage, and their rows."""
        texts = [text for text, first in self._stage.items() if first == stage]
        return texts, np.array([self._rows[text] for text in texts], dtype=np.int64)


class ModelEvaluator:
    """Scores merges of experts on development queries, always starting from the base's own bytes.

    Use it as a context manager to be sure that the base comes back. There is no way in for test queries.

    Args:
        backbone: The base, without an adapter attached.
        experts: Expert name -> full deltas by parameter name; see ``full_deltas``.
        dev: Development sets, of different names.
        guards: Development halves of the guards, of different names.
        prune_share: Share of the queries, and of the documents beside the judged ones, that make up the
            first stage; None: no first stage.
        seed: Seeds that part.
        token_budget: Padded tokens per batch.
        precision: ``auto``: bf16 where the device multiplies it natively.

    Raises:
        ConfigError: If there is no development set, or two problems of one kind share a name.
        MergeError: If an expert does not fit the base.
    """

    def __init__(
        self,
        backbone: Backbone,
        experts: Mapping[str, Deltas],
        dev: Sequence[Problem],
        guards: Sequence[Problem] = (),
        *,
        prune_share: float | None = None,
        seed: int = 0,
        token_budget: int = 8192,
        precision: Precision = "auto",
    ) -> None:
        _check_names(dev, guards)
        self.backbone = backbone
        self.experts = tuple(experts)
        self.merged = MergedModel(backbone, experts)
        self._precision: Precision = precision
        self._known: dict[str, TrialScores] = {}
        self._last: tuple[str, Vectors, Vectors] | None = None  # of the last merge that was scored in full
        queries, passages = _Texts(), _Texts()

        def place(problem: Problem, stage: Stage) -> _Rows:
            return _Rows(
                problem,
                queries.add(list(problem.queries.values()), stage),
                passages.add([passage.content for passage in problem.passages], stage),
            )

        parts = [] if prune_share is None else [_part(problem, prune_share, seed) for problem in dev]
        self._problems: dict[Stage, list[_Rows]] = {
            "part": [place(problem, "part") for problem in parts],
            "dev": [place(problem, "dev") for problem in dev],
            "all": [place(problem, "all") for problem in guards],
        }
        self._sizes = len(queries), len(passages)
        self._prepared = {
            stage: (
                _prepare(backbone, queries.of(stage), "query", token_budget),
                _prepare(backbone, passages.of(stage), "document", token_budget),
            )
            for stage in _STAGES
        }

    def __call__(self, recipe: MergeRecipe | None, stop: StopEarly | None = None) -> TrialScores:
        """Score a merge; ``None`` is the untouched base.

        Args:
            recipe: The merge.
            stop: Asked after the first part, and again before the guards; a reason ends the trial.

        Returns:
            nDCG@10 per query as far as it went.

        Raises:
            MergeError: If the recipe names an expert that is not there.
        """
        known = self._known.get(recipe_key(recipe))
        return known if known is not None else self._score(recipe, stop)[0]

    def vectors(self, recipe: MergeRecipe | None) -> dict[str, MemberVectors]:
        """Vectors of every development set and guard, by its name, under a merge."""
        if self._last is not None and self._last[0] == recipe_key(recipe):
            _, queries, documents = self._last
        else:
            _, queries, documents = self._score(recipe, None)
        return {
            rows.problem.name: MemberVectors(queries[rows.queries], documents[rows.passages])
            for rows in (*self._problems["dev"], *self._problems["all"])
        }

    def surrogate(self) -> Surrogate:
        """Encode everything with the base and with each expert alone, and keep the vectors.

        Their exact scores are kept too, so a search does not pay for them again. Memory: (experts + 1) x
        (queries + documents) x dimension x 4 bytes.
        """
        encoded = {name: self._member(name) for name in ("", *self.experts)}
        return Surrogate(
            [
                SurrogateSet(
                    rows.problem.name,
                    guard,
                    _Score(rows.problem),
                    _pick(encoded[""], rows),
                    {name: _pick(encoded[name], rows) for name in self.experts},
                )
                for guard, problems in ((False, self._problems["dev"]), (True, self._problems["all"]))
                for rows in problems
            ]
        )

    def _member(self, name: str) -> tuple[Vectors, Vectors]:
        recipe = MergeRecipe(method="task_arithmetic", weights={name: 1.0}) if name else None
        scores, queries, documents = self._score(recipe, None)
        self._known[recipe_key(recipe)] = scores
        return queries, documents

    def _score(
        self, recipe: MergeRecipe | None, stop: StopEarly | None
    ) -> tuple[TrialScores, Vectors, Vectors]:
        began = time.perf_counter()
        if recipe is None:
            self.merged.restore()
        else:
            self.merged.apply(recipe)
        count, passages = self._sizes
        queries = np.empty((count, self.backbone.dimension), dtype=np.float32)
        documents = np.empty((passages, self.backbone.dimension), dtype=np.float32)
        found: dict[Stage, dict[str, dict[str, float]]] = {}
        reached: Stage = "part"
        stopped = ""
        for stage in _STAGES:
            reached = stage
            for vectors, (prepared, rows) in zip((queries, documents), self._prepared[stage], strict=True):
                vectors[rows] = prepared.encode(self._precision)
            found[stage] = {
                rows.problem.name: ndcg_by_query(
                    rows.problem, queries[rows.queries], documents[rows.passages]
                )
                for rows in self._problems[stage]
            }
            if stop is not None and self._may_stop(stage):
                stopped = stop(_scores(found, stage, "", began))
            if stopped:
                break
        self._last = None if stopped else (recipe_key(recipe), queries, documents)
        return _scores(found, reached, stopped, began), queries, documents

    def _may_stop(self, stage: Stage) -> bool:
        """Only where something is left to be saved, and something was scored."""
        if stage == "part":
            return bool(self._problems["part"])
        return stage == "dev" and bool(self._problems["all"])

    def restore(self) -> None:
        """Put the base's own bytes back."""
        self.merged.restore()

    def __enter__(self) -> ModelEvaluator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()


def evaluator_for(
    backbone: Backbone,
    experts: Mapping[str, Deltas],
    dev: Sequence[Problem],
    guards: Sequence[Problem] = (),
    *,
    prune_share: float | None = None,
    seed: int = 0,
) -> ModelEvaluator:
    """An evaluator of merges of ``experts`` on development queries; see :class:`ModelEvaluator`."""
    return ModelEvaluator(backbone, experts, dev, guards, prune_share=prune_share, seed=seed)


@dataclass(frozen=True)
class _Score:
    problem: Problem

    def __call__(self, queries: Vectors, documents: Vectors) -> Mapping[str, float]:
        return ndcg_by_query(self.problem, queries, documents)


def ndcg_by_query(problem: Problem, queries: Vectors, documents: Vectors) -> dict[str, float]:
    """nDCG@10 by query of a problem's vectors (n, d) and (m, d)."""
    return score_vectors(queries, documents, problem)[NDCG]


def _pick(encoded: tuple[Vectors, Vectors], rows: _Rows) -> MemberVectors:
    return MemberVectors(encoded[0][rows.queries], encoded[1][rows.passages])


def _scores(
    found: Mapping[Stage, Mapping[str, Mapping[str, float]]], stage: Stage, stopped: str, began: float
) -> TrialScores:
    return TrialScores(
        part=found.get("part", {}),
        dev=found.get("dev", {}),
        guards=found.get("all", {}),
        stage=stage,
        stopped=stopped,
        seconds=time.perf_counter() - began,
    )


def _prepare(
    backbone: Backbone,
    texts: tuple[list[str], NDArray[np.int64]],
    role: Literal["query", "document"],
    token_budget: int,
) -> tuple[PreparedTexts, NDArray[np.int64]]:
    return PreparedTexts(backbone, texts[0], role, token_budget=token_budget), texts[1]


def _part(problem: Problem, share: float, seed: int) -> Problem:
    """A seeded part of a problem's queries, with their judged documents and a sample of the others."""
    names = list(problem.queries)
    count = min(len(names), max(FEWEST_QUERIES, round(share * len(names))))
    drawn = np.random.default_rng(seed).permutation(len(names))[:count]
    chosen = [names[index] for index in sorted(int(index) for index in drawn)]
    qrels = {name: problem.qrels[name] for name in chosen}
    passages: list[Passage] = judged_and_sample(
        problem.passages,
        qrels,
        max(1, round(share * len(problem.passages))),
        seed=seed,
        keep=set(chosen) if problem.exclude_self else None,
    )
    return replace(
        problem, queries={name: problem.queries[name] for name in chosen}, qrels=qrels, passages=passages
    )


def _check_names(dev: Sequence[Problem], guards: Sequence[Problem]) -> None:
    if not dev:
        message = "A search needs at least one development set to choose by, found none. Give dev queries."
        raise ConfigError(message)
    names = [problem.name for problem in (*dev, *guards)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = f"Collections are told apart by name, but {twice} stand for more than one. Rename them."
        raise ConfigError(message)
