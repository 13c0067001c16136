"""What synthetic queries, hard negatives and filters are worth: the table of RESULTS.md.

Run: ``python benchmarks/synthesis.py`` (panel cuts; ``--full`` for the full test corpora). Each cell trains
one LoRA model on recorded completions of SciFact and evidence-inference and scores it; its result is stored
in ``benchmarks/results/synthesis/`` and is not computed again. Cells are ranked on SciFact development
queries (cut out of its published train); test queries have no part in that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cells import commit, gain, points

from stm_training.data.leakage import without_leaks
from stm_training.data.reading import read_beir, read_corpus
from stm_training.data.records import Pair, Passage
from stm_training.data.splits import split_collection
from stm_training.demo.base_model import find_base
from stm_training.evaluate.metrics import mean
from stm_training.evaluate.versions import installed_versions
from stm_training.filtering.run import filter_pairs
from stm_training.filtering.settings import FilterSection
from stm_training.finetune.backbone import BackboneSpec, load_backbone
from stm_training.finetune.lora import full_deltas
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import train_expert
from stm_training.llm.openai_client import OpenAIServer
from stm_training.llm.replay import ReplayServer, read_recordings
from stm_training.merge.apply import MergedModel
from stm_training.merge.recipe import MergeRecipe
from stm_training.mining.mine import mine_negatives
from stm_training.mining.settings import MineSection
from stm_training.pipeline.collections import Problem, judged_and_sample
from stm_training.pipeline.refining import BaseEncoder
from stm_training.pipeline.scoring import score_backbone
from stm_training.pipeline.stages import source_digest
from stm_training.recipe import expand_variables
from stm_training.synthesize.run import synthesize

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "synthesis"
SETS = ("scifact", "evidence_inference_passages")
MAX_LENGTH = 128
TRAIN = TrainSettings(steps=40, batch_size=32, learning_rate=2e-4, warmup_steps=4, hard_negatives=2)
DEV_DOCUMENTS = 800
NEGATIVES_FROM = 1_000  # passages beside the recorded ones that mining may draw from, of each set


@dataclass(frozen=True)
class Variant:
    """One row of the table: what the model is trained on."""

    name: str
    kinds: tuple[str, ...] = ("question", "claim", "keywords")
    negatives: str = "none"  # none, llm, band, margin, mixed
    filters: bool = False


VARIANTS = (
    Variant("questions", kinds=("question",)),
    Variant("+ claims + keywords"),
    Variant("+ LLM hard negatives", negatives="llm"),
    Variant("+ mined negatives (band)", negatives="band"),
    Variant("+ mined negatives (margin)", negatives="margin"),
    Variant("+ LLM and mined (margin)", negatives="mixed"),
)


class Data:
    """Everything that cells share: pairs, corpora, problems; made once per process."""

    def __init__(self, *, full: bool) -> None:
        data = Path(expand_variables("${STM_DATA}"))
        recordings = Path(expand_variables("${STM_LLM}")) / "recorded.jsonl"
        self.spec = BackboneSpec(source=str(find_base()), max_length=MAX_LENGTH)
        cut = data if full else data / "panel"
        self.tests = [self._problem(cut / name, "test", name) for name in SETS]
        self.dev = self._dev(data / "scifact")
        recorded = read_recordings(recordings)
        self.written_for: list[Passage] = []
        self.corpus: list[Passage] = []
        for name in SETS:
            passages = read_corpus(data / name)
            own = [passage for passage in passages if passage.id in recorded]
            others = [passage for passage in passages if passage.id not in recorded]
            drawn = np.random.default_rng(0).choice(len(others), NEGATIVES_FROM, replace=False)
            self.written_for += own
            self.corpus += own + [others[int(place)] for place in sorted(drawn)]
        self.pairs = self._pairs(recordings)
        self.encoder = BaseEncoder(lambda: load_backbone(self.spec))

    def _problem(self, folder: Path, split: str, name: str) -> Problem:
        collection = read_beir(folder, split)
        return Problem(name, list(collection.corpus.values()), collection.queries, collection.qrels)

    def _dev(self, folder: Path) -> Problem:
        train = read_beir(folder, "train")
        dev = split_collection(train, seed=0, fractions={"train": 0.75, "dev": 0.25})["dev"]
        passages = judged_and_sample(list(dev.corpus.values()), dev.qrels, DEV_DOCUMENTS, seed=0)
        return Problem("scifact dev", passages, dev.queries, dev.qrels)

    def _pairs(self, recordings: Path) -> list[Pair]:
        documents = {passage.id: passage.content for passage in self.written_for}
        with tempfile.TemporaryDirectory() as folder, ReplayServer(recordings, documents) as server:
            llm = OpenAIServer(server.base_url, "recorded")
            result = synthesize(self.written_for, llm, journal=Path(folder) / "journal.jsonl")
        held_out = [text for problem in (*self.tests, self.dev) for text in problem.queries.values()]
        kept, dropped = without_leaks(result.pairs, held_out)
        print(f"{len(kept)} pairs from {len(documents)} documents; {len(dropped)} repeated a held-out query")
        return kept

    def training_pairs(self, variant: Variant, seed: int) -> tuple[list[Pair], dict[str, Any]]:
        """The pairs that a variant is trained on, and notes about them."""
        pairs = [pair for pair in self.pairs if pair.kind in variant.kinds]
        notes: dict[str, Any] = {}
        if variant.negatives in ("none", "band", "margin"):
            pairs = [replace(pair, negatives=()) for pair in pairs]
        encode_query, encode_document = self.encoder.query, self.encoder.document
        if variant.negatives in ("band", "margin", "mixed"):
            preset = "band" if variant.negatives == "band" else "margin"
            mix = "add" if variant.negatives == "mixed" else "replace"
            settings = MineSection.model_validate({"preset": preset, "mix": mix})
            pairs, report = mine_negatives(
                pairs,
                self.corpus,
                settings,
                encode_query=encode_query,
                encode_document=encode_document,
                seed=seed,
            )
            notes["mining"] = report.counts
        if variant.filters:
            result = filter_pairs(
                pairs,
                self.corpus,
                FilterSection(),
                encode_query=encode_query,
                encode_document=encode_document,
            )
            pairs = result.pairs
            notes["dropped"] = {name: dropped.count for name, dropped in result.dropped.items()}
        notes["pairs"] = len(pairs)
        return pairs, notes


def cell_path(name: str, seed: int, *, full: bool) -> Path:
    """Where a cell's result lies."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
    while "--" in slug:
        slug = slug.replace("--", "-")
    return RESULTS / f"{slug}{'-full' if full else ''}-seed{seed}.json"


