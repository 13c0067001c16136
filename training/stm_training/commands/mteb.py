"""``stm-train mteb``: score retriever folders on MTEB's tasks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stm_retriever.errors import ConfigError, require
from stm_training.commands.options import add_on_error

if TYPE_CHECKING:
    from stm_retriever import Embedder
    from stm_training.mteb.encoder import StmEncoder

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

INSTRUCTIONS = ("folder", "paper")
_DESCRIPTION = """\
Score retriever folders on tasks of MTEB, the Massive Text Embedding Benchmark.

Tasks are stm-paper (the 12 of the paper STM), medical (MTEB(Medical, v1)), or names of MTEB's tasks. Their
data comes from the Hugging Face hub, or with --data from local copies and nowhere else. Results are written
in MTEB's own format; a task whose result is there is not run again, unless the model or the data changed.
Needs the extra "eval": pip install 'stm-retriever[train,eval]'
"""
_EXAMPLES = """\
examples:
  stm-train mteb my-retriever --tasks stm-paper --out mteb-results
  stm-train mteb base-folder my-retriever --tasks SciFact NFCorpus --data collections --out mteb-results

--data FOLDER holds a BEIR folder for each task, by the task's name in any case:
  FOLDER/SciFact/corpus.jsonl, queries.jsonl, qrels/test.tsv
Of a task in several languages: FOLDER/PublicHealthQA/english/corpus.jsonl, ...
Folders that MTEB has no task for can be named too; they become tasks of their own.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "mteb",
        help="score retriever folders on tasks of MTEB",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="retriever folder, or its name on the hub")
    parser.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help="stm-paper, medical, or names of tasks; spaces or commas part them",
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="local copies of the tasks; no hub then")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("mteb-results"),
        metavar="FOLDER",
        help="where MTEB's result files go (default: mteb-results)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument(
        "--instructions",
        choices=INSTRUCTIONS,
        default="folder",
        help="folder: the prompts stored in the folder; paper: the paper's, one for each of its 12 tasks "
        "(default: folder)",
    )
    parser.add_argument(
        "--dimension", type=int, help="cut vectors to this length, where the model allows it (Matryoshka)"
    )
    parser.add_argument("--variant", default="fp32", help="which ONNX file of the folders (default: fp32)")
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda", "auto"), help="where to encode (default: cpu)"
    )
    parser.add_argument(
        "--download", action="store_true", help="allow a download of models given by hub name"
    )
    parser.add_argument("--overwrite", action="store_true", help="run tasks again whose result is there")
    parser.add_argument("--predictions", action="store_true", help="also keep the rankings")
    add_on_error(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score the models.

    Returns:
        Exit status 0.

    Raises:
        MissingExtraError: If mteb is not installed.
        ConfigError: For an unknown task.
        DataError: If a task's data is not there or cannot be read.
        ModelFolderError: If a model is not there.
    """
    require("mteb", extra="eval", purpose="scoring on MTEB")
    from stm_training.mteb.run import figures, paper_means, plan, run_tasks

    names = [name for part in arguments.tasks for name in part.split(",") if name]
    scores: dict[str, dict[str, float]] = {}
    kept: dict[str, Any] = {}
    for model in arguments.models:
        planned = plan(names, arguments.data)  # anew for each model: a task is unloaded when it is done
        encoder = _encoder(arguments, model)
        print(f"{model}: {', '.join(one.name for one in planned)} ...", file=sys.stderr)
        found = run_tasks(
            encoder,
            planned,
            arguments.out,
            overwrite=arguments.overwrite,
            predictions=arguments.predictions,
            on_error=arguments.on_error,
            show_progress=sys.stderr.isatty(),
        )
        if model in scores:
            raise ConfigError(f"{model} is given more than once; give each model once.")
        scores[model] = {one.task: one.score for one in found}
        meta = encoder.mteb_model_meta
        kept[model] = {"name": meta.name, "revision": meta.revision, "tasks": figures(found)}
        kept[model]["means"] = paper_means(scores[model])
    print(format_table(scores, {model: entry["means"] for model, entry in kept.items()}))
    print(f"\nMTEB's own files are in {arguments.out / 'results'}.")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(kept, indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


def _encoder(arguments: argparse.Namespace, model: str) -> StmEncoder:
    from stm_retriever import Embedder
    from stm_training.mteb.encoder import StmEncoder
    from stm_training.mteb.instructions import DOCUMENT_PROMPT, paper_query_prompts

    embedder: Embedder = Embedder.load(
        model,
        variant=arguments.variant,
        device=arguments.device,
        dimension=arguments.dimension,
        local_files_only=not arguments.download,
    )
    if arguments.instructions == "folder":
        return StmEncoder(embedder)
    return StmEncoder(
        embedder,
        query_prompts=paper_query_prompts(),
        document_prompt=DOCUMENT_PROMPT,
        instructions=arguments.instructions,
    )


def format_table(
    scores: Mapping[str, Mapping[str, float]], means: Mapping[str, Mapping[str, float | None]]
) -> str:
    """Tasks in rows and models in columns; the paper's means where all their tasks were run."""
    models: Sequence[str] = list(scores)
    tasks = list(dict.fromkeys(task for found in scores.values() for task in found))
    rows = [("task", *models)]
    rows += [(task, *(f"{scores[model][task]:.4f}" for model in models)) for task in tasks]
    for group in ("medical", "general", "all"):
        cells = [means[model][group] for model in models]
        if all(cell is not None for cell in cells):
            rows.append((f"mean, {group}", *(f"{cell:.4f}" for cell in cells)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
