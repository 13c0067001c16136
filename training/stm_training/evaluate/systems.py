"""Any system on any collection: encode or index, rank, score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stm_retriever.errors import ConfigError, DataError
from stm_retriever.folder import Prompts
from stm_retriever.fusion import RRF_K, reciprocal_ranks
from stm_training.data.records import Collection
from stm_training.evaluate import metrics
from stm_training.evaluate.bm25 import BM25
from stm_training.evaluate.encoders import Encoder, load_encoder
from stm_training.evaluate.ranking import rank
from stm_training.evaluate.trec_files import read_run

BM25_NAME = "bm25"
HYBRID_PREFIX = "hybrid:"
RUN_PREFIX = "run:"


@dataclass(frozen=True, slots=True)
class RankOptions:
    """How models are run.

    Attributes:
        depth: How many documents per query.
        exclude_self: See :func:`stm_training.evaluate.ranking.rank`.
        variant: Which ONNX file of a retriever folder.
        device: ``cpu``, ``cuda`` or ``auto``.
        download: Whether the hub may be asked when the cache has no copy.
        prompts: Instead of those stored with a transformers or sentence-transformers model.
        show_progress: Show a bar while encoding.
    """

    depth: int = 100
    exclude_self: bool = False
    variant: str = "fp32"
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    download: bool = False
    prompts: Prompts | None = None
    show_progress: bool = False


DEFAULT_OPTIONS = RankOptions()


@dataclass(frozen=True, slots=True)
class Ranked:
    """What a model returned, and what decided it.

    Attributes:
        run: Query id -> (document id, score), best first.
        about: What the model is, for the JSON file: its kind, prompts, lengths.
    """

    run: metrics.Run
    about: dict[str, Any]


def run_encoder(
    encoder: Encoder,
    collection: Collection,
    *,
    k: int = 100,
    exclude_self: bool = False,
    show_progress: bool = False,
) -> metrics.Run:
    """Rank a collection by cosine similarity, queries and documents each in their own role.

    Args:
        encoder: The model.
        collection: One split; its judged queries are ranked against its whole corpus.
        k: How many documents per query.
        exclude_self: See :func:`stm_training.evaluate.ranking.rank`.
        show_progress: Passed to the encoder.

    Returns:
        Query id -> (document id, cosine), best first.

    Raises:
        DataError: If a judged query has no text or a vector is not finite.
    """
    queries = judged_queries(collection)
    documents = {name: passage.content for name, passage in collection.corpus.items()}
    return rank(
        encoder.encode_query(list(queries.values()), show_progress=show_progress),
        encoder.encode_document(list(documents.values()), show_progress=show_progress),
        query_ids=list(queries),
        doc_ids=list(documents),
        k=k,
        exclude_self=exclude_self,
    )


def run_bm25(collection: Collection, *, k: int = 100, exclude_self: bool = False) -> metrics.Run:
    """Rank a collection by BM25; arguments and errors as :func:`run_encoder` and :class:`BM25`."""
    index = BM25({name: passage.content for name, passage in collection.corpus.items()})
    return index.search(judged_queries(collection), k=k, exclude_self=exclude_self)


def run_hybrid(dense: metrics.Run, lexical: metrics.Run, *, k: int = 100) -> metrics.Run:
    """Fuse two runs by reciprocal rank (Cormack et al. 2009), as the retriever's hybrid mode does.

    Args:
        dense: Query id -> results, best first.
        lexical: The same queries.
        k: How many documents per query are kept.
    """
    fused: dict[str, list[tuple[str, float]]] = {}
    for query, results in dense.items():
        rankings = [[name for name, _ in found] for found in (results, lexical.get(query, ()))]
        fused[query] = list(reciprocal_ranks(rankings).items())[:k]
    return fused


def rank_model(
    model: str,
    collection: Collection,
    options: RankOptions = DEFAULT_OPTIONS,
    *,
    known: dict[str, Ranked] | None = None,
) -> Ranked:
    """Rank a collection with any model.

    Args:
        model: Retriever folder; transformers or sentence-transformers folder; a name on the hub; ``bm25``;
            ``hybrid:MODEL`` for the reciprocal rank fusion of a model with BM25; ``run:FILE`` for results in
            TREC format that anything else made.
        collection: One split.
        options: How to run it.
        known: What was ranked before under the same options, by model; taken from and added to, so that a
            hybrid does not encode its model's documents again.

    Raises:
        ModelFolderError: If the model is not there or cannot be run.
        DataError: See :func:`run_encoder`; or if a run file cannot be read or knows none of the queries.
        ConfigError: If the name is no such name.
    """
    known = {} if known is None else known
    if model not in known:
        known[model] = _rank(model, collection, options, known)
    return known[model]


def run_model(model: str, collection: Collection, *, k: int = 100, **options: Any) -> metrics.Run:
    """The run alone of :func:`rank_model`; ``options`` are those of :class:`RankOptions`."""
    return rank_model(model, collection, RankOptions(depth=k, **options)).run


def _rank(model: str, collection: Collection, options: RankOptions, known: dict[str, Ranked]) -> Ranked:
    if model == BM25_NAME:
        run = run_bm25(collection, k=options.depth, exclude_self=options.exclude_self)
        return Ranked(run, {"kind": BM25_NAME})
    if model.startswith(HYBRID_PREFIX):
        return _rank_hybrid(model.removeprefix(HYBRID_PREFIX), collection, options, known)
    if model.startswith(RUN_PREFIX):
        return _read_ranked(Path(model.removeprefix(RUN_PREFIX)), collection, options)
    encoder, about = load_encoder(model, options)
    run = run_encoder(
        encoder,
        collection,
        k=options.depth,
        exclude_self=options.exclude_self,
        show_progress=options.show_progress,
    )
    return Ranked(run, about)


def _rank_hybrid(
    model: str, collection: Collection, options: RankOptions, known: dict[str, Ranked]
) -> Ranked:
    if model == BM25_NAME or model.startswith((HYBRID_PREFIX, RUN_PREFIX)) or not model:
        raise ConfigError(
            f"hybrid:{model} makes no sense: hybrid: is followed by a dense model, as in hybrid:FOLDER."
        )
    dense = rank_model(model, collection, options, known=known)
    lexical = rank_model(BM25_NAME, collection, options, known=known)
    run = run_hybrid(dense.run, lexical.run, k=options.depth)
    return Ranked(run, {"kind": "hybrid", "fusion": f"rrf, k = {RRF_K}", "of": [dense.about, lexical.about]})


def _read_ranked(path: Path, collection: Collection, options: RankOptions) -> Ranked:
    found = read_run(path)
    queries = judged_queries(collection)
    if not any(name in found for name in queries):
        raise DataError(
            f"{path} has results for {len(found)} queries, none of which is judged here; the first is "
            f"{next(iter(found))!r}, and {next(iter(queries))!r} is judged. "
            "Is it a run of another collection?"
        )
    run: dict[str, list[tuple[str, float]]] = {}
    for query in queries:
        results = [hit for hit in found.get(query, ()) if not (options.exclude_self and hit[0] == query)]
        order = {
            name: rank for rank, name in enumerate(metrics.first_documents(query, results, options.depth))
        }
        run[query] = sorted((hit for hit in results if hit[0] in order), key=lambda hit: order[hit[0]])
    return Ranked(run, {"kind": "run file"})


def judged_queries(collection: Collection) -> dict[str, str]:
    """Text of every query that has judgements, in their order.

    Raises:
        DataError: If there is none, or one has no text.
    """
    if not collection.qrels:
        raise DataError(
            f"{collection.name}: no query of this split has judgements, so nothing can be scored."
        )
    unknown = [name for name in collection.qrels if name not in collection.queries]
    if unknown:
        raise DataError(
            f"{collection.name}: {len(unknown)} judged queries have no text, the first is {unknown[0]!r}. "
            "Add them to queries.jsonl or take them out of the qrels."
        )
    return {name: collection.queries[name] for name in collection.qrels}


def self_matches(collection: Collection) -> int:
    """How many judged queries are documents of the corpus themselves: same id and same text."""
    return sum(
        name in collection.corpus
        and text.strip() in (collection.corpus[name].text.strip(), collection.corpus[name].content)
        for name, text in judged_queries(collection).items()
    )
