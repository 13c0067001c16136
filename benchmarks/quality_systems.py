"""The systems of quality.py: what each is trained on, how it is chosen, and its scores per query."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import experts
import merging
import numpy as np
from cells import RESULTS, ROOT, CellStore
from merging import Members, all_data_settings, objective_of
from panel import Panel, apart

from stm_training.data.records import Pair, Passage
from stm_training.evaluate.metrics import score_run
from stm_training.evaluate.systems import run_hybrid
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.finetune.lora import full_deltas
from stm_training.finetune.settings import TrainSettings
from stm_training.merge.apply import MergedModel
from stm_training.merge.fusion import fuse
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.evaluator import ndcg_by_query
from stm_training.merge.search.objective import Objective, domain, general, guard_losses
from stm_training.merge.search.records import TrialScores
from stm_training.mining.mine import mine_negatives
from stm_training.mining.settings import MineSection
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.scoring import (
    Vectors,
    encode_passages,
    rank_bm25,
    rank_vectors,
    read_vectors,
    vectors_path,
)

METHOD = "task_arithmetic"  # fixed beforehand: it was the best on the development queries
SEED = 0
NDCG = "ndcg@10"
SHARES = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)  # REFINE's lambda: its tuning trials; 0.35 is the paper's
REFINE_LOSS = "info_nce"
REFINE_MINING = MineSection(preset="refine", num_negatives=1)
DENSE_CODE = ("stm_training.finetune", "stm_training.merge", "stm_training.mining")
LEXICAL_CODE = ("stm_training.evaluate.bm25", "stm_training.evaluate.ranking")
HYBRID_CODE = (*DENSE_CODE, *LEXICAL_CODE, "stm_retriever.fusion")

Key = TypeVar("Key", bound=Hashable)
Encoded = dict[str, tuple[Vectors, Vectors]]
"""Query vectors (n, d) and passage vectors (m, d) by the name of a problem."""


@dataclass
class Bench:
    """What all systems share.

    Attributes:
        full: The full test collections instead of the panel's cuts.
        panel: Training pairs and development problems, and the panel's test problems.
        full_tests: Makes the panel of the full test problems.
        folder: Cells of this table.
        work: Models and vectors that a later run needs again.
    """

    full: bool = False
    panel: Panel = field(default_factory=lambda: Panel(dev_documents=merging.DEV_DOCUMENTS))
    full_tests: Callable[[], Panel] = lambda: Panel(
        full=True, dev_documents=merging.DEV_DOCUMENTS, full_guards=True
    )
    folder: Path = RESULTS / "quality"
    work: Path = ROOT / "runs" / "quality"

    @cached_property
    def members(self) -> Members:
        """The experts and all data at once."""
        return Members(self.panel)

    @cached_property
    def tests(self) -> dict[str, Problem]:
        """Test problems; of the full ones no query is a training or a development query."""
        if not self.full:
            return self.panel.tests
        seen = [pair.query for pair in self.members.every_pair()]
        seen += [text for problem in self.dev.values() for text in problem.queries.values()]
        return {name: apart(problem, seen) for name, problem in self.full_tests().tests.items()}

    @property
    def dev(self) -> dict[str, Problem]:
        """Development problems, those of the guards included."""
        return {**self.panel.dev, **self.panel.dev_guards}

    def trial(self, score: Callable[[Problem], dict[str, float]]) -> TrialScores:
        """A candidate on the development queries."""
        return TrialScores(
            dev={name: score(problem) for name, problem in self.panel.dev.items()},
            guards={name: score(problem) for name, problem in self.panel.dev_guards.items()},
        )

    def encode(self, backbone: Backbone, problems: Mapping[str, Problem], system: str = "") -> Encoded:
        """Encode problems; passages of a named system are kept on disk, for what is made from them later."""
        return {name: self._encode(backbone, problem, system) for name, problem in problems.items()}

    def _encode(self, backbone: Backbone, problem: Problem, system: str) -> tuple[Vectors, Vectors]:
        folder = self.work / "vectors"
        keep, system = bool(system), f"{system}-{problem.name}"
        known = read_vectors(folder, system, problem) if keep else None
        documents = encode_passages(backbone, problem) if known is None else known
        if keep and known is None:
            folder.mkdir(parents=True, exist_ok=True)
            path = vectors_path(folder, system, problem)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, documents)
            partial.replace(path)
        return encode_texts(backbone, list(problem.queries.values()), "query"), documents

    def cell(
        self, name: str, decides: Any, work: Callable[[], dict[str, Any]], code: Sequence[str] = DENSE_CODE
    ) -> dict[str, Any]:
        """A cell of this table."""
        return self._store(code).run(f"{name}{'-full' * self.full}", {"full": self.full, "of": decides}, work)

    @cached_property
    def base_dev(self) -> TrialScores:
        """The base on the development queries."""
        vectors = self.encode(load_backbone(experts.spec()), self.dev, self.named("base", ""))
        return self.trial(lambda problem: ndcg_by_query(problem, *vectors[problem.name]))

    @cached_property
    def objective(self) -> Objective:
        """What every system's tuning trials are ranked by."""
        return objective_of(self.base_dev)

    def named(self, system: str, decides: Any) -> str:
        """A name of a model's vectors that changes with what decides them."""
        return f"{system}-{self._store(DENSE_CODE).key(decides)[:12]}"

    def _store(self, code: Sequence[str]) -> CellStore:
        return CellStore(self.folder, code, {"max_length": experts.MAX_LENGTH})


