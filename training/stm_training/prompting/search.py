"""Search for the query prompt of a model: gather candidates, lint, score on development queries, choose."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np

from stm_retriever.errors import ConfigError
from stm_retriever.folder import Prompts
from stm_retriever.tokenization import TextTokenizer
from stm_training.data.leakage import tokens
from stm_training.finetune.backbone import Backbone
from stm_training.llm.base import LLM, SendsDocuments
from stm_training.llm.journal import Journal
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.scoring import Vectors
from stm_training.prompting.candidates import check_template, infer_template, make_prompt, read_candidates
from stm_training.prompting.decision import PLAIN, Candidate, PromptDecision, Scored, decide
from stm_training.prompting.generic import generic_prompts
from stm_training.prompting.gepa_search import GepaResult, Progress, run_gepa
from stm_training.prompting.lint import PromptLinter
from stm_training.prompting.reflection import CallableLLM, Reflector
from stm_training.prompting.scoring import PromptScorer
from stm_training.prompting.settings import GepaSection, PromptSearchSection

JOURNAL, SCORES = "prompts.journal.jsonl", "prompts.scores.jsonl"
_FEWEST_QUERIES = 10  # in each part; a bootstrap of fewer is too sure of itself

CODE = ("stm_training.prompting", "stm_training.synthesize.asking", "stm_training.synthesize.parsing")
"""Packages whose source decides the result, for a stage's key."""


