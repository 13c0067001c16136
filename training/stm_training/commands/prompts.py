"""``stm-train prompts``: choose the query prompt of a model on development queries."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stm_retriever.errors import ConfigError, require
from stm_training.commands.options import add_on_error

if TYPE_CHECKING:
    from stm_training.pipeline.collections import Problem
    from stm_training.prompting.decision import PromptDecision

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Find the text that is best put before each query (the "query prompt", or retrieval instruction).

Candidates come from a file of yours, from the generic instructions that we ship (--random), or from an LLM
that is shown which queries fail (--gepa). Each is scored with nDCG@10 on development queries. The model's own
prompt always takes part, and is kept unless another is better on queries that had no say in finding it
(paired bootstrap, interval above 0). Documents and their prompt stay as they are.

The result is a retriever folder with the chosen prompt in it, which every program that loads it applies.
"""
_EXAMPLES = """\
examples:
  stm-train prompts my-retriever --data my-collection --split dev --random 10 --out better
  stm-train prompts my-retriever --data my-collection --candidates prompts.txt --out better \\
      --report prompts.json
  stm-train prompts my-retriever --data my-collection --gepa --base-url http://127.0.0.1:8000/v1 \\
      --model my-llm --out better

The file of candidates holds one instruction per line; a line in double quotes is the whole prompt, verbatim.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "prompts",
        help="choose the text before each query on development queries",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder with config.json and model.safetensors, or hub name"
    )
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FOLDER", help="collection in BEIR layout"
    )
    parser.add_argument("--split", default="dev", help="qrels file to choose on (default: dev); never test")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to make")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write every candidate's figures (JSON)")
    _add_sources(parser)
    _add_details(parser)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("candidates (at least one of these)")
    group.add_argument("--candidates", type=Path, metavar="FILE", help="one instruction per line")
    group.add_argument(
        "--random", type=int, default=0, metavar="N", help="N of the generic instructions that we ship"
    )
    group.add_argument("--gepa", action="store_true", help="let an LLM write instructions (GEPA)")
    llm = parser.add_argument_group("the LLM for --gepa")
    llm.add_argument(
        "--base-url", metavar="URL", help="OpenAI-compatible server, as http://127.0.0.1:8000/v1"
    )
    llm.add_argument("--model", dest="llm_model", metavar="NAME", help="the model's name at that server")
    llm.add_argument("--api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable with the key")
    llm.add_argument(
        "--allow-remote", action="store_true", help="queries and excerpts may leave this machine"
    )
    llm.add_argument("--temperature", type=float, default=0.7, help="of the LLM (default: 0.7)")
    llm.add_argument(
        "--budget", type=int, default=1000, metavar="N", help="scored queries of GEPA (default: 1000)"
    )


def _add_details(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help="how an instruction becomes a prompt, with {instruction} in it; \\n is a line break (default: "
        "the form of the model's own prompt, else '{instruction}\\nQuery: ')",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="keeps answers, vectors and scores, so that the same command goes on after a stop "
        "(default: OUT.prompts)",
    )
    parser.add_argument(
        "--documents", type=int, metavar="N", help="rank judged documents and a sample up to N"
    )
    parser.add_argument("--exclude-self", action="store_true", help="as in stm-train evaluate")
    add_on_error(parser)
    parser.add_argument("--seed", type=int, default=0, help="of every sample (default: 0)")
    parser.add_argument("--download", action="store_true", help="fetch a hub name that is not cached")
    parser.add_argument("--overwrite", action="store_true", help="replace a retriever folder at OUT")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(arguments: argparse.Namespace) -> int:
    """Search, choose, and export.

    Raises:
        ConfigError: If an option cannot be.
        DataError: If the collection or the list cannot be read.
        LLMError: If the LLM cannot be used.
        MissingExtraError: If the training packages are not installed.
    """
    _check(arguments)
    for package in ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "yaml"):
        require(package, extra="train", purpose="stm-train prompts")
    from stm_training.export.export import export_model
    from stm_training.export.folder_writer import check_target

    check_target(arguments.out, overwrite=arguments.overwrite)
    decision = _search(arguments)
    if arguments.report is not None:
        _write_report(arguments, decision)
    print(_summary(decision))
    note = _say(arguments)
    export_model(
        arguments.model,
        arguments.out,
        query_prompt=decision.prompt if decision.changed else None,
        overwrite=arguments.overwrite,
        download=arguments.download,
        progress=lambda step: note(f"{step} ..."),
    )
    print(f"Wrote {arguments.out} with the query prompt {decision.prompt!r}.")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.split == "test":
        raise ConfigError(
            "--split test: a prompt chosen on test queries makes their score worthless. Choose on a dev "
            "split (qrels/dev.tsv), and use test once, with stm-train evaluate."
        )
    if not (arguments.candidates or arguments.random or arguments.gepa):
        raise ConfigError(
            "There is nothing to try beside the model's own prompt: give --candidates FILE, --random N or "
            "--gepa."
        )
    if arguments.gepa and not (arguments.base_url and arguments.llm_model):
        raise ConfigError(
            "--gepa needs an LLM that writes instructions: give --base-url http://... and --model NAME."
        )
    if arguments.documents is not None and arguments.documents < 1:
        raise ConfigError(f"--documents {arguments.documents}: at least 1 document is needed to rank.")


def _search(arguments: argparse.Namespace) -> PromptDecision:
    from stm_training.finetune.backbone import BackboneSpec, load_backbone
    from stm_training.pipeline.console import RunConsole
    from stm_training.prompting.kept_vectors import kept_documents
    from stm_training.prompting.search import search_prompt

    settings = _settings(arguments)
    problem, held_out = _problem(arguments)
    work = arguments.work or arguments.out.with_name(f"{arguments.out.name}.prompts")
    work.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(BackboneSpec(arguments.model, local_files_only=not arguments.download))
    _say(arguments)(
        f"{len(problem.queries)} queries, {len(problem.passages)} documents; results so far: {work}"
    )
    llm = _llm(arguments)
    console = RunConsole(quiet=arguments.quiet)
    try:
        with console.bar("encoding documents") as advance:
            documents = kept_documents(
                backbone, problem, work, lambda done, total: advance(done, total=total)
            )
        with console.bar("scoring prompts") as advance:
            return search_prompt(
                backbone,
                problem,
                settings,
                llm=llm,
                seed=arguments.seed,
                progress=lambda done, total, note: advance(done, total=total, note=note),
                documents=documents,
                held_out=held_out,
                dataset_names=[arguments.data.resolve().name],
                work=work,
            )
    finally:
        if llm is not None:
            llm.close()


def _settings(arguments: argparse.Namespace) -> Any:
    from pydantic import ValidationError

    from stm_training.prompting.settings import GepaSection, PromptSearchSection

    template = arguments.template and arguments.template.replace("\\n", "\n")
    try:
        gepa = None
        if arguments.gepa:
            most = min(100, max(2, arguments.budget // 4))
            gepa = GepaSection(
                metric_calls=arguments.budget, max_queries=most, temperature=arguments.temperature
            )
        return PromptSearchSection(
            candidates=None if arguments.candidates is None else str(arguments.candidates),
            random=arguments.random,
            gepa=gepa,
            template=template,
        )
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"These options cannot be used together or as given: {lines}") from error


def _problem(arguments: argparse.Namespace) -> tuple[Problem, list[str]]:
    """The development queries, and texts of test queries that no prompt may copy."""
    from stm_training.data.reading import available_splits, read_beir
    from stm_training.pipeline.collections import Problem, judged_and_sample

    collection = read_beir(
        arguments.data, arguments.split, on_error=arguments.on_error, allow_title_only=True
    )
    for row in collection.skipped:
        print(f"skipped {row}")
    passages = list(collection.corpus.values())
    if arguments.documents is not None:
        passages = judged_and_sample(passages, collection.qrels, arguments.documents, seed=arguments.seed)
    problem = Problem(
        collection.name, passages, collection.queries, collection.qrels, exclude_self=arguments.exclude_self
    )
    held_out: list[str] = []
    if "test" in available_splits(arguments.data):
        test = read_beir(
            arguments.data,
            "test",
            on_error=arguments.on_error,
            corpus=collection.corpus,
            allow_title_only=True,
        )
        held_out = list(test.queries.values())
    return problem, held_out


def _llm(arguments: argparse.Namespace) -> Any:
    if not arguments.gepa:
        return None
    from stm_training.llm.openai_client import OpenAIServer

    return OpenAIServer(
        arguments.base_url,
        arguments.llm_model,
        api_key_env=arguments.api_key_env,
        allow_remote=arguments.allow_remote,
    )


def _say(arguments: argparse.Namespace) -> Callable[[str], None]:
    return (lambda line: None) if arguments.quiet else (lambda line: print(line, file=sys.stderr))


def _summary(decision: PromptDecision) -> str:
    rows = sorted(
        (one for one in decision.candidates if one.dev is not None), key=lambda one: -(one.dev or 0.0)
    )
    lines = [f"{'nDCG@10':>8}  {'difference':>10}  {'interval':>18}  prompt"]
    for one in rows:
        figures = ("reference", "")
        if one.interval is not None:
            mean, lo, hi = (100 * value for value in one.interval)
            figures = (f"{mean:+.2f}", f"{lo:+.2f} to {hi:+.2f}")
        mark = "*" if one.finalist else " "
        lines.append(f"{one.dev:8.4f}  {figures[0]:>10}  {figures[1]:>18} {mark}{one.prompt!r}")
    for one in decision.candidates:
        if one.findings and one.origin != "plain":
            lines.append(f"refused  {one.prompt!r}: {'; '.join(map(str, one.findings))}")
    lines += [
        "",
        "nDCG@10 is over all development queries; differences (points, against the model's own prompt) are "
        "over the part that had no say in the ranking; * was tested.",
        *decision.notes,
        f"{'Chosen' if decision.changed else 'Kept'}: {decision.prompt!r}, because {decision.reason}.",
    ]
    return "\n".join(lines)


def _write_report(arguments: argparse.Namespace, decision: PromptDecision) -> None:
    from stm_training.evaluate.versions import installed_versions

    figures = {
        "model": arguments.model,
        "data": str(arguments.data),
        "split": arguments.split,
        "seed": arguments.seed,
        **decision.figures(),
        "versions": installed_versions(),
    }
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
