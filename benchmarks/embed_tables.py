"""The figures of benchmarks/embed_speed.py as its JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embed_sides import Side

TARGETS = (
    "docs_per_s_ratio to sentence-transformers: fp32 >= 2, w8 >= 2.5, int8 >= 4.5; to fastembed: fp32 >= 1.2 "
    "where lengths vary; query_p50_ratio to sentence-transformers: fp32 <= 0.4, int8 <= 0.2; nDCG@10 change "
    "of int8 and w8 within 0.005; peak memory <= the least of the peers; load <= 1.5 s."
)


def empty(size: str) -> dict[str, Any]:
    """The JSON before anything is measured."""
    names = ("docs_per_s_ratio", "query_p50_ratio", "ndcg_delta", "ndcg", "peak_memory_mb", "load_s")
    return {**{name: {} for name in names}, "size": size}


def fill(
    results: dict[str, Any], model: str, figures: Mapping[str, Mapping[str, Any]], sides: Sequence[Side]
) -> None:
    """Put a model's figures into the JSON: ours over each peer's."""
    speed = results["docs_per_s_ratio"].setdefault(model, {})
    latency = results["query_p50_ratio"].setdefault(model, {})
    for side in sides:
        found = figures[side.name]
        results["peak_memory_mb"].setdefault(model, {})[side.name] = found["peak_memory_mb"]
        results["load_s"].setdefault(model, {})[side.name] = found["load_s"]
        if not side.is_ours:
            continue
        for peer in (other for other in sides if not other.is_ours):
            theirs = figures[peer.name]
            speed.setdefault(side.name, {})[peer.name] = {
                name: value / theirs["docs_per_s"][name] for name, value in found["docs_per_s"].items()
            }
            latency.setdefault(side.name, {})[peer.name] = found["query_p50_ms"] / theirs["query_p50_ms"]


def markdown(results: Mapping[str, Any]) -> str:
    """Tables for people."""
    parts: list[str] = []
    for model, cell in results["cells"].items():
        parts += [f"## {model}", "", *_table(results, model, cell), ""]
        peaks = ", ".join(f"{kind} {value / 1e9:.0f} G/s" for kind, value in cell["matrix_peaks"].items())
        parts += [f"Matrix peak measured meanwhile: {peaks}.", ""]
        for name, reason in results["left_out"].get(model, {}).items():
            parts.append(f"Not measured: {name} ({reason}).")
        parts += ["", *_quality(results, model)]
    for model, rows in results.get("growth", {}).items():
        parts += [
            f"## Growth, {model}, int8, stream",
            "",
            "| texts | documents/s | VmHWM, MiB | anonymous, MiB |",
        ]
        parts += ["|---|---|---|---|"]
        parts += [
            f"| {row['texts']} | {row['docs_per_s']:.0f} | {row['peak_memory_mb']:.0f} | "
            f"{row['anonymous_mb']:.0f} |"
            for row in rows
        ]
    parts += ["", f"Targets: {TARGETS}", "", "Versions:"]
    for side, versions in results.get("versions", {}).items():
        parts.append(f"- {side}: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    return "\n".join(parts)


def _table(results: Mapping[str, Any], model: str, cell: Mapping[str, Any]) -> list[str]:
    sides = cell["sides"]
    sets = list(next(iter(sides.values()))["docs_per_s"])
    reference = sides.get("sentence-transformers")
    head = [*(f"{name}, documents/s (x)" for name in sets), "query p50, ms (x)", "VmHWM (anonymous), MiB"]
    head += ["load, s", "least cosine", "share of matrix peak"]
    lines = [f"| side | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for name, found in sides.items():
        label = f"ours, {name}" if name in results["docs_per_s_ratio"].get(model, {}) else name
        row = [
            _with_ratio(found["docs_per_s"][key], reference and reference["docs_per_s"][key], 1)
            for key in sets
        ]
        row.append(_with_ratio(found["query_p50_ms"], reference and reference["query_p50_ms"], 2))
        row.append(f"{found['peak_memory_mb']:.0f} ({found['anonymous_mb']:.0f})")
        row += [f"{found['load_s']:.2f}", f"{found['cosine']:.5f}"]
        row.append(", ".join(f"{share:.0%}" for share in found.get("matrix_share", {}).values()))
        lines.append(f"| {label} | {' | '.join(row)} |")
    return lines


def _with_ratio(value: float, reference: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + (f" ({value / reference:.2f})" if reference else "")


def _quality(results: Mapping[str, Any], model: str) -> list[str]:
    lines = []
    for variant, changes in results["ndcg_delta"].get(model, {}).items():
        own = results["ndcg"][model]["fp32"]
        told = ", ".join(f"{name} {change:+.4f} (fp32 {own[name]:.4f})" for name, change in changes.items())
        lines.append(f"nDCG@10 change of {variant}: {told}.")
    return lines
