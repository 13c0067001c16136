"""``stm-train synthesize``: training pairs from documents."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from stm_retriever.errors import ConfigError, require
from stm_training.commands.options import add_on_error
from stm_training.data.reading import read_corpus
from stm_training.data.records import Passage, SkippedRow
from stm_training.data.sample import sample_passages
from stm_training.data.splitting import split_passages
from stm_training.data.writing import write_pairs
from stm_training.llm.telemetry import telemetry_off

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EXIT_BUDGET = 3

_DESCRIPTION = """\
Write training queries and hard negatives for your documents: with a language model behind any
OpenAI-compatible server, with one in this process, with completions recorded earlier, or with none.

Every completion is written to a journal as it arrives. Started again, the same command asks for nothing
twice; a report beside the output lists every document as done, or failed with the reason.
Texts leave this machine only with --allow-remote, and never reach the log.

Exit status: 0 done (see the report for failures); 2 an error you can mend; 3 the budget stopped it, and a
larger one goes on from there; 130 Ctrl-C.
"""
_EXAMPLES = """\
examples:
  stm-train synthesize my-documents --out pairs.jsonl --extractive
  stm-train synthesize my-documents --out pairs.jsonl --base-url http://127.0.0.1:11434/v1 --model qwen3:8b
  stm-train synthesize corpus.jsonl --out pairs.jsonl --local-model models/Qwen3-0.6B --kinds question,long
  stm-train synthesize corpus.jsonl --out pairs.jsonl --base-url https://api.example.org/v1 --model large \\
      --price-input 0.5 --price-output 1.5 --max-cost 20 --dry-run       what it would cost; nothing is sent
  stm-train synthesize --write-templates my-prompts                      prompts to copy and change
"""
_SOURCES = ("base_url", "local_model", "replay")
_GENERATOR = (*_SOURCES, "model", "revision", "download", "device", "allow_remote", "concurrency", "timeout")
_KEYS = ("api_key_env", "api_key_file", "temperature")


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "synthesize",
        help="write training queries and hard negatives for documents, resumably",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "documents", nargs="?", help="folder of .txt/.md/.html files, JSONL file, or BEIR folder"
    )
    parser.add_argument("--out", type=Path, metavar="PAIRS.jsonl", help="training pairs; written at the end")
    _add_generator(parser.add_argument_group("what writes (exactly one)"))
    _add_server(parser.add_argument_group("how it is asked"))
    _add_writing(parser.add_argument_group("what is written"))
    _add_spending(parser.add_argument_group("what it may take"))
    _add_running(parser.add_argument_group("how it runs"))


def _add_generator(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base-url", metavar="URL", help="OpenAI-compatible server; name its --model too")
    group.add_argument(
        "--local-model",
        metavar="FOLDER",
        help="causal language model, run in this process; or cached hub name",
    )
    group.add_argument("--replay", metavar="FILE", help="recorded completions (JSONL)")
    group.add_argument(
        "--extractive", action="store_true", help="no language model: titles, keywords, sentences"
    )
    group.add_argument(
        "--llm", type=Path, metavar="FILE.yaml", help="the llm section of a recipe, for instance a mixture"
    )


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", help="model name as the server knows it")
    group.add_argument(
        "--api-key-env", metavar="NAME", help="variable with the key (default: OPENAI_API_KEY)"
    )
    group.add_argument("--api-key-file", metavar="FILE", help="file whose first line is the key")
    group.add_argument(
        "--allow-remote", action="store_true", default=None, help="the documents may leave this machine"
    )
    group.add_argument("--concurrency", type=int, help="requests in flight (default: 4)")
    group.add_argument("--timeout", type=float, help="seconds to wait for one answer (default: 120)")
    group.add_argument("--temperature", type=float, help="sampling temperature (default: 0.7)")
    group.add_argument("--max-tokens", type=int, help="longest answer, in tokens (default: 512)")
    group.add_argument("--revision", help="of a --local-model given by hub name")
    group.add_argument(
        "--download", action="store_true", default=None, help="allow a download of --local-model"
    )
    group.add_argument("--device", help="where --local-model runs: cpu (default), cuda, ...")


def _add_writing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--kinds",
        help="comma-separated: question,claim,keywords,title,long,few_shot (default: the first three); "
        "title,keywords,sentence with --extractive",
    )
    group.add_argument("--per-kind", type=int, help="queries of each kind per document (default: 1)")
    group.add_argument(
        "--hard-negatives",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also one hard negative per document (default: no; benchmarks/RESULTS.md says why)",
    )
    group.add_argument(
        "--sample-queries",
        metavar="FILE",
        help="queries of your own, one per line: kind few_shot copies them",
    )
    group.add_argument(
        "--personas", type=Path, metavar="FILE", help="who asks: one per line, drawn per document"
    )
    group.add_argument("--difficulty", help="comma-separated: easy,medium,hard; drawn per document")
    group.add_argument("--templates", metavar="DIR", help="folder with changed prompts")
    group.add_argument(
        "--write-templates", type=Path, metavar="DIR", help="write the prompts there, and stop"
    )
    group.add_argument(
        "--held-out", type=Path, metavar="FILE", help="development and test queries, never to be trained on"
    )
    group.add_argument("--domain", help="also invent retrieval tasks and pairs for this domain (in words)")
    group.add_argument("--tasks", type=int, help="how many retrieval tasks to invent (default: 20)")
    group.add_argument("--pairs-per-task", type=int, help="how many pairs of each (default: 10)")


def _add_spending(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--price-input", type=float, metavar="P", help="per million prompt tokens")
    group.add_argument("--price-output", type=float, metavar="P", help="per million completion tokens")
    group.add_argument("--max-cost", type=float, metavar="C", help="never spend more, resumed runs included")
    group.add_argument("--max-requests", type=int, metavar="N", help="never ask for more completions")
    group.add_argument("--max-total-tokens", type=int, metavar="N", help="never use more tokens")
    group.add_argument("--dry-run", action="store_true", help="print the estimate, and stop; nothing is sent")


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--journal", type=Path, help="completions so far (default: PAIRS.journal.jsonl)")
    group.add_argument("--retry-failures", action="store_true", help="ask again what failed in earlier runs")
    group.add_argument(
        "--report", type=Path, help="what became of each document (default: PAIRS.report.json)"
    )
    group.add_argument("--max-documents", type=int, metavar="N", help="a seeded sample of the documents")
    group.add_argument(
        "--split",
        choices=("auto", "always", "never"),
        default="auto",
        help="cut long documents into passages; auto: not in BEIR folders, nor with --replay (default: auto)",
    )
    group.add_argument("--max-words", type=int, default=200, help="words of a passage (default: 200)")
    group.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    add_on_error(group)
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Write pairs.

    Raises:
        ConfigError: For settings that cannot be used together.
        DataError: If the documents cannot be read.
        LLMError: If the server cannot be reached; the journal is kept.
    """
    telemetry_off()
    from stm_training.synthesize.prompts import check_templates, write_templates

    if arguments.write_templates is not None:
        files = write_templates(arguments.write_templates)
        print(f"Wrote {len(files)} templates to {arguments.write_templates}. Change what you like, and give")
        print(f"the folder: stm-train synthesize ... --templates {arguments.write_templates}")
        return 0
    section = section_of(arguments)
    if arguments.templates is not None and Path(arguments.templates).is_dir():
        check_templates(arguments.templates)
    passages = _passages(arguments)
    if arguments.dry_run:
        from stm_training.synthesize.section import estimate_section

        estimate, hosts = estimate_section(
            section, passages, journal=_journal(arguments), seed=arguments.seed
        )
        print("\n".join(estimate.lines(hosts)))
        return 0
    return _synthesize(arguments, section, passages)


