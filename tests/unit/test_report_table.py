from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from stm_training.evaluate.compare import SystemResult
from stm_training.report.summary import RunSummary
from stm_training.report.table import print_table


def printed(width: int = 120, **changes: Any) -> str:
    values: dict[str, Any] = {
        "name": "demo",
        "verdict": "merged ships: better than the base.",
        "shipped": "merged",
        "proven_on": "user queries",
        "systems": {
            "base": SystemResult(ndcg10=0.5, recall10=0.6),
            "merged": SystemResult(ndcg10=0.55, recall10=0.65, delta=0.05, ci95=(0.02, 0.08)),
        },
    }
    output = StringIO()
    print_table(RunSummary.model_validate(values | changes), Console(file=output, width=width))
    return output.getvalue()


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if name in line and "0." in line)


def test_every_system_has_its_figures_and_the_shipped_one_is_marked() -> None:
    text = printed()

    merged = line_of(text, "merged")
    assert all(figure in merged for figure in ("(ships)", "0.5500", "0.6500", "+5.00", "+2.00 to +8.00"))
    assert "ships" not in line_of(text, "base")
    assert "merged ships: better than the base." in text


def test_synthetic_proof_a_contradiction_and_a_notice_are_said() -> None:
    text = printed(
        proven_on="synthetic queries only",
        contradiction="The test queries contradict the choice.",
        notice="Not medical advice.",
    )

    assert "Proven on synthetic queries only" in text
    assert "The test queries contradict the choice." in text
    assert "Not medical advice." in text


def test_names_are_shown_as_they_are_not_read_as_markup() -> None:
    text = printed(name="[red]mine[/red]", systems={"[bold]x": SystemResult(ndcg10=0.5, recall10=0.6)})

    assert "[red]mine[/red]" in text
    assert "[bold]x" in text
