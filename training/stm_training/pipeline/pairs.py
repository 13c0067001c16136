"""Stage ``pairs``: synthetic and labelled training pairs, and the queries that are held out from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm_retriever.errors import DataError
from stm_training.data.reading import read_corpus
from stm_training.data.records import Pair, Passage
from stm_training.data.sample import sample_passages, split_documents, synthetic_collection
from stm_training.data.writing import write_pairs
from stm_training.pipeline.collections import (
    SPLITS,
    Qrels,
    Split,
    document_id,
    read_split,
    write_split,
)
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.corpus import PASSAGES
from stm_training.pipeline.domains import labelled_pairs, read_domains
from stm_training.pipeline.leaks import held_out_sets, leak_gate
from stm_training.pipeline.refining import refine_pairs
from stm_training.recipe import LABELLED, Recipe
from stm_training.synthesize.result import SynthesisResult
from stm_training.synthesize.section import synthesize_section

PAIRS, PAIRS_INFO = "pairs.jsonl", "pairs.json"
LEAKED_FORMS = "leaked_forms"
"""In ``pairs.json``: normalised training queries that experts' own files must do without too."""
JOURNAL = "completions.journal.jsonl"
_EXAMPLES_KEPT = 3
_FEWEST_HELD_OUT = 10  # documents in dev, and in test; fewer tell no models apart
_USUAL_SHARE, _LARGEST_SHARE = 0.1, 0.25  # of the documents, held out for dev, and for test

Queries = tuple[dict[str, str], Qrels]


@dataclass
class _Synthetic:
    """What the synthesis brought, by the part that its document belongs to."""

    train: list[Pair]
    held_out: dict[Split, Queries]
    summary: dict[str, Any] | None


def make_pairs(recipe: Recipe, corpus: Path, journal: Path, out: Path, console: RunConsole) -> None:
    """Write the training pairs and the final development and test queries.

    Where the user has no development or test queries, they are synthetic queries of documents that no
    training query is written for.

    Args:
        recipe: The recipe.
        corpus: Folder of stage ``corpus``.
        journal: File that every completion is appended to; it outlives a kill.
        out: Folder to write into.
        console: Shows the progress.

    Raises:
        DataError: If a training query is also a development, test or guard query (``on_leak: raise``), or
            nothing is left to train on.
    """
    passages = read_corpus(corpus / PASSAGES, allow_title_only=True)
    given = {split: read_split(corpus, split) for split in SPLITS}
    missing: list[Split] = [split for split in ("dev", "test") if not given[split][0]]
    parts = _document_parts(passages, missing, recipe.seed)
    synthetic = _synthesize(recipe, parts, given, journal, console)
    held_out: dict[Split, Queries] = {
        split: synthetic.held_out[split] if split in missing else given[split] for split in ("dev", "test")
    }
    pairs = [*synthetic.train, *labelled_pairs(passages, *given["train"], kind=LABELLED)]
    domains = read_domains(recipe)
    pairs += [pair for domain in domains for pair in domain.pairs()]
    sets = held_out_sets(recipe, passages, held_out, domains)
    gate = leak_gate(recipe, pairs, sets)
    pairs = gate.keep(pairs)
    texts = [text for one in sets for text in one.queries.values()]
    pairs, refinement = refine_pairs(recipe, pairs, passages, texts, console)
    if not pairs:
        message = "No training pair is left. Look at what the filters dropped, or give labelled queries."
        raise DataError(message)
    write_pairs(out / PAIRS, pairs)
    for split, (queries, qrels) in held_out.items():
        write_split(out, split, queries, qrels)
    sources: dict[str, Counter[str]] = {}
    for pair in pairs:
        sources.setdefault(pair.source, Counter())[pair.kind] += 1
    info = {
        "proven_on": "user queries" if "test" not in missing else "synthetic queries only",
        "kinds": dict(Counter(pair.kind for pair in pairs)),
        "sources": {source: dict(kinds) for source, kinds in sources.items()},
        "synthesis": synthetic.summary,
        "leakage": gate.summary(),
        LEAKED_FORMS: sorted(gate.forms),
        "refinement": refinement,
    }
    (out / PAIRS_INFO).write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _document_parts(
    passages: Sequence[Passage], missing: Sequence[Split], seed: int
) -> dict[Split, list[Passage]]:
    """Which documents queries are written for: all for training, but for those that missing splits need."""
    if not missing:
        return {"train": list(passages)}
    share = min(_LARGEST_SHARE, max(_USUAL_SHARE, 2 * _FEWEST_HELD_OUT / len(passages)))
    fractions: dict[str, float] = {"train": 1 - share * len(missing), **dict.fromkeys(missing, share)}
    parts = split_documents(passages, seed=seed, fractions=fractions)
    for split in missing:
        if len(parts[split]) < _FEWEST_HELD_OUT:
            message = (
                f"Without {split} queries of yours, {split} is made of held-out documents, but only "
                f"{len(parts[split])} of {len(passages)} passages fall to it; at least {_FEWEST_HELD_OUT} "
                "are needed to tell models apart. Add documents, or give labelled queries (recipe: queries)."
            )
            raise DataError(message)
    return {split: parts[split] for split in ("train", *missing)}


