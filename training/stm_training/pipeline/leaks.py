"""What a run trains on against everything that it is judged by, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stm_training.data.reading import read_pairs
from stm_training.data.records import Pair, Passage
from stm_training.leakage.gate import Gate, examine
from stm_training.leakage.sets import TextSet, read_test
from stm_training.pipeline.collections import HELD_OUT, Qrels, Split
from stm_training.pipeline.domains import Domain, domain_problems
from stm_training.recipe import Recipe

# Comparing documents takes some minutes beyond this many; queries are always compared.
_MOST_COMPARED_DOCUMENTS = 200_000


def held_out_sets(
    recipe: Recipe,
    passages: Sequence[Passage],
    held_out: Mapping[Split, tuple[dict[str, str], Qrels]],
    domains: Sequence[Domain],
) -> list[TextSet]:
    """The development and test sets of the run and of its domains, with what they are answered from.

    Args:
        recipe: The recipe.
        passages: The corpus.
        held_out: Development and test queries.
        domains: Further labelled collections.
    """
    documents = {passage.id: passage.content for passage in passages}
    sets = [TextSet(split, queries, documents) for split, (queries, _) in held_out.items() if queries]
    for split in HELD_OUT:
        for problem in domain_problems(recipe, domains, split):
            found = {passage.id: passage.content for passage in problem.passages}
            sets.append(TextSet(f"{problem.name}/{split}", problem.queries, found))
    return sets


def leak_gate(recipe: Recipe, pairs: Sequence[Pair], held_out: Sequence[TextSet]) -> Gate:
    """Look for test queries among the training queries, and for what is nearly the same.

    Args:
        recipe: ``on_leak``, ``allow_leaks``, ``guards``, and the experts' own files of pairs.
        pairs: The run's training pairs.
        held_out: See :func:`held_out_sets`; the guards are added here.

    Raises:
        DataError: If a training query is a development, test or guard query, the recipe's ``on_leak`` is
            ``raise``, and ``allow_leaks`` does not name that set.
    """
    tests = [*held_out]
    for name, guard in recipe.guards.items():
        tests.append(replace(read_test(guard.path, split=guard.split), name=f"guard/{name}"))
    training: dict[str, Sequence[Pair]] = {"pairs": pairs}
    for name, expert in recipe.experts.items():
        for number, path in enumerate(expert.pairs):
            training[f"{name}/{number}/{Path(path).name}"] = read_pairs(path)
    return examine(
        training,
        tests,
        drop=recipe.on_leak == "drop",
        allowed=recipe.allow_leaks,
        documents=len(pairs) < _MOST_COMPARED_DOCUMENTS,
    )
