r"""The papers' tables with their figures beside ours; a cell of ours that was never run says so.

    stm-train mteb runs/paper-qwen3-0.6b/retriever --tasks stm-paper --instructions paper \
        --json benchmarks/paper/results/qwen3-0.6b/shipped.json
    python benchmarks/paper/tables.py --results benchmarks/paper/results --out benchmarks/paper/TABLES.md

Below the folder of results: BACKBONE/SYSTEM.json as `stm-train mteb --json` writes it, of one model each.
BACKBONE is qwen3-0.6b, gemma-2b, phi-4-mini or bmretriever-410m. SYSTEM is shipped (what a run exports, in
the table per task), linear, ties, all-data, all-data-shn, expert-medical_synthetic, expert-medical_real,
expert-search or expert-nlu. The best expert is found among the experts' files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import figures as paper

from stm_retriever.errors import DataError, StmError

NOT_RUN = "not run here"
Scores = Mapping[str, float]
Results = Mapping[tuple[str, str], Scores]  # (backbone, system) -> nDCG@10 by task
_MEDICAL = 7  # the first tasks of the table are the medical ones


def read_results(folder: Path) -> Results:
    """Read what was run.

    Raises:
        DataError: If a file holds several models or is no result.
    """
    found: dict[tuple[str, str], Scores] = {}
    for file in sorted(folder.glob("*/*.json")) if folder.is_dir() else ():
        try:
            (entry,) = json.loads(file.read_text(encoding="utf-8")).values()
            scores = {task: float(row["score"]) for task, row in entry["tasks"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{file} is not one model's result ({error}). Write it by: stm-train mteb MODEL --json"
            raise DataError(message) from error
        found[file.parent.name, file.stem] = scores
    return found


def means(scores: Scores | None) -> tuple[float | None, float | None, float | None]:
    """Medical, general, all; each None unless all of its tasks were run."""
    scores = scores or {}
    groups = (paper.TASKS[:_MEDICAL], paper.TASKS[_MEDICAL:], paper.TASKS)
    medical, general, every = (
        sum(scores[task] for task in tasks) / len(tasks) if set(tasks) <= scores.keys() else None
        for tasks in groups
    )
    return medical, general, every


def render(results: Results) -> str:
    """All tables as Markdown."""
    parts = [
        "# The papers' tables, and ours beside them",
        "nDCG@10. A row of ours is empty (not run here) where no result lies below `results/`; `tables.py` "
        "says how to fill it. The papers' figures are from STM (arXiv 2602.04731, version 1) and "
        "BMRetriever (arXiv 2404.18443).",
        "## Per task (STM, table 11)",
        _per_task(results),
        "## All data, best expert, merges (STM): medical / general / all",
        _systems(results),
        "## Experts by slice (STM, table 4): mean of the 12 tasks",
        _experts(results),
        "## BMRetriever",
        _bmretriever(results),
    ]
    return "\n\n".join(parts) + "\n"


def _per_task(results: Results) -> str:
    rows = []
    for name, scores in paper.PER_TASK.items():
        rows.append([name, *map(_figure, scores)])
    for backbone, title in paper.BACKBONES.items():
        scores = results.get((backbone, "shipped"))
        row = [f"**ours, {title}**"]
        if scores is None:
            rows.append([*row, NOT_RUN, *[""] * (len(paper.TASKS) + 2)])
        else:
            rows.append(
                [*row, *(_figure(scores.get(task)) for task in paper.TASKS), *map(_figure, means(scores))]
            )
    return _table(["model", *paper.SHORT, "med", "gen", "all"], rows)


def _systems(results: Results) -> str:
    rows = []
    for system, (title, printed) in paper.SYSTEMS.items():
        row = [title]
        for backbone in paper.BACKBONES:
            row += [_three(printed[backbone]), _three(means(_of_system(results, backbone, system)))]
        rows.append(row)
    header = [cell for title in paper.BACKBONES.values() for cell in (f"{title}, paper", "ours")]
    return _table(["", *header], rows)


def _of_system(results: Results, backbone: str, system: str) -> Scores | None:
    if system != "best-expert":
        return results.get((backbone, system))
    experts = [results.get((backbone, f"expert-{slice_}")) for slice_ in paper.SLICES]
    complete = [scores for scores in experts if scores is not None and means(scores)[2] is not None]
    if len(complete) < len(paper.SLICES):
        return None  # the best of some is not the best
    return max(complete, key=lambda scores: means(scores)[2] or 0.0)


def _experts(results: Results) -> str:
    rows = []
    for variant, printed in paper.EXPERTS.items():
        for backbone, title in paper.BACKBONES.items():
            rows.append([f"{title}, {variant}", *map(_figure, printed[backbone])])
    for backbone, title in paper.BACKBONES.items():
        found = [means(results.get((backbone, f"expert-{slice_}")))[2] for slice_ in paper.SLICES]
        rows.append(
            [f"**ours, {title}, FT+PO**", *(NOT_RUN if one is None else _figure(one) for one in found)]
        )
    return _table(["", *paper.SLICES], rows)


def _bmretriever(results: Results) -> str:
    rows = [[f"paper, {size}", *map(_figure, printed)] for size, printed in paper.BMRETRIEVER.items()]
    scores = results.get(("bmretriever-410m", "shipped"))
    ours = (
        [NOT_RUN] * 4 if scores is None else [_figure(scores.get(task)) for task in paper.BMRETRIEVER_TASKS]
    )
    return _table(["", *paper.BMRETRIEVER_TASKS], [*rows, ["**ours, 410M**", *ours]])


def _three(values: Sequence[float | None]) -> str:
    return NOT_RUN if all(one is None for one in values) else " / ".join(map(_figure, values))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".removeprefix("0")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables; 2 for an error that the user can mend."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=here / "results", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=here / "TABLES.md", metavar="FILE")
    arguments = parser.parse_args(argv)
    try:
        arguments.out.write_text(render(read_results(arguments.results)), encoding="utf-8")
    except StmError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