def _synthesize(
    recipe: Recipe,
    parts: Mapping[Split, list[Passage]],
    given: Mapping[Split, Queries],
    journal: Path,
    console: RunConsole,
) -> _Synthetic:
    section = recipe.synthesize
    if section is None:
        if len(parts) > 1:
            message = "synthesize is null, so dev and test queries must come from you (recipe: queries)."
            raise DataError(message)
        return _Synthetic([], {}, None)
    everything = [passage for part in parts.values() for passage in part]
    if section.max_documents is not None:
        everything = sample_passages(everything, section.max_documents, seed=recipe.seed)
    known = [*given["dev"][0].values(), *given["test"][0].values()] if recipe.on_leak == "drop" else []
    with console.bar("synthesizing") as advance:
        result = synthesize_section(
            section,
            everything,
            journal=None if section.llm is None else journal,
            seed=recipe.seed,
            held_out_queries=known,
            progress=(lambda done, total: advance(done, total=total)) if section.llm is None else None,
            watch=lambda now: advance(now.done, total=now.total, note=now.note()),
            tell=lambda line: console.announce(f"    {line}"),
        )
    if result.limit is not None:
        console.announce(f"    stopped at the budget: {result.limit}; going on with what was written")
    part_of = {passage.id: split for split, part in parts.items() for passage in part}
    train = [pair for pair in result.pairs if part_of.get(pair.positive_id or "", "train") == "train"]
    held_out: dict[Split, Queries] = {}
    for split in parts:
        if split != "train":
            collection = synthetic_collection(split, everything, result.pairs, parts[split])
            parent = {passage.id: document_id(passage) for passage in parts[split]}
            qrels = {
                name: {parent[passage]: grade for passage, grade in grades.items()}
                for name, grades in collection.qrels.items()
            }
            held_out[split] = (dict(collection.queries), qrels)
    return _Synthetic(train, held_out, _synthesis_summary(result))


def _synthesis_summary(result: SynthesisResult) -> dict[str, Any]:
    kinds = Counter(pair.kind for pair in result.pairs)
    return {
        "generator": ", ".join(result.sources) or "extractive",
        "documents": result.counts["documents"],
        "written": result.counts["queries"],
        "kept": dict(kinds),
        "negatives": result.counts["negatives"],
        "dropped": {name: dropped.count for name, dropped in result.dropped.items()},
        "examples": [
            {"cause": name, "text": text}
            for name, dropped in result.dropped.items()
            for _, text in dropped.examples[:_EXAMPLES_KEPT]
        ],
        "failures": len(result.failures),
    }
