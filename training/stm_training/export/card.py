"""The model card: README.md with the hub's front matter, prompts verbatim, tested snippets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stm_retriever.folder import Manifest
from stm_training.export.parity import ParityReport

_OPEN = "other"  # the hub's word for a licence that is not one identifier

_OURS = """\
### stm-retriever (no torch needed)

```python
from stm_retriever import Embedder

embedder = Embedder.load("{path}")
query = embedder.encode_query(["your question"])
documents = embedder.encode_document(["your passage"])
scores = query @ documents.T
```
"""
_SENTENCE_TRANSFORMERS = """\
### sentence-transformers

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{path}")
query = model.encode_query(["your question"])
documents = model.encode_document(["your passage"])
scores = model.similarity(query, documents)
```
"""
_LANGCHAIN = """\
### LangChain

```python
from langchain_stm import STMEmbeddings

embeddings = STMEmbeddings(model="{path}")
query = embeddings.embed_query("your question")
documents = embeddings.embed_documents(["your passage"])
```
"""
_LLAMA_INDEX = """\
### LlamaIndex

```python
from llama_index.embeddings.stm import STMEmbedding

embedding = STMEmbedding(model_name="{path}")
query = embedding.get_query_embedding("your question")
document = embedding.get_text_embedding("your passage")
```
"""
_ONNX_ONLY = """\
> **ONNX only.** This decoder attends in both directions. stm-retriever and its LangChain and LlamaIndex
> classes read `onnx/model.onnx`, which does that everywhere. `config.json` says `is_causal: false`, which
> transformers 5 honours {native}; transformers 4 and most servers ignore it and return *other vectors
> without an error*.
"""


def render_card(
    manifest: Manifest, parity: ParityReport, *, unmasked: bool, path: str = "path-or-hub-name"
) -> str:
    """Returns the text of README.md.

    Args:
        manifest: The folder's manifest.
        parity: The numbers of the parity gate.
        unmasked: Whether this is a decoder that was made to attend in both directions.
        path: What the snippets load.
    """
    parts = [
        _front_matter(manifest),
        f"# {manifest.name}\n",
        _summary(manifest),
        "## Use\n",
        _prompt_note(manifest),
        *(text.format(path=path) for text in (_OURS, _SENTENCE_TRANSFORMERS, _LANGCHAIN, _LLAMA_INDEX)),
    ]
    if unmasked:
        honoured = parity.native_attention == "bidirectional"
        tested = "(tested at export)" if honoured else "for some families, but **not for this one**"
        parts.append(_ONNX_ONLY.format(native=tested))
    parts += [_prompts(manifest), _training(manifest), _figures(manifest), _export(manifest, parity)]
    parts.append(_licences(manifest))
    return "\n".join(part for part in parts if part)


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


def _export(manifest: Manifest, parity: ParityReport) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return (
        "## Export\n\n"
        f"Pooling: {manifest.pooling}; attention: {manifest.attention}; "
        f"variants: {', '.join(manifest.variants)}. "
        f"`onnx/model.onnx` gives the vectors of the torch model to {parity.max_abs_diff:.1e} "
        f"(largest absolute difference, {len(parity.compared)} cases of left and right padding up to "
        f"{parity.longest_checked} tokens; `onnx/parity.json`). "
        f"Fingerprint `{manifest.fingerprint}`. Made with {versions}. "
        "`stm-train doctor FOLDER` checks a copy.\n"
    )


def _licences(manifest: Manifest) -> str:
    if not manifest.licences:
        return (
            "## Licence\n\nNot stated by the base model's folder. Look it up before you pass this model on; "
            "the base's licence holds for what was made from it.\n"
        )
    names = ", ".join(sorted(set(manifest.licences)))
    return f"## Licence\n\nOf the base and the data, which hold for this model too: {names}.\n"