def test_scores(bench: Bench, vectors: Encoded) -> dict[str, Any]:
    """nDCG@10 of every test query, and the means."""
    problems = bench.tests.items()
    return experts.summary({name: ndcg_by_query(problem, *vectors[name]) for name, problem in problems})


def choose(trials: Mapping[Key, TrialScores], objective: Callable[[TrialScores], float]) -> Key:
    """The trial with the highest objective on the development queries; the first of equals."""
    return max(trials, key=lambda name: objective(trials[name]))


def trial_figures(trials: Mapping[Any, TrialScores], objective: Objective) -> dict[str, dict[str, Any]]:
    """Every tuning trial, for its cell."""
    return {
        str(name): {
            "domain": domain(found),
            "general": general(found),
            "worst_guard_loss": max(guard_losses(found, objective.base).values(), default=0.0),
            "objective": objective(found),
        }
        for name, found in trials.items()
    }


def training_sample(pairs: Sequence[Pair], settings: TrainSettings, seed: int = SEED) -> list[Pair]:
    """The pairs that a run of so many steps sees: a seeded draw, so that no other is mined for."""
    count = min(len(pairs), (settings.steps or 0) * settings.batch_size)
    return random.Random(seed).sample(list(pairs), count)


def own_corpus(pairs: Iterable[Pair]) -> list[Passage]:
    """The different positives of pairs, as what negatives are mined from."""
    positives = {pair.positive: pair.positive_id for pair in pairs}
    return [Passage(id=name or f"row-{row}", text=text) for row, (text, name) in enumerate(positives.items())]


def base(bench: Bench) -> dict[str, Any]:
    """The untouched base."""
    if not bench.full:
        return experts.base_cell(bench.panel, full=False)

    def work() -> dict[str, Any]:
        return test_scores(bench, base_vectors(bench, bench.tests))

    return bench.cell("base", "", work)


def base_vectors(bench: Bench, problems: Mapping[str, Problem]) -> Encoded:
    """The base's vectors, of passages encoded once for all systems that want them."""
    return bench.encode(load_backbone(experts.spec()), problems, bench.named("base", ""))


def bm25(bench: Bench) -> dict[str, Any]:
    """BM25 as ``stm-train evaluate`` runs it."""

    def work() -> dict[str, Any]:
        problems = bench.tests.items()
        return experts.summary(
            {name: score_run(rank_bm25(problem), problem.qrels)[NDCG] for name, problem in problems}
        )

    return bench.cell("bm25", "", work, LEXICAL_CODE)


def ours(bench: Bench) -> dict[str, Any]:
    """The experts, merged by what the search finds on the development queries."""
    return _merged(bench, "ours", merging.search_cell(bench.members, METHOD, SEED, full=False))


def all_data(bench: Bench) -> dict[str, Any]:
    """One adapter on all pairs; its share is tuned."""
    return _merged(bench, "all-data", merging.all_data_cell(bench.members, full=False))


