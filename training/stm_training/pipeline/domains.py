"""Further collections of the domain: labelled pairs of their own, and problems beside the main one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stm_training.data.reading import read_corpus
from stm_training.data.records import Pair, Passage, SkippedRow
from stm_training.pipeline.collections import Problem, Split, document_id, judged_and_sample
from stm_training.pipeline.corpus import Splits, cut_queries
from stm_training.recipe import Recipe


@dataclass(frozen=True)
class Domain:
    """One further collection, as it was read.

    Attributes:
        name: The recipe's name for it.
        documents: Its corpus.
        splits: Queries and judgements of train, dev and test, as far as there are such.
    """

    name: str
    documents: Sequence[Passage]
    splits: Splits

    def pairs(self) -> list[Pair]:
        """Training pairs; their kind is the domain's name."""
        queries, qrels = self.splits.get("train", ({}, {}))
        return labelled_pairs(self.documents, queries, qrels, kind=self.name, prefix=f"{self.name}/")


def read_domains(recipe: Recipe) -> list[Domain]:
    """Read every domain of a recipe."""
    domains = []
    for name, section in recipe.domains.items():
        skipped: list[SkippedRow] = []
        documents = read_corpus(section.path, recipe.on_error, skipped=skipped, allow_title_only=True)
        splits = cut_queries(section, documents, seed=recipe.seed, on_error=recipe.on_error, skipped=skipped)
        domains.append(Domain(name, documents, splits))
    return domains


def domain_problems(recipe: Recipe, domains: Sequence[Domain], split: Split) -> list[Problem]:
    """The development or test problem of every domain that has such queries."""
    return [
        cut_problem(recipe, Problem(one.name, one.documents, *one.splits[split]), split)
        for one in domains
        if split in one.splits and one.splits[split][0]
    ]


def cut_problem(recipe: Recipe, problem: Problem, split: Split) -> Problem:
    """A development problem at the recipe's size; a test problem stays whole."""
    if split != "dev":
        return problem
    limits, passages = recipe.evaluate, problem.passages
    names = list(problem.queries)
    if limits.dev_queries is not None and len(names) > limits.dev_queries:
        drawn = np.random.default_rng(recipe.seed).choice(len(names), limits.dev_queries, replace=False)
        names = [names[place] for place in sorted(drawn)]
    qrels = {name: problem.qrels[name] for name in names}
    if limits.dev_documents is not None:
        passages = judged_and_sample(passages, qrels, limits.dev_documents, seed=recipe.seed)
    queries = {name: problem.queries[name] for name in names}
    return Problem(problem.name, passages, queries, qrels, problem.exclude_self)


def labelled_pairs(
    passages: Sequence[Passage],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    kind: str,
    prefix: str = "",
) -> list[Pair]:
    """One pair per relevant document; of a document in pieces, its first piece stands for it.

    Args:
        passages: The corpus.
        queries: Text by query id.
        qrels: Grade by query id and document id.
        kind: Kind of the pairs.
        prefix: Put before ids, so that those of several collections never meet.
    """
    first: dict[str, Passage] = {}
    for passage in passages:
        first.setdefault(document_id(passage), passage)
    return [
        Pair(
            query=text,
            positive=first[name].content,
            query_id=prefix + query_id,
            positive_id=prefix + first[name].id,
            source=kind,
            kind=kind,
        )
        for query_id, text in queries.items()
        for name, grade in qrels[query_id].items()
        if grade > 0 and name in first
    ]
