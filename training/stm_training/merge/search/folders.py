"""A search over merges of folders that lie on disk: adapters, whole models, or a mix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stm_training.data.reading import read_beir
from stm_training.merge.search.computed import with_cocktail
from stm_training.merge.search.evaluator import evaluator_for
from stm_training.merge.search.job import SearchJob
from stm_training.merge.search.processes import Work, search_in_processes
from stm_training.merge.search.records import SearchResult
from stm_training.merge.search.settings import SearchSection
from stm_training.merge.search.study import Progress, search
from stm_training.merge.stream.folders import is_adapter
from stm_training.pipeline.collections import Problem, judged_and_sample
from stm_training.pipeline.stages import content_digest, source_digest

_CODE = ("stm_training.merge", "stm_training.finetune", "stm_training.evaluate")


@dataclass(frozen=True)
class FolderSearch:
    """What is searched.

    Attributes:
        base: Folder of the base.
        members: Folder by member: PEFT adapters or whole models.
        dev: Development problems; each weighs the same.
        guards: Problems that must not get worse.
        settings: How to search.
        scratch: Folder of the storage; outlives a kill.
        max_guard_loss: In nDCG@10 points (0-100).
        seed: Seeds the search.
    """

    base: Path
    members: Mapping[str, Path]
    dev: Sequence[Problem]
    guards: Sequence[Problem]
    settings: SearchSection
    scratch: Path
    max_guard_loss: float = 0.5
    seed: int = 0

    def run(self, progress: Progress | None = None) -> SearchResult:
        """Search, or go on with a search that was killed.

        Raises:
            ConfigError: If the settings do not fit the members.
            MergeError: If a member does not fit the base.
            ModelFolderError: If a folder is missing or damaged.
        """
        job = SearchJob(
            self.settings, tuple(self.members), self.scratch, self._inputs(), self.seed, self.max_guard_loss
        )
        make = partial(_work, self)

        def finish(work: Work, result: SearchResult) -> SearchResult:
            return with_cocktail(result, self.settings, job.experts, work.evaluate, self.dev, job.tolerance)

        if self.settings.processes == 1:
            with make() as work:
                return finish(work, search(job, work.evaluate, surrogate=work.surrogate, progress=progress))
        result = search_in_processes(job, make, progress)
        if not self.settings.cocktail_examples:
            return result
        with make() as work:
            return finish(work, result)

    def _inputs(self) -> str:
        """A hash of all that decides a score."""
        folders = {name: content_digest(path) for name, path in {"": self.base, **self.members}.items()}
        problems = [
            [problem.name, dict(problem.queries), {q: dict(g) for q, g in problem.qrels.items()}]
            + [[passage.id, passage.content] for passage in problem.passages]
            for problem in (*self.dev, *self.guards)
        ]
        parts = [folders, problems, len(self.dev), {name: source_digest(name) for name in _CODE}]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _work(what: FolderSearch) -> Iterator[Work]:
    """What each process of a search needs; a function of the module, since other processes call it."""
    from stm_training.finetune.backbone import BackboneSpec, load_backbone
    from stm_training.finetune.full_weights import full_weight_deltas
    from stm_training.finetune.lora import full_deltas

    base = load_backbone(BackboneSpec(source=str(what.base)))
    deltas = {
        name: (full_deltas if is_adapter(path) else full_weight_deltas)(path, base)
        for name, path in what.members.items()
    }
    share = what.settings.prune_share if what.settings.pruning else None
    with evaluator_for(base, deltas, what.dev, what.guards, prune_share=share, seed=what.seed) as evaluator:
        yield Work(evaluator, evaluator.surrogate() if what.settings.surrogate else None)


def read_problem(
    folder: Path, split: str, *, queries: int | None, documents: int | None, exclude_self: bool, seed: int
) -> Problem:
    """Queries of a BEIR folder's split, ranked among its documents or a seeded part of them.

    Args:
        folder: A BEIR folder.
        split: Which ``qrels/<split>.tsv``.
        queries: Most queries, in the order of the qrels; ``None``: all.
        documents: Most documents; judged ones always stay. ``None``: all.
        exclude_self: Leave out the document with a query's own id (ArguAna).
        seed: Draws the documents.

    Raises:
        DataError: If the folder cannot be read.
    """
    found = read_beir(folder, split, allow_title_only=True)
    names = list(found.qrels)[:queries]
    qrels = {name: found.qrels[name] for name in names}
    passages = list(found.corpus.values())
    if documents is not None:
        keep = set(names) if exclude_self else None
        passages = judged_and_sample(passages, qrels, documents, seed=seed, keep=keep)
    texts = {name: found.queries[name] for name in names}
    name = found.name if split == "dev" else f"{found.name}:{split}"
    return Problem(name, passages, texts, qrels, exclude_self=exclude_self)
