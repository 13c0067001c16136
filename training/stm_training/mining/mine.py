"""Pairs in, pairs with hard negatives out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import DataError
from stm_training.data.records import Pair, Passage
from stm_training.mining.candidates import Corpus, QueryGroup, count_exclusions, group_by_query
from stm_training.mining.histogram import ScoreCounts
from stm_training.mining.report import MinedText, MiningReport, MiningSample
from stm_training.mining.rules import KEPT, RULES, SKIPPED, Verdicts, judge, take
from stm_training.mining.scoring import resolve_band, score
from stm_training.mining.settings import MineSection
from stm_training.mining.vectors import Encode
from stm_training.mining.windows import Block, windows

Progress = Callable[[int, int], None]

BM25_NAME = "bm25"
# More than this outside the band, and the band is taken for a mistake.
_MOST_OUTSIDE_BAND = 0.95
_SAMPLES, _SAMPLE_REJECTED = 20, 2
_COSINE_BIN, _BM25_BIN = 0.001, 0.01


def mine_negatives(
    pairs: Sequence[Pair],
    passages: Sequence[Passage],
    settings: MineSection,
    *,
    encode_query: Encode | None = None,
    encode_document: Encode | None = None,
    model: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[list[Pair], MiningReport]:
    """Give training pairs hard negatives out of the corpus.

    Per query (pairs of one query, however it is written, share their negatives): the texts that are relevant
    by any pair, their duplicates, passages of the same document and the query itself are left out; what
    remains is ranked; ranks and scores decide; ``num_negatives`` are taken.

    Args:
        pairs: Training pairs.
        passages: The corpus.
        settings: The rules.
        encode_query: Texts to (n, d) unit vectors in the role of queries, for instance
            ``Embedder.encode_query``; not needed for BM25. A pair's own prompt is not applied.
        encode_document: The same for documents.
        model: Name of the encoder, for the report.
        seed: Of the draw among the pool, and of the samples in the report.
        progress: Called with (queries done, queries).

    Returns:
        The pairs in their order, and what was done. A query for which fewer candidates pass gets fewer.

    Raises:
        ConfigError: If an encoder is missing or its vectors cannot be used.
        DataError: If the corpus is too small for what is asked, no candidate of any query passes, or the band
            rejects over 95 % of the candidates.
    """
    corpus = Corpus(passages)
    _check_size(corpus, settings)
    places = [place for place, pair in enumerate(pairs) if settings.mix != "keep" or not pair.negatives]
    groups = group_by_query(pairs, corpus, places=places, exclude_own_negatives=settings.mix == "add")
    report = _empty_report(settings, model, seed)
    report.counts |= {
        "pairs": len(pairs),
        "pairs_mined_for": len(places),
        "queries": len(groups),
        "passages": corpus.passages,
        "texts": len(corpus),
    }
    negatives: dict[int, list[str]] = {}
    if groups:
        scored = score(groups, corpus, settings, encode_query, encode_document)
        report.positives.add(scored.positives)
        report.band = resolve_band(settings, scored.positives)
        report.excluded = count_exclusions(groups)
        miner = _Mining(groups, corpus, settings, scored.lowest, report)
        for block in windows(scored, groups, settings.max_rank):
            miner.add(block)
            if progress is not None:
                progress(len(miner.mined), len(groups))
        miner.close()
        negatives = {
            place: texts for group, texts in zip(groups, miner.mined, strict=True) for place in group.pairs
        }
    result = [_mixed(pair, negatives.get(place), settings) for place, pair in enumerate(pairs)]
    own = sum(len(pair.negatives) for pair in pairs)
    dropped = own if settings.mix == "replace" else 0
    report.counts |= {"own_kept": own - dropped, "own_dropped": dropped}
    return result, report


class _Mining:
    """Judges block after block, and counts."""

    def __init__(
        self,
        groups: Sequence[QueryGroup],
        corpus: Corpus,
        settings: MineSection,
        positives: NDArray[np.float32],
        report: MiningReport,
    ) -> None:
        self.mined: list[list[str]] = []
        self._groups, self._corpus, self._settings = groups, corpus, settings
        self._positives, self._report = positives, report
        self._rng = np.random.default_rng(report.seed)
        drawn = self._rng.permutation(len(groups))[:_SAMPLES]
        self._sampled = frozenset(drawn.tolist())
        self._near: Counter[str] = Counter()
        self._verdicts: Counter[int] = Counter()

    def add(self, block: Block) -> None:
        """Choose the negatives of a block's queries."""
        window, settings, report = block.window, self._settings, self._report
        positives = self._positives[block.start : block.start + len(window.scores)]
        verdicts = judge(window, positives, settings, report.band)
        chosen = take(verdicts, settings.pool_size, settings.num_negatives, self._rng)
        self._near.update(self._groups[block.start + row].excluded[column] for row, column in block.near)
        for verdict in (KEPT, *RULES):
            self._verdicts[verdict] += int(np.count_nonzero(verdicts == verdict))
        report.kept.add(window.scores[verdicts == KEPT])
        report.rejected.add(window.scores[verdicts > KEPT])
        report.outside_band += _outside_band(block, verdicts, report.band)
        texts = [self._corpus.texts[column] for column in window.columns[chosen].tolist()]
        ends = np.cumsum(np.count_nonzero(chosen, axis=1)).tolist()
        self.mined += [texts[first:last] for first, last in zip([0, *ends], ends, strict=False)]
        for row in range(len(positives)):
            if block.start + row in self._sampled:
                report.samples.append(self._sample(block, row, verdicts[row], chosen[row]))

    def close(self) -> None:
        """Complete the report, and see whether it is one to go on with.

        Raises:
            DataError: If not.
        """
        report, wanted = self._report, self._settings.num_negatives
        report.excluded_near = dict(self._near)
        report.rules = {name: self._verdicts[verdict] for verdict, name in RULES.items()}
        report.counts |= {
            "candidates": sum(self._verdicts.values()),
            "kept": self._verdicts[KEPT],
            "mined": sum(map(len, self.mined)),
            "queries_short": sum(len(texts) < wanted for texts in self.mined),
            "queries_without": sum(not texts for texts in self.mined),
        }
        _check_band(report)
        if not report.counts["mined"]:
            raise DataError(
                f"no candidate of any of the {len(self.mined)} queries passes the rules, so nothing is "
                "mined. Loosen the rule that rejects most (band, positive_share, absolute_margin, skip_top), "
                f"or raise max_rank:\n{report.summary()}"
            )

    def _sample(self, block: Block, row: int, verdicts: Verdicts, chosen: NDArray[np.bool_]) -> MiningSample:
        window, group = block.window, self._groups[block.start + row]

        def shown(place: int) -> MinedText:
            verdict = "kept" if verdicts[place] == KEPT else RULES[int(verdicts[place])]
            text = self._corpus.texts[int(window.columns[row, place])]
            score = round(float(window.scores[row, place]), 4)
            return MinedText(text, score, int(window.ranks[row, place]), verdict)

        rejected = np.flatnonzero(verdicts > KEPT)[:_SAMPLE_REJECTED]
        return MiningSample(
            query=group.text,
            positives=tuple(group.positives.values()),
            positive_score=round(float(self._positives[block.start + row]), 4),
            negatives=tuple(shown(int(place)) for place in np.flatnonzero(chosen)),
            rejected=tuple(shown(int(place)) for place in rejected),
        )


