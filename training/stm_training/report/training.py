"""What came of one training, in words for the console."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def training_summary(figures: Mapping[str, Any], out: Path) -> str:
    """Loss, development score with its interval, guards, and where things lie.

    Args:
        figures: As in ``finetune.json``, under ``result``.
        out: The training's folder.
    """
    lines = []
    if figures["first_loss"] is not None:
        lines.append(
            f"Trained {figures['steps']} steps on {figures['pairs']} pairs in {figures['seconds']:.0f} s: "
            f"loss {figures['first_loss']:.3f} to {figures['last_loss']:.3f}."
        )
    if "dev" in figures:
        lines += _watched(figures)
    lines += [
        f"Wrote {out / figures['model']}; beside it lie history.json, curves.html and finetune.json.",
        f"TensorBoard: tensorboard --logdir {out / 'tensorboard'}",
    ]
    return "\n".join(lines)


def _watched(figures: Mapping[str, Any]) -> list[str]:
    dev, step = figures["dev"], figures["best_step"]
    lo, hi = (100 * end for end in dev["ci95"])
    lines = [
        f"dev ({dev['queries']} queries): nDCG@10 {dev['before']:.4f} before, {dev['after']:.4f} after (step "
        f"{step} was kept): {100 * dev['delta']:+.2f} points, 95 % interval {lo:+.2f} to {hi:+.2f}."
    ]
    for name, guard in figures["guards"].items():
        change = 100 * (guard["after"] - guard["before"])
        lines.append(
            f"guard {name}: nDCG@10 {guard['before']:.4f} before, {guard['after']:.4f} after: {change:+.2f} "
            f"points."
        )
    if step == 0:
        lines.append(
            "Nothing was better than the base on these queries without losing too much on a guard, so what "
            "was kept is the base itself. Look at curves.html; try a lower --learning-rate or other pairs."
        )
    else:
        lines.append(
            "The step was chosen on these very queries, so the gain is flattered a little; queries that had "
            "no part in it tell the truth."
        )
    return lines


def next_steps(
    figures: Mapping[str, Any], out: Path, *, base: str, exported: tuple[Path, Path | None] | None
) -> str:
    """The command that one would give next.

    Args:
        figures: As in ``finetune.json``, under ``result``.
        out: The training's folder.
        base: What was trained.
        exported: The retriever folder, if one was written, and the collection with the development queries.
    """
    if exported is not None:
        folder, data = exported
        return f"Wrote {folder}. Score it: stm-train evaluate {folder} --data {data or 'COLLECTION'}"
    trained = out / figures["model"]
    if figures["model"] == "model":
        return f"Next: stm-train export {trained} --out my-retriever"
    name = re.sub(r"[^\w.-]", "-", out.resolve().name)
    return (
        f"Next: stm-train merge --base {base} --member {name}={trained}:1 --method task_arithmetic "
        f"--out my-retriever --export"
    )