def cell_key(variant: Variant | None, seed: int) -> str:
    """Changes with whatever decides a cell's figures."""
    code = [
        source_digest(f"stm_training.{name}") for name in ("finetune", "mining", "filtering", "synthesize")
    ]
    parts = [variant and asdict(variant), seed, TRAIN.model_dump(), MAX_LENGTH, DEV_DOCUMENTS, code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def run_cell(data: Callable[[], Data], variant: Variant | None, seed: int, *, full: bool) -> dict[str, Any]:
    """Train and score one cell, or read what an earlier run stored."""
    name = "base" if variant is None else variant.name + (" + filters" if variant.filters else "")
    path, key = cell_path(name, seed, full=full), cell_key(variant, seed)
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return stored
    started = time.monotonic()
    shared = data()
    backbone = load_backbone(shared.spec)
    notes: dict[str, Any] = {}
    if variant is not None:
        pairs, notes = shared.training_pairs(variant, seed)
        with tempfile.TemporaryDirectory() as folder:
            trained = train_expert(shared.spec, pairs, settings=TRAIN, out_dir=Path(folder), seed=seed)
            deltas = full_deltas(trained.adapter_dir, backbone)
        MergedModel(backbone, {"cell": deltas}).apply(
            MergeRecipe(method="task_arithmetic", weights={"cell": 1.0})
        )
        notes["losses"] = [round(loss, 4) for loss in trained.losses]
    scores = {
        problem.name: score_backbone(backbone, problem)["ndcg@10"] for problem in (shared.dev, *shared.tests)
    }
    result = {
        "cell": name,
        "seed": seed,
        "key": key,
        "commit": commit(),
        "versions": installed_versions(),
        "seconds": round(time.monotonic() - started, 1),
        "means": {problem: mean(values) for problem, values in scores.items()},
        "scores": scores,
        "notes": notes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
    partial.replace(path)
    print(f"{name}, seed {seed}: {result['means']} in {result['seconds']} s", flush=True)
    return result


def table(cells: Sequence[Sequence[dict[str, Any]]]) -> str:
    """The table in Markdown; each row holds one variant's seeds."""
    base = cells[0][0]
    lines = [
        "| trained on | pairs | scifact dev | "
        + " | ".join(SETS)
        + " | mean of tests | vs base (95 % interval) | seeds |",
        "|---|---|---|" + "---|" * len(SETS) + "---|---|---|",
    ]
    for seeds in cells:
        means = {name: float(np.mean([cell["means"][name] for cell in seeds])) for name in base["means"]}
        tests = float(np.mean([means[name] for name in SETS]))
        row = [seeds[0]["cell"], str(seeds[0]["notes"].get("pairs", "-")), f"{means['scifact dev']:.4f}"]
        row += [f"{means[name]:.4f}" for name in SETS]
        difference = "-" if seeds[0]["cell"] == "base" else points(gain(seeds, base, SETS))
        row += [f"{tests:.4f}", difference, str(len(seeds))]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="full test corpora instead of the panel's cuts")
    parser.add_argument("--json", metavar="FILE", help="write the means to this file")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the best three variants (default: 3)")
    arguments = parser.parse_args()
    loaded: list[Data] = []

    def data() -> Data:
        loaded[:] = loaded or [Data(full=arguments.full)]
        return loaded[0]

    def cell(variant: Variant | None, seed: int = 0) -> dict[str, Any]:
        return run_cell(data, variant, seed, full=arguments.full)

    rows: dict[Variant | None, list[dict[str, Any]]] = {None: [cell(None)]}  # the base has no seed
    for variant in VARIANTS:
        rows[variant] = [cell(variant)]
    by_dev = sorted(VARIANTS, key=lambda item: -rows[item][0]["means"]["scifact dev"])
    for variant in by_dev[:2]:
        filtered = replace(variant, filters=True)
        rows[filtered] = [cell(filtered)]
    trained = [variant for variant in rows if variant is not None]
    best = sorted(trained, key=lambda item: -rows[item][0]["means"]["scifact dev"])[:3]
    for seed in range(1, arguments.seeds):
        for variant in best:
            rows[variant].append(cell(variant, seed))
    print(table(list(rows.values())))
    if arguments.json:
        document = {seeds[0]["cell"]: [one["means"] for one in seeds] for seeds in rows.values()}
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