def _empty_report(settings: MineSection, model: str, seed: int) -> MiningReport:
    width = _BM25_BIN if settings.miner == "bm25" else _COSINE_BIN
    names = ("candidates", "kept", "mined", "queries_short", "queries_without", "own_kept", "own_dropped")
    return MiningReport(
        miner=settings.miner,
        model=BM25_NAME if settings.miner == "bm25" else model,
        settings=settings.model_dump(mode="json"),
        seed=seed,
        positives=ScoreCounts(width),
        kept=ScoreCounts(width),
        rejected=ScoreCounts(width),
        counts=dict.fromkeys(names, 0),
    )


def _mixed(pair: Pair, mined: list[str] | None, settings: MineSection) -> Pair:
    if settings.mix == "replace":
        return pair.with_negatives(mined or ())
    return pair if not mined else pair.with_negatives((*pair.negatives, *mined))


def _outside_band(block: Block, verdicts: Verdicts, band: tuple[float, float] | None) -> int:
    if band is None:
        return 0
    looked_at = (verdicts >= KEPT) & (verdicts != SKIPPED)
    scores = block.window.scores
    outside = (scores < np.float32(band[0])) | (scores > np.float32(band[1]))
    return int(np.count_nonzero(looked_at & outside))


def _check_size(corpus: Corpus, settings: MineSection) -> None:
    left = len(corpus) - 1 - settings.skip_top  # every query has a positive
    if left < settings.num_negatives:
        raise DataError(
            f"num_negatives is {settings.num_negatives}, but at most {max(left, 0)} candidates remain for a "
            f"query: the corpus holds {len(corpus)} different texts ({corpus.passages} passages), one is the "
            f"positive and the {settings.skip_top} nearest are skipped (skip_top). Ask for fewer, lower "
            "skip_top, or mine from a larger corpus."
        )


def _check_band(report: MiningReport) -> None:
    behind_top = report.counts["candidates"] - report.rules["skip_top"]
    if report.band is None or report.outside_band <= _MOST_OUTSIDE_BAND * behind_top:
        return
    low, high = report.band
    judge_name = f" of {report.model}" if report.model else ""
    raise DataError(
        f"the band {low:.4g} to {high:.4g} rejects {report.outside_band:,} of {behind_top:,} candidates "
        f"({100 * report.outside_band / behind_top:.1f} %; over 95 % is taken for a mistake): it does not "
        f"fit the scale of the scores{judge_name}. Positives score {report.positives.quantile(0.05):.3g} to "
        f"{report.positives.quantile(0.95):.3g} (5 to 95 %). Set a band out of the histogram, use "
        "band_quantiles (preset: band), or max_rank closer to the top:\n"
        f"{report.histogram()}"
    )