def section_of(arguments: argparse.Namespace) -> Any:
    """The options as a recipe's ``synthesize`` section.

    Raises:
        ConfigError: For options that are missing or do not go together.
    """
    from stm_training.synthesize.settings import SynthesizeSection

    values: dict[str, Any] = {
        "llm": _llm_values(arguments),
        "kinds": _listed(arguments.kinds),
        "hard_negatives": arguments.hard_negatives,
        "per_kind": arguments.per_kind,
        "max_tokens": arguments.max_tokens,
        "sample_queries": arguments.sample_queries,
        "personas": None if arguments.personas is None else _lines(arguments.personas),
        "difficulty": _listed(arguments.difficulty),
        "templates": arguments.templates,
        "tasks": _task_values(arguments),
    }
    try:
        return SynthesizeSection.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        raise ConfigError(_explained(error)) from error


def _llm_values(arguments: argparse.Namespace) -> dict[str, Any] | None:
    given = [name for name in (*_SOURCES, "llm") if getattr(arguments, name) is not None]
    given += ["extractive"] if arguments.extractive else []
    if len(given) != 1:
        message = (
            f"Give exactly one of --base-url, --local-model, --replay, --llm and --extractive; found "
            f"{', '.join('--' + name.replace('_', '-') for name in given) or 'none'}."
        )
        raise ConfigError(message)
    if arguments.extractive:
        return None
    if arguments.base_url is not None and arguments.model is None:
        message = "--base-url needs --model: the model's name as the server knows it."
        raise ConfigError(message)
    values: dict[str, Any] = _yaml(arguments.llm) if arguments.llm is not None else {}
    for name in (*_GENERATOR, *_KEYS):
        if getattr(arguments, name) is not None:
            values[name] = getattr(arguments, name)
    if arguments.price_input is not None or arguments.price_output is not None:
        values["prices"] = {"input": arguments.price_input or 0.0, "output": arguments.price_output or 0.0}
    limits = {
        "max_requests": arguments.max_requests,
        "max_tokens": arguments.max_total_tokens,
        "max_cost": arguments.max_cost,
    }
    limits = {name: value for name, value in limits.items() if value is not None}
    if limits:
        values["budget"] = {**(values.get("budget") or {}), **limits}
    return values


