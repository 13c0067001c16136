"""What a mining did: counts per rule, score distributions, and samples that a person should read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from stm_training.mining.histogram import ScoreCounts, common_edges, draw

_SHOWN_TEXT = 300
_RULE_LINES = {
    "skip_top": "among the nearest that are skipped",
    "positive_share": "too close to the positive: not below its share of the score",
    "absolute_margin": "too close to the positive: not below it by the margin",
    "above_band": "above the band",
    "below_band": "below the band",
}
_EXCLUSION_LINES = {
    "positive": "a positive of the query, or its duplicate",
    "same_parent": "of the same document as a positive",
    "query_itself": "the query itself",
    "own_negative": "a negative of the pair already",
}


@dataclass(frozen=True)
class MinedText:
    """One candidate, for people to read; ``verdict`` is ``kept`` or the rule that rejected it."""

    text: str
    score: float
    rank: int
    verdict: str


@dataclass(frozen=True)
class MiningSample:
    """One query with its positives, its mined negatives, and the nearest candidates that were rejected.

    ``positive_score`` is that of the lowest-scoring positive, which the margins are measured from.
    """

    query: str
    positives: tuple[str, ...]
    positive_score: float
    negatives: tuple[MinedText, ...]
    rejected: tuple[MinedText, ...]


@dataclass
class MiningReport:
    """What a mining did.

    Attributes:
        miner: ``dense``, ``bm25`` or ``both``.
        model: Name of the model whose scores judge.
        settings: As given.
        seed: As given.
        band: The band in scores, quantiles resolved; infinite where it has no bound.
        counts: ``pairs``, ``pairs_mined_for``, ``queries``, ``passages``, ``texts`` (different ones),
            ``candidates`` (looked at), ``kept`` (passed all rules), ``mined`` (negatives that queries got),
            ``queries_short`` (got fewer than asked), ``queries_without`` (got none),
            ``own_kept`` and ``own_dropped`` (negatives that the pairs came with).
        excluded: (query, text) left out before any ranking, by reason.
        excluded_near: Those of them that would have been among the candidates: false negatives, had they
            not been left out.
        rules: Candidates rejected, by the first rule that rejected them.
        outside_band: Candidates behind ``skip_top`` whose score lies outside the band, other rules aside.
        positives, kept, rejected: Score distributions.
        samples: Drawn queries.
    """

    miner: str
    model: str
    settings: dict[str, Any]
    seed: int
    positives: ScoreCounts
    kept: ScoreCounts
    rejected: ScoreCounts
    band: tuple[float, float] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)
    excluded_near: dict[str, int] = field(default_factory=dict)
    rules: dict[str, int] = field(default_factory=dict)
    outside_band: int = 0
    samples: list[MiningSample] = field(default_factory=list)

    def histogram(self) -> str:
        """The three distributions as text."""
        return draw({"positives": self.positives, "kept": self.kept, "rejected": self.rejected})

    def to_json(self) -> dict[str, Any]:
        """Everything, for :func:`json.dump`."""
        distributions = {"positives": self.positives, "kept": self.kept, "rejected": self.rejected}
        edges = common_edges(list(distributions.values()))
        return {
            "miner": self.miner,
            "model": self.model,
            "settings": self.settings,
            "seed": self.seed,
            "band": None if self.band is None else [_finite(edge) for edge in self.band],
            "counts": self.counts,
            "excluded": self.excluded,
            "excluded_near": self.excluded_near,
            "rules": self.rules,
            "outside_band": self.outside_band,
            "scores": {name: counts.summary() for name, counts in distributions.items()},
            "histogram": {
                "edges": edges,
                **{name: counts.rebinned(edges) for name, counts in distributions.items()},
            },
            "samples": [_sample_json(sample) for sample in self.samples],
        }

    def text(self) -> str:
        """Everything, to be read."""
        return "\n".join([*self._head(), "", *self._rejections(), "", *self._scores(), "", *self._samples()])

    def summary(self) -> str:
        """Without the samples."""
        return "\n".join([*self._head(), "", *self._rejections(), "", *self._scores()])

    def _head(self) -> list[str]:
        counts = self.counts
        judge = f", scores by {self.model}" if self.model else ""
        lines = [
            f"{counts['mined']:,} negatives mined for {counts['queries']:,} queries ({self.miner}{judge})",
            f"  corpus: {counts['passages']:,} passages, {counts['texts']:,} different texts",
            f"  queries with fewer than asked: {counts['queries_short']:,}, "
            f"of them without any: {counts['queries_without']:,}",
            f"  the pairs' own negatives: {counts['own_kept']:,} kept, {counts['own_dropped']:,} dropped",
        ]
        if self.band is not None:
            lines.append(f"  band: {self.band[0]:.4g} to {self.band[1]:.4g}")
        return lines

    def _rejections(self) -> list[str]:
        total = max(1, self.counts["candidates"])
        lines = ["Never candidates (in brackets: would have been among the nearest):"]
        for reason, line in _EXCLUSION_LINES.items():
            near = self.excluded_near.get(reason, 0)
            lines.append(f"  {self.excluded.get(reason, 0):>12,}  ({near:,}) {line}")
        lines.append(f"Of {self.counts['candidates']:,} candidates:")
        for rule, line in _RULE_LINES.items():
            count = self.rules.get(rule, 0)
            lines.append(f"  {count:>12,}  {100 * count / total:5.1f} %  {line}")
        kept = self.counts["kept"]
        return [*lines, f"  {kept:>12,}  {100 * kept / total:5.1f} %  passed"]

    def _scores(self) -> list[str]:
        return ["Scores (kept and rejected: of all candidates):", self.histogram()]

    def _samples(self) -> list[str]:
        lines = ["Samples, to be read: a negative that answers its query teaches the wrong thing."]
        for sample in self.samples:
            lines += ["", f"query: {_cut(sample.query)}"]
            lines += [f"  positive {sample.positive_score:.3f}: {_cut(text)}" for text in sample.positives]
            for found in (*sample.negatives, *sample.rejected):
                head = "negative" if found.verdict == "kept" else f"rejected ({found.verdict})"
                lines.append(f"  {head} {found.score:.3f}, rank {found.rank}: {_cut(found.text)}")
        return lines


def _sample_json(sample: MiningSample) -> dict[str, Any]:
    return {
        "query": sample.query,
        "positives": list(sample.positives),
        "positive_score": sample.positive_score,
        "negatives": [_text_json(text) for text in sample.negatives],
        "rejected": [_text_json(text) for text in sample.rejected],
    }


def _text_json(mined: MinedText) -> dict[str, Any]:
    return {"text": mined.text, "score": mined.score, "rank": mined.rank, "verdict": mined.verdict}


def _finite(edge: float) -> float | None:
    return edge if math.isfinite(edge) else None  # JSON knows no infinity


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_TEXT else f"{line[:_SHOWN_TEXT]} ..."
