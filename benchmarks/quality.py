"""Ours beside its peers, all trained on the same pairs with the same steps and development trials.

Run: ``python benchmarks/quality.py`` (panel cuts; ``--full`` for the full collections). Systems: the base,
BM25, ours (experts merged), ours with BM25, all data at once, REFINE, sentence-transformers with its own
mined negatives, and GPL. Each trained one has as many tuning trials, ranked by the same objective on the same
development queries; test queries are scored once, for the winner. sentence-transformers trains in its own
environment (``python benchmarks/environments.py sentence-transformers``).

Cells are stored in ``benchmarks/results/quality/`` (those of experts and merges with their tables), models
in ``runs/``; a run that was ended goes on where it was. Writes ``benchmarks/results/quality.json`` and the
section between the quality markers of ``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import ROOT, NotStoredError, only_stored
from quality_report import BASE, OURS, peers_table, provenance, results, table, write_section
from quality_sentence_transformers import sentence_transformers
from quality_systems import Bench, all_data, base, bm25, hybrid, ours, refine


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        label: For the table.
        run: Gives its cell; ``None``: it cannot be run here.
        peer: Trained on the same data as ours.
    """

    label: str
    run: Callable[[Bench], dict[str, Any]] | None
    peer: bool = False


SYSTEMS = {
    BASE: System("base: all-MiniLM-L6-v2", base),
    "bm25": System("BM25", bm25),
    OURS: System("ours: experts merged", ours),
    "hybrid": System("ours with BM25 (hybrid)", hybrid),
    "all-data": System("all data at once", all_data, peer=True),
    "refine": System("REFINE", refine, peer=True),
    "sentence-transformers": System(
        "sentence-transformers: MNRL, mined negatives", sentence_transformers, True
    ),
    # Its teacher is a cross-encoder and its loss MarginMSE: this project has neither, so nothing stands in.
    "gpl": System("GPL (cross-encoder teacher)", None, peer=True),
}
PEERS = [name for name, system in SYSTEMS.items() if system.peer]
LABELS = {name: system.label for name, system in SYSTEMS.items()}


def chosen(given: str | None) -> list[str]:
    """Systems to run, in the table's order: the base, and those named or all that can be run.

    Raises:
        SystemExit: If a name is none of a system.
    """
    runnable = [name for name, system in SYSTEMS.items() if system.run is not None]
    if given is None:
        return runnable
    names = [name.strip() for name in given.split(",")]
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise SystemExit(f"unknown system {', '.join(unknown)}; there are: {', '.join(SYSTEMS)}")
    return [name for name in runnable if name in names or name == BASE]


def cells_of(bench: Bench, systems: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """Cells of all systems: those named are computed where missing, of the others what is stored."""
    return {name: _cell(bench, name, compute=name in systems) for name in SYSTEMS}


def _cell(bench: Bench, name: str, *, compute: bool) -> dict[str, Any] | None:
    run = SYSTEMS[name].run
    if run is None:
        return None
    if compute:
        print(f"{name} ...", flush=True)
    with nullcontext() if compute else only_stored():
        try:
            return run(bench)
        except NotStoredError:
            return None


def main() -> None:
    """Run what is missing, then print the tables and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="full test collections, not the panel's cuts")
    parser.add_argument(
        "--systems", metavar="A,B", help=f"run these only, and read the others: {', '.join(SYSTEMS)}"
    )
    parser.add_argument("--json", metavar="FILE", help="write scores and differences to this file too")
    parser.add_argument("--smoke", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    systems = chosen(arguments.systems)
    bench, place = Bench(full=arguments.full), ROOT / "benchmarks"
    if arguments.smoke is not None:
        from quality_smoke import shrink

        bench, place = shrink(arguments.smoke, full=arguments.full), arguments.smoke
    cells = cells_of(bench, systems)
    found = results(cells, PEERS)
    rows, differences = table(found, LABELS), peers_table(found, LABELS, PEERS)
    command = "python benchmarks/quality.py" + " --full" * arguments.full
    print(f"{rows}\n\n{differences}")
    write_section(place / "RESULTS.md", f"{provenance(cells, command)}\n\n{rows}\n\n{differences}")
    files = [place / "results" / "quality.json", *([Path(arguments.json)] if arguments.json else [])]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