def _merged(bench: Bench, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """What a search found; on the full tests its recipe is scored anew, and not searched for again."""
    if not bench.full:
        return found

    def work() -> dict[str, Any]:
        vectors = merged_vectors(bench, name, found["recipe"])
        return test_scores(bench, vectors) | {"recipe": found["recipe"], "dev": found["dev"]}

    return bench.cell(name, [found["key"], found["recipe"]], work)


def merged_vectors(bench: Bench, name: str, recipe: Mapping[str, Any]) -> Encoded:
    """Test vectors of a merge, kept for the hybrid."""
    model = bench.members.model(MergeRecipe.model_validate(recipe))
    return bench.encode(model, bench.tests, bench.named(name, [recipe, _trainings()]))


def _trainings() -> dict[str, Any]:
    """What the members of a merge were trained by."""
    settings = {**experts.EXPERTS, merging.ALL_DATA: all_data_settings()}
    return {name: one.model_dump() for name, one in settings.items()}


def hybrid(bench: Bench) -> dict[str, Any]:
    """Ours and BM25, fused as ``hybrid:`` of ``stm-train evaluate`` does."""
    found = merging.search_cell(bench.members, METHOD, SEED, full=False)

    def work() -> dict[str, Any]:
        vectors = merged_vectors(bench, "ours", found["recipe"])
        scores = {}
        for name, problem in bench.tests.items():
            fused = run_hybrid(rank_vectors(*vectors[name], problem), rank_bm25(problem))
            scores[name] = score_run(fused, problem.qrels)[NDCG]
        return experts.summary(scores)

    return bench.cell("hybrid", [found["key"], found["recipe"]], work, HYBRID_CODE)


def refine(bench: Bench) -> dict[str, Any]:
    """REFINE: negatives from a band of similarities, and vectors fused with the base's."""
    settings = all_data_settings().model_copy(update={"loss": REFINE_LOSS, "hard_negatives": 1})
    decides = {
        "train": settings.model_dump(),
        "mine": REFINE_MINING.model_dump(),
        "shares": refine_shares(),
    }

    def work() -> dict[str, Any]:
        tuned, record = _refined(bench, settings)
        before, after = base_vectors(bench, bench.dev), bench.encode(tuned, bench.dev)
        trials = {
            share: bench.trial(
                lambda problem, share=share: ndcg_by_query(
                    problem, *_fused(before[problem.name], after[problem.name], share)
                )
            )
            for share in refine_shares()
        }
        best = choose(trials, bench.objective)
        print(f"refine: lambda {best} is the best of {len(trials)} on the development queries", flush=True)
        before, after = base_vectors(bench, bench.tests), bench.encode(tuned, bench.tests)
        found = test_scores(bench, {name: _fused(before[name], after[name], best) for name in bench.tests})
        return found | {
            "share": best,
            "trials": trial_figures(trials, bench.objective),
            "training": record,
        }

    return bench.cell("refine", decides, work)


def refine_shares() -> tuple[float, ...]:
    """As many lambdas as every system has tuning trials."""
    return SHARES[: merging.TRIALS]


def _fused(before: tuple[Vectors, Vectors], after: tuple[Vectors, Vectors], share: float) -> Any:
    return tuple(fuse(one, other, share) for one, other in zip(before, after, strict=True))


def _refined(bench: Bench, settings: TrainSettings) -> tuple[Backbone, dict[str, Any]]:
    """The all-data training with mined negatives: its model and its record."""
    rules = hashlib.sha256(json.dumps(REFINE_MINING.model_dump(), default=str).encode()).hexdigest()[:8]
    folder, record = experts.adapter(
        f"refine-{rules}", SEED, settings, lambda: _with_negatives(bench, settings)
    )
    backbone = load_backbone(experts.spec())
    merged = MergedModel(backbone, {"refine": full_deltas(folder, backbone)})
    merged.apply(MergeRecipe(method="task_arithmetic", weights={"refine": 1.0}))
    return backbone, record


def _with_negatives(bench: Bench, settings: TrainSettings) -> list[Pair]:
    pairs = training_sample(bench.members.every_pair(), settings)
    backbone = load_backbone(experts.spec())
    mined, report = mine_negatives(
        pairs,
        own_corpus(pairs),
        REFINE_MINING,
        encode_query=lambda texts: encode_texts(backbone, list(texts), "query"),
        encode_document=lambda texts: encode_texts(backbone, list(texts), "document"),
        model="base",
        seed=SEED,
    )
    print(f"refine: {report.counts['mined']} negatives mined for {len(pairs)} pairs", flush=True)
    return mined


def spec_of(folder: Path) -> BackboneSpec:
    """A peer's checkpoint, its texts cut as everyone's are."""
    return BackboneSpec(source=str(folder), max_length=experts.MAX_LENGTH)
