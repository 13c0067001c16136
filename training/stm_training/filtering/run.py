"""All filters of training pairs, one after the other, from the cheapest to the dearest."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from stm_retriever.errors import ConfigError
from stm_training.data.leakage import tokens
from stm_training.data.records import Pair, Passage
from stm_training.filtering.candidates import Sources
from stm_training.filtering.consistency import Retrievers, reranker_first, rivals_and_sources, round_trip
from stm_training.filtering.language import LanguageCheck
from stm_training.filtering.near_duplicates import NearDuplicates, feature_counts
from stm_training.filtering.negatives import drop_by_margin, drop_by_text, known_positives
from stm_training.filtering.result import Encode, FilterResult, Progress, Scorer, silent
from stm_training.filtering.settings import FilterSection, TextFilterSection
from stm_training.filtering.state import State
from stm_training.synthesize.extractive import SOURCE as EXTRACTIVE
from stm_training.synthesize.filters import Limits, query_problem

_NEVER = 10**9  # words: a run that no text has

logger = logging.getLogger(__name__)


def filter_pairs(
    pairs: Sequence[Pair],
    passages: Sequence[Passage],
    settings: FilterSection | None = None,
    *,
    encode_query: Encode | None = None,
    encode_document: Encode | None = None,
    reranker: Scorer | None = None,
    held_out: Iterable[str] = (),
    progress: Progress = silent,
) -> FilterResult:
    """Drop the pairs, and the negatives, that are not worth training on.

    In this order: held-out queries; each query's own text; near-duplicates; language; negatives by their
    text; negatives by the model's margin; round trip; reranker. Pairs whose source is in ``settings.spare``
    lose only held-out queries and negatives.

    Args:
        pairs: From any source, in any order; earlier ones win over their near-duplicates, spared ones over
            all others.
        passages: The corpus that sources must come back from.
        settings: What is on, and where the lines are drawn.
        encode_query: The model's texts -> (n, d) in the role of queries; prompts are its own business.
        encode_document: The same in the role of documents.
        reranker: Scores (query, passage) pairs; ``None``: the cross-encoder of ``settings.reranker.model``.
        held_out: Development and test queries; what repeats or nearly repeats one is dropped.
        progress: Called with (what, done, total).

    Returns:
        What is left, what was dropped by which filter with examples, and the time that each took.

    Raises:
        ConfigError: If a filter is on that lacks its model or its corpus.
        DataError: If a filter drops more than ``settings.most_dropped`` of the pairs, which says more about
            the filter than about the pairs.
        MissingExtraError: If a filter's library is not installed.
    """
    settings = settings or FilterSection()
    retrievers = Retrievers(passages, encode_query, encode_document, progress)
    _check(settings, retrievers)
    scorer = _scorer(settings, reranker)
    state = State(list(pairs), settings.spare, settings.most_dropped, progress)
    known = known_positives(pairs)
    if settings.duplicates.enabled:
        _held_out(state, settings.duplicates.held_out_similarity, list(dict.fromkeys(held_out)))
    if settings.text.enabled:
        state.drop_pairs("text", lambda pair: _text_problem(pair, settings.text))
    if settings.duplicates.enabled:
        _near_duplicates(state, settings.duplicates.similarity)
    if settings.language.enabled:
        _language(state, LanguageCheck(settings.language))
    if settings.negatives.enabled:
        with state.timed("negatives_by_text"):
            state.pairs = drop_by_text(state.pairs, settings.negatives, state.drops, known)
        if encode_query is not None and encode_document is not None and settings.negatives.margin != "off":
            with state.timed("negatives_by_margin"):
                state.pairs = drop_by_margin(
                    state.pairs,
                    settings.negatives,
                    state.drops,
                    encode_query=encode_query,
                    encode_document=encode_document,
                    progress=progress,
                )
    if settings.round_trip.enabled or scorer is not None:
        _consistency(state, settings, retrievers, scorer)
    return _result(pairs, state)


def _check(settings: FilterSection, retrievers: Retrievers) -> None:
    """Find what is missing before anything dear is done."""
    if (retrievers.encode_query is None) != (retrievers.encode_document is None):
        message = "encode_query and encode_document belong together: give both, or neither."
        raise ConfigError(message)
    if not (settings.round_trip.enabled or settings.reranker.enabled):
        return
    if not retrievers.passages:
        message = (
            "The round trip and the reranker look for each query's source among the passages, and none were "
            "given. Give the corpus, or switch both off (filters: round_trip: enabled: false)."
        )
        raise ConfigError(message)
    if settings.round_trip.enabled:
        retrievers.chosen(settings.round_trip.retriever)


def _scorer(settings: FilterSection, given: Scorer | None) -> Scorer | None:
    section = settings.reranker
    if not section.enabled:
        return None
    if given is not None:
        return given
    if section.model is None:
        message = (
            "The reranker filter is on and has no model. Set filters: reranker: model to a folder with a "
            "cross-encoder, or switch it off (enabled: false)."
        )
        raise ConfigError(message)
    from stm_training.filtering.cross_encoder import CrossEncoder  # torch only for those who rerank

    return CrossEncoder(section.model, max_length=section.max_length, token_budget=section.token_budget)


def _text_problem(pair: Pair, section: TextFilterSection) -> tuple[str, str] | None:
    if len(tokens(pair.positive)) < section.shortest_positive:
        return "positive_too_short", pair.positive
    extracted = pair.source == EXTRACTIVE  # such a query stood in its document, that is its nature
    limits = Limits(
        section.shortest,
        section.longest,
        copied_run=_NEVER if extracted else section.copied_run,
        copied_whole=_NEVER if extracted else section.copied_whole,
    )
    problem = query_problem(pair.query, Passage(pair.positive_id or "", pair.positive), limits)
    return None if problem is None else (problem, pair.query)


def _held_out(state: State, threshold: float, held_out: Sequence[str]) -> None:
    guarded = NearDuplicates(threshold, feature_counts(held_out))
    for query in held_out:
        guarded.add(query)

    def problem(pair: Pair) -> tuple[str, str] | None:
        twin = guarded.find(pair.query)
        return None if twin is None else ("held_out", f"{pair.query} [held out: {twin}]")

    state.drop_pairs("held_out", problem, spared_too=True)


def _near_duplicates(state: State, threshold: float) -> None:
    """Keep the first of several queries that say the same; of those that people wrote, keep all."""
    seen = NearDuplicates(threshold, feature_counts(pair.query for pair in state.pairs))
    own: dict[tuple[str, str], str] = {}  # one query with several positives is no duplicate of itself
    for pair in state.pairs:
        if state.is_spared(pair):
            seen.add(pair.query)

    def problem(pair: Pair) -> tuple[str, str] | None:
        key = (pair.query_id or "", pair.query)
        if pair.query_id is not None and own.get(key, pair.positive) != pair.positive:
            return None
        twin = seen.find(pair.query)
        if twin is not None:
            return "near_duplicate", f"{pair.query} [like: {twin}]"
        seen.add(pair.query)
        own[key] = pair.positive
        return None

    state.drop_pairs("near_duplicate", problem)


def _language(state: State, check: LanguageCheck) -> None:
    def problem(pair: Pair) -> tuple[str, str] | None:
        found = check.problem(pair.query, pair.positive)
        return None if found is None else ("language", f"{pair.query} [{found[0]}, document {found[1]}]")

    state.drop_pairs("language", problem)


def _consistency(
    state: State, settings: FilterSection, retrievers: Retrievers, scorer: Scorer | None
) -> None:
    with state.timed("sources"):
        sources = Sources(retrievers.passages)
        if scorer is not None:
            wanted = rivals_and_sources(state.pairs, sources, settings.reranker.candidates)
            retrievers = replace(retrievers, at_least=wanted)
    section = settings.round_trip
    if section.enabled:
        state.drop_by_verdict(
            "round_trip",
            lambda judged: round_trip(judged, sources, retrievers, choice=section.retriever, k=section.k),
        )
    if scorer is not None:
        state.drop_by_verdict(
            "reranker",
            lambda judged: reranker_first(
                judged, sources, retrievers, scorer, candidates=settings.reranker.candidates
            ),
        )


def _result(given: Sequence[Pair], state: State) -> FilterResult:
    counts = {
        "pairs_in": len(given),
        "pairs": len(state.pairs),
        "negatives_in": sum(len(pair.negatives) for pair in given),
        "negatives": sum(len(pair.negatives) for pair in state.pairs),
        **state.unchecked,
    }
    notes = [
        f"{name.removesuffix('_unchecked')} kept {count} pairs unjudged: their positive is not in the corpus."
        for name, count in state.unchecked.items()
        if count
    ]
    logger.info("filters: %d of %d pairs kept", counts["pairs"], counts["pairs_in"])
    return FilterResult(state.pairs, state.drops.by_filter, counts, state.seconds, notes)
