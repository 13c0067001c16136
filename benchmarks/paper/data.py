r"""The data that the recipes of this folder train and choose on, laid out below one folder.

    python benchmarks/paper/data.py collections --out "$STM_PAPER_DATA"
    python benchmarks/paper/data.py squad --out "$STM_PAPER_DATA"
    python benchmarks/paper/data.py pairs --out "$STM_PAPER_DATA" --name pairs-10-random \
        --random-prompts 10 \
        medical_synthetic=a.jsonl medical_real=b.jsonl search=c.jsonl nlu=d.jsonl

collections (NFCorpus, SciFact, FiQA2018) and squad (for REFINE) come from the hub. The paper's four slices of
pairs were gathered from released sets (BMRetriever's, on the hub as BMRetriever) that it does not list to the
row: bring them as JSONL rows {query, positive, negatives}; stm-train convert makes such rows from triplets
and other forms. `pairs` writes a prompt into each row, as the paper's prompt variants have it, and leaves out
rows whose query is a query of the development and test sets below collections/.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stm_retriever.errors import DataError, StmError, require
from stm_training.data.leakage import without_leaks
from stm_training.data.reading import available_splits, read_beir, read_pairs
from stm_training.data.records import Collection, Passage
from stm_training.data.writing import write_beir, write_pairs
from stm_training.prompting.candidates import make_prompt
from stm_training.prompting.generic import assign_prompts, generic_prompts

SLICES = ("medical_synthetic", "medical_real", "search", "nlu")
SPLITS = {
    "NFCorpus": ("train", "dev", "test"),
    "SciFact": ("train", "test"),
    "FiQA2018": ("train", "dev", "test"),
}
TEMPLATE = "{instruction}\nQuery: "
_SQUAD = "rajpurkar/squad"
Load = Callable[[str, str], Any]


def write_collection(task: str, out: Path, load: Load | None = None) -> None:
    """Write a task of mteb with all its splits as a BEIR folder.

    Args:
        task: Key of ``SPLITS``.
        out: Folder that gets ``collections/TASK``.
        load: (task, split) -> mteb's split; by default from the hub.
    """
    load = load or _from_hub
    corpus: dict[str, Passage] = {}
    queries: dict[str, str] = {}
    judged: dict[str, dict[str, dict[str, int]]] = {}
    for split in SPLITS[task]:
        found = load(task, split)
        for row in found["corpus"]:
            corpus.setdefault(row["id"], Passage(row["id"], row["text"] or "", row.get("title") or ""))
        queries |= {row["id"]: row["text"] for row in found["queries"]}
        judged[split] = {name: dict(grades) for name, grades in found["relevant_docs"].items()}
    for split, qrels in judged.items():  # each file of judgements beside the queries of all
        known = {name: grades for name, grades in qrels.items() if name in queries}
        write_beir(out / "collections" / task, Collection(task, corpus, queries, known), split)


def write_squad(out: Path, rows: Sequence[dict[str, Any]] | None = None) -> None:
    """Write SQuAD's validation paragraphs and questions as a BEIR folder with a dev and a test half.

    Args:
        out: Folder that gets ``collections/SQuAD``.
        rows: Rows with id, title, context and question; by default from the hub.
    """
    if rows is None:
        datasets = require("datasets", extra="eval", purpose="reading SQuAD from the hub")
        rows = list(datasets.load_dataset(_SQUAD, split="validation"))
    ids: dict[str, str] = {}
    corpus: dict[str, Passage] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {"dev": {}, "test": {}}
    for row in rows:
        id_ = ids.setdefault(row["context"], f"p{len(ids)}")
        corpus.setdefault(id_, Passage(id_, row["context"], row["title"].replace("_", " ")))
        # by article, so that dev and test share no paragraph
        half = "dev" if sum(map(ord, row["title"])) % 2 else "test"
        queries[row["id"]] = row["question"]
        qrels[half][row["id"]] = {id_: 1}
    for split, judged in qrels.items():
        write_beir(out / "collections" / "SQuAD", Collection("SQuAD", corpus, queries, judged), split)


def write_slices(files: dict[str, Path], out: Path, name: str, prompts: Sequence[str]) -> dict[str, int]:
    """Write the slices with a prompt in each row, without rows whose query is a test query.

    Args:
        files: JSONL of pairs by slice.
        out: Folder that gets ``NAME/SLICE.jsonl``, and may hold ``collections/``.
        name: Of the folder with the slices.
        prompts: Whole prompts, one drawn per query; none: rows keep what they have.

    Returns:
        How many rows were left out, by slice.
    """
    held_out = _test_queries(out / "collections")
    dropped = {}
    for slice_, file in files.items():
        kept, leaking = without_leaks(read_pairs(file), held_out)
        if prompts:
            kept = assign_prompts(kept, prompts, overwrite=True)
        (out / name).mkdir(parents=True, exist_ok=True)
        write_pairs(out / name / f"{slice_}.jsonl", kept)
        dropped[slice_] = len(leaking)
    return dropped


def _test_queries(collections: Path) -> list[str]:
    queries: list[str] = []
    for folder in sorted(collections.iterdir()) if collections.is_dir() else ():
        for split in {"dev", "test"} & set(available_splits(folder)):
            queries += read_beir(folder, split, allow_title_only=True).queries.values()
    return queries


def _from_hub(task: str, split: str) -> Any:
    mteb = require("mteb", extra="eval", purpose="reading collections from the hub")
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

    dataset = mteb.get_task(task).metadata.dataset
    return RetrievalDatasetLoader(hf_repo=dataset["path"], revision=dataset["revision"], split=split).load()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collections = commands.add_parser("collections", help="NFCorpus, SciFact and FiQA2018 from the hub")
    squad = commands.add_parser("squad", help="SQuAD from the hub")
    pairs = commands.add_parser("pairs", help="the four slices, with prompts and without test queries")
    for one in (collections, squad, pairs):
        one.add_argument("--out", type=Path, default=os.environ.get("STM_PAPER_DATA"), metavar="FOLDER")
    pairs.add_argument("slices", nargs=len(SLICES), metavar="SLICE=FILE", help=", ".join(SLICES))
    pairs.add_argument("--name", required=True, help="folder of the slices, as the recipe names it")
    drawn = pairs.add_mutually_exclusive_group()
    drawn.add_argument("--random-prompts", type=int, default=0, metavar="N", help="draw from so many prompts")
    drawn.add_argument(
        "--prompts", type=Path, metavar="FILE", help="draw from these instructions, one a line"
    )
    return parser


def _files(given: Sequence[str]) -> dict[str, Path]:
    files = {name: Path(path) for name, _, path in (one.partition("=") for one in given)}
    if set(files) != set(SLICES):
        raise DataError(f"The slices are {', '.join(SLICES)}, each as SLICE=FILE; given: {', '.join(given)}.")
    return files


def _instructions(arguments: argparse.Namespace) -> list[str]:
    if arguments.prompts is not None:
        lines = arguments.prompts.read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return generic_prompts(arguments.random_prompts) if arguments.random_prompts else []


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 2 for an error that the user can mend."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.out is None:
            raise DataError("Name the folder: --out FOLDER, or export STM_PAPER_DATA=FOLDER.")
        if arguments.command == "collections":
            for task in SPLITS:
                write_collection(task, arguments.out)
                print(f"{task}: {', '.join(SPLITS[task])}")
        elif arguments.command == "squad":
            write_squad(arguments.out)
        else:
            prompts = [make_prompt(one, TEMPLATE) for one in _instructions(arguments)]
            dropped = write_slices(_files(arguments.slices), arguments.out, arguments.name, prompts)
            for name, count in dropped.items():
                print(f"{name}: {count} rows left out, whose query is a development or test query")
    except StmError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
