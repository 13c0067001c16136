"""The report: one self-contained HTML file, readable without a network, on a phone and on paper."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stm_training.finetune.history import curves
from stm_training.report.curves import learning_curves
from stm_training.report.environment import page_environment
from stm_training.report.forest import forest_svg
from stm_training.report.negatives import negatives_svg
from stm_training.report.pareto import ChartPoint, lambda_svg, pareto_svg
from stm_training.report.summary import RunSummary

_LONGEST_LIST = 200  # skipped rows shown; the run folder holds all


def write_report(summary: RunSummary | Mapping[str, Any], path: Path | str) -> Path:
    """Write the report of a run.

    Args:
        summary: What the run found, or the same as a mapping (``summary.model_dump()``).
        path: The file; written whole or not at all.

    Returns:
        The path.

    Raises:
        MissingExtraError: If jinja2 is not installed.
        pydantic.ValidationError: If a mapping is not a summary.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(render(summary), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(summary: RunSummary | Mapping[str, Any]) -> str:
    """The report as a string; arguments and errors as :func:`write_report`."""
    if not isinstance(summary, RunSummary):
        summary = RunSummary.model_validate(dict(summary))
    environment = page_environment("the report")
    environment.filters["duration"] = _duration
    environment.filters["figure"] = lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    environment.filters["megabytes"] = lambda size: f"{size / 1e6:,.1f} MB"
    template = environment.get_template("report.html.j2")
    html: str = template.render(
        s=summary,
        plot=forest_svg(summary.systems, shipped=summary.shipped),
        negatives=None if summary.negatives is None else negatives_svg(summary.negatives),
        pareto=_pareto(summary),
        fusion=_fusion(summary),
        curves=_curves(summary),
        longest_list=_LONGEST_LIST,
    )
    return html


def _pareto(summary: RunSummary) -> str | None:
    if not summary.candidates or summary.selection is None:
        return None
    points = [
        ChartPoint(one.name, one.kind, one.domain, one.general, one.worst_guard_loss)
        for one in summary.candidates
    ]
    return pareto_svg(
        points,
        max_guard_loss=summary.selection.max_guard_loss,
        chosen=next((one.name for one in summary.candidates if one.chosen), None),
        front=[one.name for one in summary.candidates if one.on_front],
    )


def _fusion(summary: RunSummary) -> str | None:
    if summary.fusion is None:
        return None
    limit = None if summary.selection is None else summary.selection.max_guard_loss
    return lambda_svg(summary.fusion, max_guard_loss=limit)


def _curves(summary: RunSummary) -> dict[str, str]:
    limit = None if summary.selection is None else summary.selection.max_guard_loss
    drawn = {
        one.name: learning_curves(
            curves(one.history, best_step=one.best_step), name=one.name, max_guard_loss=limit
        )
        for one in summary.experts
    }
    return {name: svg for name, svg in drawn.items() if svg is not None}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
