"""What ``onnx/parity.json`` says, in words; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARITY_NAME = "onnx/parity.json"


def read_parity(folder: Path) -> dict[str, Any]:
    """Returns what ``onnx/parity.json`` holds by variant; nothing if it is missing or broken."""
    try:
        content = json.loads((folder / PARITY_NAME).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def parity_in_words(name: str, report: Mapping[str, Any] | None) -> str:
    """Returns one variant's numbers as the end of a line."""
    if report is None:
        return ""
    if name == "fp32":
        return f", the model's vectors to {report['max_abs_diff']:.0e}"
    spread = report["batch_spread"]
    steady = "one text at a time" if spread is None else f"moves by {spread:.0e} in a batch"
    dev = "".join(
        f", nDCG@10 {row['points']:+.2f} points on {row['name']} ({row['queries']} queries)"
        for row in report["dev"]
    )
    return f", cosine to fp32 >= {report['min_cosine']:.4f}, {steady}{dev}"


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"
