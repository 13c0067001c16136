"""Which of some systems ships, from what a search scored on development queries and guards."""

from __future__ import annotations

from collections.abc import Mapping

from stm_training.evaluate.selection import Decision, ShipIf, choose
from stm_training.merge.search.records import TrialScores
from stm_training.pipeline.scoring import one_row


def decide(
    scores: Mapping[str, TrialScores],
    members: Mapping[str, int],
    *,
    base: str,
    ship_if: ShipIf,
    max_guard_loss: float,
    seed: int = 0,
    samples: int = 10_000,
) -> Decision:
    """Choose among systems; every collection weighs the same.

    Args:
        scores: Complete scores by system, the base's among them.
        members: How many experts are in each system; 0 for the base.
        base: The base's name.
        ship_if: See :func:`~stm_training.evaluate.selection.choose`, as the other arguments.
        max_guard_loss: In nDCG@10 points (0-100).
        seed: Seeds the bootstrap.
        samples: Bootstrap samples.
    """
    return choose(
        {name: one_row(found.dev) for name, found in scores.items()},
        base=base,
        ship_if=ship_if,
        guards={
            guard: {name: list(found.guards[guard].values()) for name, found in scores.items()}
            for guard in scores[base].guards
        },
        max_guard_loss=max_guard_loss,
        members=members,
        seed=seed,
        samples=samples,
    )
