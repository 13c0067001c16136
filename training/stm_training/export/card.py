"""The model card: README.md with the hub's front matter, prompts verbatim, tested snippets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stm_retriever.folder import Manifest
from stm_training.export.card_snippets import OTHERS, OURS, section
from stm_training.export.interop import Kind, interop_note
from stm_training.export.variant_kinds import FP32

_OPEN = "other"  # the hub's word for a licence that is not one identifier

_ONNX_ONLY = """\
> **ONNX only.** This decoder attends in both directions. stm-retriever and its LangChain and LlamaIndex
> classes read `onnx/model.onnx`, which does that everywhere. `config.json` says `is_causal: false`, which
> transformers 5 honours {native}; transformers 4 and most servers ignore it and return *other vectors
> without an error*.
"""


_OTHER_PROGRAMS = """\
### Other programs

They do not read the prompts, or only if they are told to; these lines do that.
"""

Parity = Mapping[str, Mapping[str, Any]]
"""What ``onnx/parity.json`` holds, by variant."""


def render_card(manifest: Manifest, parity: Parity, *, unmasked: bool, path: str = "path-or-hub-name") -> str:
    """Returns the text of README.md.

    Args:
        manifest: The folder's manifest.
        parity: The numbers of the parity gate, by variant.
        unmasked: Whether this is a decoder that was made to attend in both directions.
        path: What the snippets load.
    """
    parts = [
        _front_matter(manifest),
        f"# {manifest.name}\n",
        _summary(manifest),
        "## Use\n",
        _prompt_note(manifest),
        section(OURS, manifest, path),
    ]
    if unmasked:
        honoured = parity.get(FP32, {}).get("native_attention") == "bidirectional"
        tested = "(tested at export)" if honoured else "for some families, but **not for this one**"
        parts.append(_ONNX_ONLY.format(native=tested))
    parts += [
        _OTHER_PROGRAMS,
        section(OTHERS, manifest, path, heading="####"),
        interop_note(_kind(manifest, unmasked)),
    ]
    parts += [_prompts(manifest), _training(manifest), _figures(manifest), _export(manifest, parity)]
    parts.append(_licences(manifest))
    return "\n".join(part for part in parts if part)


def with_export_section(card: str, manifest: Manifest, parity: Parity) -> str:
    """Returns a card whose export section says what the folder holds now; the rest stays as it is."""
    pattern = re.compile(r"^## Export\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    return pattern.sub(lambda _: _export(manifest, parity) + "\n", card, count=1)


def _kind(manifest: Manifest, unmasked: bool) -> Kind:
    if unmasked:
        return "bidirectional decoder"
    return "causal decoder" if manifest.attention == "causal" else "encoder"


def _front_matter(manifest: Manifest) -> str:
    import yaml

    values: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "dense", "stm-retriever"],
    }
    if manifest.merge:
        values["tags"].append("merge")
    base = _hub_name(manifest.base)
    if base:
        values["base_model"] = base
        values["base_model_relation"] = "merge" if manifest.merge else "finetune"
    datasets = [name for name in map(_hub_name, manifest.data) if name]
    if datasets:
        values["datasets"] = datasets
    licences = sorted(set(manifest.licences))
    if len(licences) == 1:
        values["license"] = licences[0]
    elif licences:
        values["license"] = _OPEN
        values["license_name"] = "see-below"
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


def _hub_name(entry: Mapping[str, Any]) -> str | None:
    """Names go into the front matter only where the hub can resolve them."""
    name = entry.get("hub_name")
    return str(name) if name else None


def _summary(manifest: Manifest) -> str:
    base = manifest.base.get("name", "an unnamed base model")
    made = f"It was made from `{base}`"
    if manifest.experts:
        made += f" and {len(manifest.experts)} fine-tuned expert(s)"
    if manifest.merge:
        made += ", merged by arithmetic on the weights"
    return (
        f"A retriever: it turns queries and documents into vectors of {manifest.dimension} numbers "
        f"(unit length, cosine similarity), from up to {manifest.max_length} tokens. {made}.\n"
    )


def _prompt_note(manifest: Manifest) -> str:
    if not (manifest.prompts.query or manifest.prompts.document):
        return "Queries and documents need no prompt.\n"
    return (
        "Queries and documents get different texts before them. All four snippets apply them by themselves; "
        "with `encode()` or another program, put them there yourself.\n"
    )


def _prompts(manifest: Manifest) -> str:
    return (
        "## Prompts, verbatim\n\n"
        f"Query:\n\n{_fenced(manifest.prompts.query)}\n"
        f"Document:\n\n{_fenced(manifest.prompts.document)}\n"
    )


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```\n" if text else "(none)\n"


def _training(manifest: Manifest) -> str:
    lines = ["## What it was trained on\n"]
    if not manifest.data and not manifest.experts:
        lines.append("Nothing beyond its base: this folder is an export of a model as it was.\n")
    lines += [f"- Data: {_described(entry)}" for entry in manifest.data]
    lines += [f"- Expert: {_described(entry)}" for entry in manifest.experts]
    if manifest.merge:
        lines.append(f"- Merge: {_described(manifest.merge)}")
    return "\n".join(lines) + "\n"


def _figures(manifest: Manifest) -> str:
    if not manifest.metrics:
        return ""
    tables = {name: value for name, value in manifest.metrics.items() if _is_table(value)}
    plain = [f"- {name}: {_value(value)}" for name, value in manifest.metrics.items() if name not in tables]
    return "\n".join(["## Figures\n", *(_table(*item) for item in tables.items()), *plain]) + "\n"


def _is_table(value: Any) -> bool:
    """Figures per system: ``{"base": {"ndcg@10": 0.5, ...}, ...}``."""
    return (
        isinstance(value, Mapping) and bool(value) and all(isinstance(row, Mapping) for row in value.values())
    )


def _table(name: str, systems: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for figures in systems.values() for column in figures))
    lines = [f"| {' | '.join((name, *columns))} |", "|---" * (len(columns) + 1) + "|"]
    for system, figures in systems.items():
        cells = [_value(figures[column]) if figures.get(column) is not None else "-" for column in columns]
        lines.append(f"| {' | '.join((system, *cells))} |")
    return "\n".join(lines) + "\n"


def _described(entry: Mapping[str, Any]) -> str:
    name = entry.get("name")
    rest = ", ".join(f"{key}: {_value(value)}" for key, value in entry.items() if key != "name")
    head = f"`{name}`" if name else ""
    return f"{head} ({rest})" if head and rest else head or rest


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _export(manifest: Manifest, parity: Parity) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    lengths = [str(length) for length in manifest.dimensions_allowed if length != manifest.dimension]
    cut = f"Vectors may be cut to {', '.join(lengths)} numbers (`dimension=`). " if lengths else ""
    return (
        "## Export\n\n"
        f"Pooling: {manifest.pooling}; attention: {manifest.attention}; "
        f"variants: {', '.join(manifest.variants)}. {_fp32(manifest, parity)}{cut}"
        f"Fingerprint `{manifest.fingerprint}`. Made with {versions}. "
        "`stm-train doctor FOLDER` checks a copy.\n" + _variants(manifest, parity)
    )


def _fp32(manifest: Manifest, parity: Parity) -> str:
    if FP32 not in manifest.variants:
        return (
            "There is no fp32 file: name a variant wherever you load this model; programs that look for "
            "`onnx/model.onnx` do not find one. "
        )
    report = parity.get(FP32)
    if report is None:
        return ""
    cases = len(report["cases"]) + (report["native"] is not None)
    return (
        f"`onnx/model.onnx` gives the vectors of the torch model to {report['max_abs_diff']:.1e} (largest "
        f"absolute difference, {cases} cases of left and right padding up to {report['longest_checked']} "
        "tokens; `onnx/parity.json`). "
    )


def _variants(manifest: Manifest, parity: Parity) -> str:
    names = [name for name in manifest.variants if name != FP32 and name in parity]
    if not names:
        return ""
    lines = [
        "",
        "| `variant=` | MB | smallest cosine to fp32 | nDCG@10, points against fp32 | what it is |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        report = parity[name]
        change = "; ".join(
            f"{row['points']:+.2f} on {row['name']} ({row['queries']})" for row in report["dev"]
        )
        lines.append(
            f"| `{name}` | {report['bytes'] / 1e6:.1f} | {report['min_cosine']:.4f} | "
            f"{change or 'not measured'} | {manifest.variants[name].precision} |"
        )
    return "\n".join(lines) + "\n"


def _licences(manifest: Manifest) -> str:
    if not manifest.licences:
        return (
            "## Licence\n\nNot stated by the base model's folder. Look it up before you pass this model on; "
            "the base's licence holds for what was made from it.\n"
        )
    names = ", ".join(sorted(set(manifest.licences)))
    return f"## Licence\n\nOf the base and the data, which hold for this model too: {names}.\n"
