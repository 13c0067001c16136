"""Which other programs gave our vectors, with versions: what `make interop` found when it last ran."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

Kind = Literal["encoder", "causal decoder", "bidirectional decoder"]

_CHANGES = "; strips texts or replaces line breaks before encoding"
RESULTS = Path(__file__).with_name("interop.json")


@cache
def read_results() -> Mapping[str, Any]:
    """What the file holds; nothing where it is missing."""
    if not RESULTS.is_file():
        return {}
    content: Mapping[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    return content


def interop_note(kind: Kind) -> str:
    """Returns Markdown that lists who gave the same vectors for folders of a kind, and who did not."""
    same, others = [], []
    for cell in read_results().get("cells", []):
        found = cell.get("results", {}).get(kind)
        if found is None:
            continue
        versions = ", ".join(f"{name} {version}" for name, version in cell["versions"].items())
        line = f"{cell['program']} ({versions}{_CHANGES if found.get('keeps_white_space') is False else ''})"
        if found.get("agrees"):
            same.append(line)
        else:
            others.append(f"{line}: {_what(found)}")
    if not same and not others:
        return ""
    limit, listed = read_results()["limit"], "; ".join(same) or "none"
    text = f"Tested with folders of this kind ({kind}); same vectors to {limit:g} in: {listed}.\n"
    return text + (f"\n**Not** in: {'; '.join(others)}.\n" if others else "")


def disagreeing(kind: Kind) -> list[str]:
    """Returns the programs that gave other vectors for folders of a kind, with their versions."""
    return [
        f"{cell['program']} ({', '.join(f'{name} {version}' for name, version in cell['versions'].items())})"
        for cell in read_results().get("cells", [])
        if "max_abs_diff" in (found := cell.get("results", {}).get(kind) or {}) and not found["agrees"]
    ]


def _what(found: Mapping[str, Any]) -> str:
    if "max_abs_diff" in found:
        return f"other vectors, by up to {found['max_abs_diff']:.2g}"
    return str(found["error"])