def _task_values(arguments: argparse.Namespace) -> dict[str, Any] | None:
    given = {"tasks": arguments.tasks, "pairs_per_task": arguments.pairs_per_task}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.domain is None:
        if given:
            message = "--tasks and --pairs-per-task invent pairs for a domain: say which with --domain '...'."
            raise ConfigError(message)
        return None
    return {"domain": arguments.domain, **given}


def _passages(arguments: argparse.Namespace) -> list[Passage]:
    if arguments.documents is None:
        if arguments.domain is None:
            message = "Name the documents, or a --domain to invent pairs for."
            raise ConfigError(message)
        return []
    skipped: list[SkippedRow] = []
    passages = read_corpus(arguments.documents, arguments.on_error, skipped=skipped, allow_title_only=True)
    for row in skipped:
        print(f"skipped {row}")
    # Judgements and recordings name whole documents.
    whole = (Path(arguments.documents) / "corpus.jsonl").is_file() or arguments.replay is not None
    if arguments.split == "always" or (arguments.split == "auto" and not whole):
        from stm_training.data.leakage import tokens

        passages = split_passages(
            passages,
            count_tokens=lambda texts: [len(tokens(text)) for text in texts],
            max_tokens=arguments.max_words,
        )
    if arguments.max_documents is not None:
        passages = sample_passages(passages, arguments.max_documents, seed=arguments.seed)
    return passages


def _synthesize(arguments: argparse.Namespace, section: Any, passages: list[Passage]) -> int:
    from rich.console import Console

    from stm_training.pipeline.console import RunConsole
    from stm_training.synthesize.report import synthesis_report, write_report
    from stm_training.synthesize.section import synthesize_section

    if arguments.out is None:
        message = "Name the file to write: --out pairs.jsonl"
        raise ConfigError(message)
    held_out = () if arguments.held_out is None else _lines(arguments.held_out)
    console = RunConsole(quiet=arguments.quiet, console=Console(stderr=True))
    with console.bar("synthesizing", total=len(passages)) as advance:
        result = synthesize_section(
            section,
            passages,
            journal=_journal(arguments),
            seed=arguments.seed,
            held_out_queries=held_out,
            progress=lambda done, total: advance(done, total=total),
            watch=lambda now: advance(now.done, total=now.total, note=now.note()),
            tell=lambda line: print(line, file=sys.stderr),
            retry_failures=arguments.retry_failures,
        )
    write_pairs(arguments.out, result.pairs)
    report = arguments.report or arguments.out.with_suffix(".report.json")
    figures = synthesis_report(result)
    write_report(report, figures)
    for line in _summary(result, figures):
        print(line)
    print(f"Pairs: {arguments.out}   what became of each document: {report}")
    return EXIT_BUDGET if result.limit is not None else 0


def _summary(result: Any, figures: dict[str, Any]) -> list[str]:
    counts = result.counts
    kinds = ", ".join(f"{n} {name[6:]}" for name, n in counts.items() if name.startswith("pairs_"))
    dropped = ", ".join(f"{one.count} {name}" for name, one in result.dropped.items())
    lines = [
        f"{counts['pairs']} pairs ({kinds or 'none'}), {counts['negatives']} hard negatives",
        f"{figures['documents_done']} documents done, {figures['documents_failed']} failed; "
        f"{counts['asked']} completions asked for, {counts['reused']} taken from the journal",
    ]
    if dropped:
        lines.append(f"dropped by filters: {dropped}")
    if result.cost:
        lines.append(f"cost so far: {result.cost:.4g}")
    return [*lines, *result.notes]


def _journal(arguments: argparse.Namespace) -> Path | None:
    if arguments.journal is not None:
        return Path(arguments.journal)
    return None if arguments.out is None else Path(arguments.out).with_suffix(".journal.jsonl")


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _lines(path: Path) -> tuple[str, ...]:
    from stm_training.synthesize.styles import read_queries

    return read_queries(path)


def _yaml(path: Path) -> dict[str, Any]:
    yaml = require("yaml", extra="train", purpose="reading --llm")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = (
            f"--llm {path} cannot be read ({type(error).__name__}). It holds a recipe's llm section as YAML."
        )
        raise ConfigError(message) from error
    if not isinstance(values, dict):
        message = f"--llm {path} holds {type(values).__name__}, not the keys of a recipe's llm section."
        raise ConfigError(message)
    return values


def _explained(error: ValidationError) -> str:
    lines = ["These options cannot be used:"]
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"] if not isinstance(part, int)) or "options"
        lines.append(f"  {where}: {item['msg'].removeprefix('Value error, ')}")
    return "\n".join([*lines, "See: stm-train synthesize --help"])
