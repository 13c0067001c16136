"""A summary of a run with every part of the report filled, as a run of some size would give it."""

from __future__ import annotations

import numpy as np

from stm_training.evaluate.compare import SystemResult
from stm_training.evaluate.pairs import compare_these
from stm_training.evaluate.selection import choose
from stm_training.report.sections import query_changes
from stm_training.report.summary import (
    CandidateSummary,
    DataSummary,
    ExpertSummary,
    GuardSummary,
    LeakageSummary,
    LeakExample,
    MergeSummary,
    NegativeScores,
    ParitySummary,
    RunSummary,
    SetSummary,
    SpeedSummary,
    VariantSpeed,
    VariantSummary,
)

MERGED = "merged"
_SYSTEMS = {
    "expert:questions": (0.0321, 0.018, 0.0467),
    "expert:statements": (0.0335, 0.0163, 0.0508),
    "all_data": (0.0552, 0.0337, 0.0771),
    MERGED: (0.0436, 0.026, 0.0616),
    "bm25": (-0.2497, -0.2995, -0.2001),
}


def rich_summary(text: str = "a handbook") -> RunSummary:
    """Every part filled; ``text`` stands in names and texts that come from users."""
    random = np.random.default_rng(0)
    base = random.uniform(0.2, 1.0, 60)
    dev = {"base": base, **{name: base + random.normal(0.02, 0.1, 60) for name in list(_SYSTEMS)[:4]}}
    guard = {name: base + random.normal(-0.002, 0.02, 60) for name in dev}
    systems = {"base": SystemResult(ndcg10=0.7323, recall10=0.94)}
    systems |= {
        name: SystemResult(ndcg10=0.7323 + delta, recall10=0.94, delta=delta, ci95=(low, high))
        for name, (delta, low, high) in _SYSTEMS.items()
    }
    names = [f"q{number}" for number in range(60)]
    scores = {
        name: {"ndcg@10": dict(zip(names, values.tolist(), strict=True))} for name, values in dev.items()
    }
    return RunSummary(
        name=text,
        comparisons=tuple(
            compare_these(scores, [("base", MERGED), ("all_data", MERGED)], ["ndcg@10"], samples=200)
        ),
        verdict="merged ships: on 320 test queries it is better than the base, +4.36 nDCG@10 points.",
        shipped=MERGED,
        proven_on="user queries",
        systems=systems,
        selection=choose(dev, guards={text: guard}),
        seconds={"corpus": 1.2, "pairs": 3.0, "merge": 60.0},
        versions={"torch": "2.9.0"},
        base_model=text,
        data=DataSummary(corpus=text, documents=240, passages=240, train_pairs={text: 708}, test_queries=320),
        experts=(_expert("expert:questions"), _expert("all_data")),
        merge=MergeSummary(method="task_arithmetic", weights={"expert:questions": 0.7, text: 0.5}, trials=12),
        candidates=_candidates(),
        parity=ParitySummary(rows=23, max_abs_diff=5.4e-7, min_cosine=0.9999999, tolerance=1e-4),
        leakage=LeakageSummary(
            train_queries=708,
            checked_against=480,
            near=2,
            near_documents=3,
            threshold=0.8,
            examples=(LeakExample(test=text, train=text, similarity=0.86),),
        ),
        sets=(SetSummary(name=text, scores=dict.fromkeys(systems, 0.5)),),
        guards=(GuardSummary(name=text, scores={"base": 0.8554, MERGED: 0.8587}),),
        query_changes=query_changes(
            {"a": 0.2, "b": 0.9, "c": 0.5},
            {"a": 1.0, "b": 0.4, "c": 0.5},
            {"a": text, "b": text + " again"},
            {"a": [text * 20]},
        ),
        negatives=_negatives(text, random),
        variants=(
            VariantSummary(name="fp32", size=90_304_241, min_cosine=0.9999999),
            VariantSummary(name="w8", size=23_000_000, min_cosine=0.9987, dev_points=-0.25),
        ),
        speed=SpeedSummary(
            cpu=text,
            threads=2,
            variants={
                "fp32": VariantSpeed(query_ms=4.23, documents_per_s=1234.5, queries=20, documents=64),
            },
        ),
        recipe_yaml=f"name: demo  # {text}\n" + "\n".join(f"key_{n}: {n}" for n in range(90)),
        notice=text,
    )


def _expert(name: str) -> ExpertSummary:
    history = tuple({"step": step, "step_loss": 2.5 * 0.97**step} for step in range(1, 101))
    return ExpertSummary(
        name=name,
        kinds=("question", "claim"),
        pairs=230,
        steps=100,
        batch_size=16,
        first_loss=2.4,
        last_loss=0.1,
        seconds=19.0,
        history=history,
    )


def _candidates() -> tuple[CandidateSummary, ...]:
    merges = tuple(
        CandidateSummary(
            name=f"merge {n}", kind="merge", domain=0.75 + 0.004 * n, general=0.86 - 0.001 * n, chosen=n == 3
        )
        for n in range(8)
    )
    return (
        CandidateSummary(name="base", kind="base", domain=0.73, general=0.8587, on_front=True),
        CandidateSummary(name="expert:questions", kind="expert", domain=0.76, general=0.853),
        CandidateSummary(
            name="all_data", kind="all_data", domain=0.787, general=0.846, worst_guard_loss=1.3, on_front=True
        ),
        *merges,
    )


def _negatives(model: str, random: np.random.Generator) -> NegativeScores:
    edges = [round(0.1 + 0.05 * n, 2) for n in range(19)]

    def counted(mean: float, spread: float, count: int) -> tuple[int, ...]:
        return tuple(int(n) for n in np.histogram(random.normal(mean, spread, count), bins=edges)[0])

    return NegativeScores(
        model=model,
        edges=tuple(edges),
        positives=counted(0.75, 0.08, 300),
        kept=counted(0.55, 0.08, 900),
        rejected=counted(0.4, 0.15, 20_000),
    )
