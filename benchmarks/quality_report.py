"""What benchmarks/quality.py makes of its cells: tables, JSON, and its section of RESULTS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import gain, points
from panel import DOMAINS, GUARDS

from stm_training.evaluate.significance import Interval

BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
HEADING = "## Quality, beside peers on the same data"
NOT_RUN = "not run here"
BASE, OURS = "base", "ours"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "domain": DOMAINS,
    "guards": tuple(GUARDS),
    "all": (*DOMAINS, *GUARDS),
}
SETS: Mapping[str, tuple[str, ...]] = {**{name: (name,) for name in GROUPS["all"]}, **GROUPS}
AGAINST_OURS = "ours_minus_this"
# Cells keep the versions of all that is installed; these decide the figures.
VERSIONS = ("python", "torch", "transformers", "peft", "sentence-transformers", "bm25s", "numpy")

Cells = Mapping[str, dict[str, Any] | None]
"""A system's cell by its name, the base among them; ``None`` where it was not run."""


def results(cells: Cells, peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The JSON document: scores and differences between 0 and 1.

    Args:
        cells: Cells of all systems.
        peers: Systems that are trained on the same data; they also get ``ours_minus_this``.

    Returns:
        System -> set or group of sets -> ``ndcg@10``, ``delta`` to the base and its ``ci95``; an empty entry
        for a system that was not run.
    """
    base, ours = cells[BASE], cells.get(OURS)
    if base is None:
        raise SystemExit("the base has no cell, and everything is compared with it")
    found: dict[str, dict[str, Any]] = {}
    for name, cell in cells.items():
        found[name] = {} if cell is None else _entries(cell, base)
        if name in peers and cell is not None and ours is not None:
            found[name][AGAINST_OURS] = {
                group: _difference(gain([ours], cell, sets)) for group, sets in GROUPS.items()
            }
    return found


def _entries(cell: Mapping[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    entries = {}
    for name, sets in SETS.items():
        mean = float(np.mean([cell["means"][one] for one in sets]))
        entries[name] = {"ndcg@10": mean, **_difference(gain([dict(cell)], base, sets))}
    return entries


def _difference(interval: Interval) -> dict[str, Any]:
    return {"delta": interval.mean, "ci95": [interval.lo, interval.hi]}


def table(found: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Systems against sets in Markdown; the groups with their difference to the base, in points."""
    sets = GROUPS["all"]
    lines = [
        "| system | " + " | ".join(sets) + " | " + " | ".join(f"{name}, vs base" for name in GROUPS) + " |"
    ]
    lines.append("|---" * (1 + len(SETS)) + "|")
    for name, label in labels.items():
        entries = found.get(name)
        if not entries:
            row = [NOT_RUN] * len(SETS)
        else:
            row = [f"{entries[one]['ndcg@10']:.4f}" for one in sets]
            row += ["-" if name == BASE else _points(entries[group]) for group in GROUPS]
        lines.append("| " + " | ".join([label, *row]) + " |")
    return "\n".join(lines)


def peers_table(
    found: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str], peers: Sequence[str]
) -> str:
    """Ours minus each peer in Markdown, in points."""
    lines = ["| ours minus | " + " | ".join(GROUPS) + " |", "|---" * (1 + len(GROUPS)) + "|"]
    for name in peers:
        entries = found.get(name, {}).get(AGAINST_OURS)
        row = [_points(entries[group]) for group in GROUPS] if entries else [NOT_RUN] * len(GROUPS)
        lines.append("| " + " | ".join([labels[name], *row]) + " |")
    return "\n".join(lines)


def _points(entry: Mapping[str, Any]) -> str:
    return points(Interval(entry["delta"], *entry["ci95"]))


def provenance(cells: Cells, command: str) -> str:
    """The command, and the commits and versions that the cells were made with."""
    made = [cell for cell in cells.values() if cell is not None]
    commits = sorted({cell["commit"] for cell in made})
    versions: dict[str, set[str]] = {}
    for cell in made:
        for name in VERSIONS:
            versions.setdefault(name, set()).add(cell["versions"].get(name, ""))
    named = {name: " and ".join(sorted(found - {""})) for name, found in versions.items()}
    shown = ", ".join(f"{name} {found}" for name, found in named.items() if found)
    return f"`{command}` (cells of commit {', '.join(commits)}; {shown})."


def with_section(document: str, section: str) -> str:
    """A document with the text between the markers replaced; appended under a heading where they are missing.

    Raises:
        SystemExit: If only one marker is there, or they are in the wrong order.
    """
    whole = f"{BEGIN}\n{section.strip()}\n{END}"
    if BEGIN not in document and END not in document:
        return f"{document.rstrip()}\n\n{HEADING}\n{whole}\n".lstrip()
    before, begun, rest = document.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise SystemExit(f"the section needs {BEGIN} and behind it {END}, one of which is missing")
    return before + whole + after


def write_section(path: Path, section: str) -> None:
    """Replace the section of a file; the prose around it stays."""
    document = path.read_text(encoding="utf-8") if path.exists() else ""
    partial = path.with_suffix(".partial")
    partial.write_text(with_section(document, section), encoding="utf-8")
    partial.replace(path)
