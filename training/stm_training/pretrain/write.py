"""Writing the pairs of a whole corpus to disk, in memory that does not grow with its texts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from stm_retriever.errors import DataError
from stm_training.data.leakage import normalise
from stm_training.data.records import Pair, Passage
from stm_training.data.writing import write_pairs
from stm_training.finetune.pair_keys import hash_key, text_key
from stm_training.pretrain.documents import whole_documents
from stm_training.pretrain.making import document_pairs
from stm_training.pretrain.seen import SeenKeys
from stm_training.pretrain.settings import PretrainSection

SOURCE = "raw_text"

Progress = Callable[[int, int], None]  # documents read, pairs written

_PROGRESS_EVERY = 100  # documents


@dataclass(frozen=True)
class PretrainReport:
    """What became of a corpus.

    Attributes:
        path: The pairs, as JSONL.
        pairs: How many.
        kinds: Pairs by kind: title, neighbours, crops.
        documents: Documents read.
        used: Documents that gave a pair.
        dropped: Causes and counts: documents repeated (the same text again), held out, or without a pair (too
            short for every kind); pairs held out, queries repeated, and queries that equal their positive.
        limited: The limit was reached, and the rest of the corpus not read.
    """

    path: Path
    pairs: int
    kinds: dict[str, int]
    documents: int
    used: int
    dropped: dict[str, int]
    limited: bool


def write_pretraining_pairs(
    passages: Iterable[Passage],
    section: PretrainSection,
    out: Path,
    *,
    seed: int,
    held_out: Iterable[str] = (),
    progress: Progress | None = None,
) -> PretrainReport:
    """Make the pairs of raw text and write them as they are made.

    Stage 1 of BMRetriever (arXiv 2404.18443, section 3.1). A document's pairs depend on the seed, its id and
    its text alone (save for what other documents have used up). All pairs of a document carry its id as
    ``positive_id``, so that no batch opposes a document to itself.

    Args:
        passages: The corpus, read once; pieces of one document follow each other.
        section: What pairs to make.
        out: The JSONL file; it appears whole or not at all.
        seed: Seeds the draws.
        held_out: Development and test queries, and texts of held-out documents: a pair that holds one of
            them as its query or positive is dropped, and a document that is one of them gives no pairs.
            Compared by :func:`stm_training.data.leakage.normalise`.
        progress: Told now and then, and at the end.

    Returns:
        The counts.

    Raises:
        DataError: If the corpus gives no pair at all.
    """
    maker = _PairStream(section, seed, held_out, progress)
    stream = maker.pairs(passages)
    count = write_pairs(out, _checked(islice(stream, section.limit), maker))
    report = PretrainReport(
        path=out,
        pairs=count,
        kinds=dict(maker.kinds),
        documents=maker.documents,
        used=maker.used,
        dropped=dict(maker.dropped),
        limited=section.limit is not None and count >= section.limit,
    )
    if progress is not None:
        progress(report.documents, report.pairs)
    return report


def _checked(pairs: Iterator[Pair], maker: _PairStream) -> Iterator[Pair]:
    """The pairs; an empty file must not take the place of one that is there."""
    first = next(pairs, None)
    if first is None:
        causes = ", ".join(f"{count} {cause}" for cause, count in maker.dropped.items()) or "nothing was read"
        message = (
            f"{maker.documents} documents gave no pair to pre-train on ({causes}). Give longer texts or "
            "titles, or lower passage_words, crop_words and body_words."
        )
        raise DataError(message)
    yield first
    yield from pairs


class _PairStream:
    """Pairs of a corpus in order, without those that were there before or are held out."""

    def __init__(
        self, section: PretrainSection, seed: int, held_out: Iterable[str], progress: Progress | None
    ) -> None:
        self._section = section
        self._seed = seed
        self._held_out = {normalise(text) for text in held_out}
        self._progress = progress
        self._bodies, self._queries = SeenKeys(), SeenKeys()
        self.documents = self.used = 0
        self.kinds: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def pairs(self, passages: Iterable[Passage]) -> Iterator[Pair]:
        for document in whole_documents(passages):
            self.documents += 1
            if (cause := self._document_problem(document)) is None:
                yield from self._pairs_of(document)
            else:
                self.dropped[cause] += 1
            if self._progress is not None and self.documents % _PROGRESS_EVERY == 0:
                self._progress(self.documents, self.kinds.total())

    def _document_problem(self, document: Passage) -> str | None:
        if self._is_held_out(document.text, document.content):
            return "documents held out"
        if document.text.strip() and not self._bodies.add(hash_key("body", text_key(document.text))):
            return "documents repeated"
        return None

    def _pairs_of(self, document: Passage) -> Iterator[Pair]:
        rng = random.Random(f"{self._seed}/{document.id}")
        drawn = kept = 0
        for kind, (query, positive) in document_pairs(document, self._section, rng):
            drawn += 1
            if (cause := self._pair_problem(query, positive)) is not None:
                self.dropped[cause] += 1
                continue
            kept += 1
            self.used += kept == 1
            self.kinds[kind] += 1
            yield Pair(
                query=query,
                positive=positive,
                positive_id=document.id,
                source=SOURCE,
                kind=kind,
                prompt=self._section.prompt,
            )
        if not drawn:
            self.dropped["documents without a pair"] += 1

    def _pair_problem(self, query: str, positive: str) -> str | None:
        key = text_key(query)
        if key == text_key(positive):
            return "queries equal to their positive"
        if self._is_held_out(query, positive):
            return "pairs held out"
        return None if self._queries.add(hash_key("query", key)) else "queries repeated"

    def _is_held_out(self, *texts: str) -> bool:
        return bool(self._held_out) and any(normalise(text) in self._held_out for text in texts)