def search_prompt(
    backbone: Backbone,
    problem: Problem,
    settings: PromptSearchSection,
    *,
    llm: LLM | Callable[[str], str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    documents: Vectors | None = None,
    held_out: Iterable[str] = (),
    dataset_names: Iterable[str] = (),
    work: Path | None = None,
) -> PromptDecision:
    """Choose the query prompt of a model on development queries; test queries have no way in to be scored.

    The document prompt stays, so that the passages are encoded once, and queries once per prompt. The model
    is as before afterwards: put the prompt in place with ``applying.set_query_prompt`` or
    ``applying.with_query_prompt``, and export.

    Args:
        backbone: The model, its query prompt being the plain one.
        problem: Development queries and the passages to rank.
        settings: Which candidates, and how the choice is made.
        llm: For ``settings.gepa``: a language model, or a function from a request's text to an answer.
        seed: Seeds the halves, the draw of generic prompts, GEPA and the bootstrap.
        progress: Called with done, total and a note.
        documents: Passage vectors (m, d) by this very model, where they are known.
        held_out: Texts of test queries; a prompt that copies one is refused.
        dataset_names: Names that give the data away, beside the problem's; a prompt may not hold them.
        work: Folder that outlives a kill: answers and scores are kept there, and the same call goes on from
            them to the same end.

    Returns:
        The decision.

    Raises:
        ConfigError: If nothing is to be tried, or GEPA has no language model.
        LLMError: If the language model cannot be used.
    """
    if not settings.is_search:
        message = "There is no prompt to try: give a list (candidates, prompts), random, or gepa."
        raise ConfigError(message)
    if settings.gepa is not None and llm is None:
        message = "gepa needs a language model to write instructions. Give one (base_url and model)."
        raise ConfigError(message)
    if settings.gepa is not None and isinstance(llm, SendsDocuments):
        llm.announce(len(problem.passages))  # excerpts of them are in what is asked
    plain = backbone.prompts.query
    search, test = _parts(problem, settings.decide_fraction, seed)
    sizes = {"search": len(search), "decide": len(test)}
    linter = _linter(backbone, problem, settings, held_out, dataset_names)
    own = Candidate(plain, PLAIN, linter.check(plain) if plain else ())
    if min(len(search), len(test)) < _FEWEST_QUERIES:
        reason = (
            f"{len(search)} + {len(test)} development queries are too few to tell prompts apart; at least "
            f"{_FEWEST_QUERIES} are needed in each part"
        )
        return PromptDecision(plain, plain, reason, (own,), sizes)
    template = check_template(settings.template) if settings.template else infer_template(plain)
    given = {prompt: origin for prompt, origin in _given(settings, template, seed) if prompt != plain}
    refused = {prompt: findings for prompt in given if (findings := linter.check(prompt))}
    tried = {plain: PLAIN} | {prompt: origin for prompt, origin in given.items() if prompt not in refused}
    scorer = PromptScorer(
        backbone, problem, documents=documents, kept=None if work is None else work / SCORES
    )
    scored = _score_all(scorer, tried, search, test, progress)
    gepa: GepaResult | None = None
    if settings.gepa is not None and llm is not None:
        with _reflector(llm, settings.gepa, linter, template, seed, work) as reflector:
            seen = _sample(search, settings.gepa.max_queries, seed)
            gepa = run_gepa(scorer, seen, reflector, plain, template, settings.gepa, seed, progress)
        new = {prompt: "gepa" for prompt in gepa.prompts if prompt not in tried}
        scored += _score_all(scorer, new, search, test, progress)
    prompt, reason, table, level = decide(scored, settings, seed=seed)
    table[0] = replace(table[0], findings=own.findings)
    table += [Candidate(text, given[text], findings) for text, findings in refused.items()]
    notes = _notes(len(refused), gepa, own)
    figures = None if gepa is None else asdict(gepa)
    return PromptDecision(prompt, plain, reason, tuple(table), sizes, level, notes, figures)


def _parts(problem: Problem, fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Query ids to rank candidates by, and ids to test the best ones on."""
    ids = sorted(problem.queries)
    order = np.random.default_rng(seed).permutation(len(ids))
    cut = round(len(ids) * (1 - fraction))
    return [ids[index] for index in sorted(order[:cut])], [ids[index] for index in sorted(order[cut:])]


def _sample(ids: Sequence[str], limit: int, seed: int) -> list[str]:
    chosen = np.random.default_rng(seed).permutation(len(ids))[:limit]
    return [ids[index] for index in sorted(chosen)]


def _linter(
    backbone: Backbone,
    problem: Problem,
    settings: PromptSearchSection,
    held_out: Iterable[str],
    dataset_names: Iterable[str],
) -> PromptLinter:
    tokenizer = TextTokenizer.from_json(
        backbone.tokenizer_json,
        max_length=backbone.max_length,
        eos_token_id=backbone.eos_token_id,
        pad_token_id=backbone.pad_token_id,
        prompts=Prompts(),
    )
    return PromptLinter(
        dataset_names=_telling_names([problem.name, *dataset_names], problem),
        queries=[*problem.queries.values(), *held_out],
        max_characters=settings.max_characters,
        count_tokens=lambda texts: tokenizer.count(texts, "query"),
        max_tokens=backbone.max_length // 2,
    )


def _telling_names(names: Iterable[str], problem: Problem) -> list[str]:
    """Names that only the evaluation knows: a folder called ``health`` must not forbid the word."""
    telling = []
    for name in names:
        words = re.compile(r"\b" + r"\W+".join(map(re.escape, tokens(name))) + r"\b", re.IGNORECASE)
        if not any(words.search(passage.content) for passage in problem.passages):
            telling.append(name)
    return telling


def _given(settings: PromptSearchSection, template: str, seed: int) -> Iterator[tuple[str, str]]:
    """Prompts with their origin; what a user gives comes before what we ship."""
    if settings.random:
        for instruction in generic_prompts(settings.random, seed=seed):
            yield make_prompt(instruction, template), "random"
    if settings.candidates is not None:
        for prompt in read_candidates(settings.candidates, template):
            yield prompt, "list"
    for instruction in settings.prompts:
        yield make_prompt(instruction, template), "list"


def _score_all(
    scorer: PromptScorer,
    prompts: dict[str, str],
    search: Sequence[str],
    test: Sequence[str],
    progress: Progress | None,
) -> list[Scored]:
    scored = []
    for prompt, origin in prompts.items():
        results = scorer.score(prompt, [*search, *test])
        values = np.array([result.ndcg for result in results])
        scored.append(Scored(prompt, origin, values[: len(search)], values[len(search) :]))
        if progress is not None:
            best = max(float(one.search.mean()) for one in scored)
            progress(len(scored), len(prompts), f"prompts, best {best:.4f}")
    return scored


@contextmanager
def _reflector(
    llm: LLM | Callable[[str], str],
    settings: GepaSection,
    linter: PromptLinter,
    template: str,
    seed: int,
    work: Path | None,
) -> Iterator[Reflector]:
    model = cast("LLM", llm) if hasattr(llm, "complete") else CallableLLM(llm)
    with tempfile.TemporaryDirectory(prefix="stm-prompts-") as folder:
        with Journal((work or Path(folder)) / JOURNAL) as journal:
            yield Reflector(
                model,
                journal,
                linter,
                template,
                seed=seed,
                temperature=settings.temperature,
                most=settings.max_reflections,
            )


def _notes(refused: int, gepa: GepaResult | None, own: Candidate) -> tuple[str, ...]:
    notes = []
    if refused:
        notes.append(f"{refused} given prompts were refused by the linter and not scored.")
    if own.findings:
        notes.append("The plain prompt would be refused itself: " + "; ".join(map(str, own.findings)) + ".")
    if gepa is not None and gepa.failures:
        notes.append(
            f"{len(gepa.failures)} of {gepa.reflections} reflections brought no usable instruction, for "
            f"instance: {gepa.failures[0]}"
        )
    if gepa is not None and not gepa.prompts:
        notes.append("GEPA kept no instruction but the plain prompt.")
    return tuple(notes)
