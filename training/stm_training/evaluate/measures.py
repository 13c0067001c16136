"""Every measure that we report, per query, by trec_eval's own code.

The library is pytrec_eval-terrier (MIT): trec_eval compiled into a wheel for Linux, macOS and Windows.
ir-measures stands on the same wheel, but hands the measures that it lacks, MRR@k and Judged@k among them, to
other code with another order of ties; the two are a line each here, so that layer is left out.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stm_retriever.errors import ConfigError, DataError, MissingExtraError, require
from stm_training.evaluate.metrics import Qrels, Run, first_documents

DEFAULT_MEASURES = (
    "ndcg@10",
    "recall@10",
    "recall@100",
    "mrr@10",
    "map@100",
    "precision@10",
)

_CUT = {
    "ndcg": "ndcg_cut",
    "recall": "recall",
    "map": "map_cut",
    "precision": "P",
    "success": "success",
}
_WHOLE = {"ndcg": "ndcg", "map": "map", "mrr": "recip_rank", "rprec": "Rprec", "bpref": "bpref"}
_OWN_CUT = ("mrr", "judged")
_NAME = re.compile(r"([a-z]+)(?:@([1-9][0-9]{0,5}))?")


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure that can be computed.

    Attributes:
        name: As the user writes it, for instance ``ndcg@10``.
        kind: The part before the ``@``.
        cut: How many documents count; None for all that the run has.
    """

    name: str
    kind: str
    cut: int | None

    @property
    def request(self) -> str | None:
        """What pytrec_eval is asked for; None where it is not needed."""
        if self.kind == "mrr":
            return "recip_rank"
        if self.kind == "judged":
            return None
        return _WHOLE[self.kind] if self.cut is None else f"{_CUT[self.kind]}.{self.cut}"

    @property
    def answer(self) -> str | None:
        """The key of pytrec_eval's answer."""
        return None if self.request is None else self.request.replace(".", "_")


def parse_measure(name: str) -> Measure:
    """Read a measure's name.

    Raises:
        ConfigError: If there is no such measure; the message lists those that there are.
    """
    match = _NAME.fullmatch(name.strip().lower())
    if match is not None:
        kind, cut = match.group(1), match.group(2)
        if cut is not None and (kind in _CUT or kind in _OWN_CUT):
            return Measure(match.group(0), kind, int(cut))
        if cut is None and kind in _WHOLE:
            return Measure(match.group(0), kind, None)
    cuts = ", ".join(f"{kind}@k" for kind in (*_CUT, *_OWN_CUT))
    raise ConfigError(
        f"there is no measure {name!r}. There are {cuts}, and {', '.join(_WHOLE)} without a cut."
    )


def measure_run(
    run: Run,
    qrels: Qrels,
    measures: Sequence[str] = DEFAULT_MEASURES,
    *,
    judged_only: bool = False,
) -> dict[str, dict[str, float]]:
    """Score a run, per query.

    Args:
        run: What a system returned. Queries that ``qrels`` does not know are left out.
        qrels: The judgements. Every query here gets a value; one without results or without any relevant
            document gets 0.
        measures: Names such as ``ndcg@10``; see :data:`DEFAULT_MEASURES`. nDCG's gains are grades and its
            discount is log2(rank + 1); for the others a grade above 0 is relevant.
        judged_only: Leave documents without a judgement out of the results before scoring ("condensed
            lists", Sakai 2007), for pools with holes. ``judged@k`` is counted before that.

    Returns:
        Measure -> query id -> value between 0 and 1; queries in the order of ``qrels``.

    Raises:
        ConfigError: If there is no such measure.
        DataError: If a query's results hold a document twice or a score that is not a number, or no query is
            judged.
        MissingExtraError: If pytrec_eval is not installed.
    """
    wanted = [parse_measure(name) for name in measures]
    if not qrels:
        raise DataError("no query has judgements, so nothing can be scored.")
    orders = {query: first_documents(query, run.get(query, ())) for query in qrels}
    requests = {measure.request for measure in wanted if measure.request is not None}
    found: dict[str, dict[str, float]] = {}
    if requests:
        evaluator = _library().RelevanceEvaluator(
            {query: dict(judged) for query, judged in qrels.items()},
            requests,
            judged_docs_only_flag=judged_only,
        )
        found = evaluator.evaluate(
            {query: {name: float(score) for name, score in run.get(query, ())} for query in qrels}
        )
    return {
        measure.name: {
            query: _value(measure, found.get(query, {}), orders[query], qrels[query]) for query in qrels
        }
        for measure in wanted
    }


def _library() -> Any:
    try:
        return require("pytrec_eval", extra="train", purpose="scoring by trec_eval's definitions")
    except MissingExtraError as error:
        if sys.platform != "linux" or platform.machine() != "aarch64":
            raise
        raise MissingExtraError(
            "pytrec_eval is not installed: it has no wheel for Linux on ARM, so the train extra leaves it "
            "out there. With a C compiler, pip install pytrec-eval-terrier builds it."
        ) from error


def _value(
    measure: Measure, answers: Mapping[str, float], order: Sequence[str], judged: Mapping[str, int]
) -> float:
    if measure.answer is None:  # judged@k: of what was returned, so that a short list is not held against it
        top = order[: measure.cut]
        return sum(name in judged for name in top) / len(top) if top else 0.0
    value = float(answers.get(measure.answer, 0.0))
    if measure.kind == "mrr" and measure.cut is not None:  # 1/rank, and 0 from rank k + 1 on
        return value if value * (measure.cut + 0.5) > 1.0 else 0.0
    return min(value, 1.0)  # the same grades summed in another order may end a rounding error above 1
