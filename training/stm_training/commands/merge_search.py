"""``stm-train merge-search``: find the merge of given members that is best on development queries."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stm_retriever.errors import ConfigError, require
from stm_training.commands.settings_options import add_settings, read_settings
from stm_training.merge.search.settings import SearchSection
from stm_training.merge.stream.request import parse_member

if TYPE_CHECKING:
    from stm_training.evaluate.selection import Decision
    from stm_training.merge.search.records import SearchResult, Trial
    from stm_training.merge.search.study import Progress
    from stm_training.pipeline.collections import Problem

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

NOTHING_BETTER = 1
RESULT, CHART = "search.json", "pareto.svg"

_DESCRIPTION = """\
Search over merges of models that were trained from one base: LoRA adapters, whole folders, or a mix. Every
candidate is merged in memory and scored on development queries; guards are collections that must not get
worse. The best candidate within --max-guard-loss is written to --out, if it is better than the base;
otherwise nothing is written and the exit code is 1.

Trials are kept beside --out (FOLDER.search): a stopped search goes on where it was, --trials may be raised,
and another --max-guard-loss chooses anew from the merges that are scored already.
"""
_EXAMPLES = """\
examples:
  stm-train merge-search --base minilm --member faq=run/expert-faq --member law=law-model \\
      --dev my-collection --guard general-collection:test --trials 30 --out merged
  stm-train merge-search ... --methods ties,dare_ties,slerp --sampler tpe --trials 60 --max-guard-loss 0.2

Development queries choose, so they prove nothing: score the result on other ones with stm-train evaluate.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "merge-search",
        help="find the best merge of given models on development queries",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--base",
        required=True,
        metavar="MODEL",
        help="what all members were trained from; folder or hub name",
    )
    add(
        "--member",
        action="append",
        required=True,
        metavar="NAME=FOLDER",
        help="adapter or model; repeat it for each",
    )
    add(
        "--dev",
        action="append",
        required=True,
        metavar="FOLDER[:SPLIT]",
        help="BEIR folder with the queries that choose (split: dev); several weigh the same",
    )
    add(
        "--guard",
        action="append",
        default=[],
        metavar="FOLDER[:SPLIT]",
        help="BEIR folder that must not get worse (split: dev)",
    )
    add(
        "--exclude-self",
        action="append",
        default=[],
        metavar="FOLDER",
        help="of these folders: leave out the document with a query's own id, as in ArguAna",
    )
    add("--dev-queries", type=int, default=300, metavar="N", help="most queries of a folder (default: 300)")
    add(
        "--dev-documents",
        type=int,
        default=2000,
        metavar="N",
        help="most documents of a folder (default: 2000)",
    )
    add(
        "--ship-if", choices=("mean", "significant"), default="mean", help="what 'better than the base' means"
    )
    add("--out", required=True, type=Path, metavar="FOLDER", help="folder to make")
    add("--overwrite", action="store_true", help="replace a merged folder that is there")
    add("--download", action="store_true", help="fetch hub names that are not cached")
    add_settings(
        parser.add_argument_group("how to search"),
        SearchSection,
        defaults={"max_guard_loss": "0.5", "seed": "0", "storage": "FOLDER.search/search.db"},
    )


def run(arguments: argparse.Namespace) -> int:
    """Search and write the winner.

    Raises:
        ConfigError: If an option cannot be, or the target is taken.
        DataError: If a collection cannot be read.
        MergeError: If the members do not fit the base.
    """
    settings = read_settings(arguments, SearchSection)
    members = _members(arguments.member)
    for package in ("torch", "transformers", "safetensors", "optuna"):
        require(package, extra="train", purpose="stm-train merge-search")
    from stm_training.commands.merge import local_source
    from stm_training.merge.search.folders import FolderSearch
    from stm_training.merge.stream.stream import BASE, merge_folders, refuse_taken

    if BASE in members:
        raise ConfigError(f"--member {BASE}=...: that name is the base's own; take another.")
    out: Path = arguments.out
    refuse_taken(out, overwrite=arguments.overwrite)
    scratch = out.absolute().with_name(out.name + ".search")
    base = local_source(arguments.base, arguments.download)
    folders = {name: local_source(source, arguments.download) for name, source in members.items()}
    tolerance = 0.5 if settings.max_guard_loss is None else settings.max_guard_loss
    what = FolderSearch(
        base=base,
        members=folders,
        dev=[_problem(text, arguments) for text in arguments.dev],
        guards=[_problem(text, arguments) for text in arguments.guard],
        settings=settings,
        scratch=scratch,
        max_guard_loss=tolerance,
        seed=settings.seed or 0,
    )
    with _progress(settings.trials) as progress:
        result = what.run(progress)
    (scratch / RESULT).write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _draw(result, scratch / CHART, tolerance)
    best, decision = _choose(result, tolerance, arguments.ship_if)
    _print(result, best, decision, scratch)
    if best is None or decision is None or decision.shipped == BASE:
        return NOTHING_BETTER
    used = {name: folders[name] for name in best.recipe.weights}
    merge_folders(base, used, best.recipe, out, prompts_from=BASE, overwrite=arguments.overwrite)
    print(f"Wrote {out}. Use it: stm-train export {out} --out RETRIEVER")
    return 0


def _members(texts: list[str]) -> dict[str, str]:
    members: dict[str, str] = {}
    for text in texts:
        name, folder, weight = parse_member(text)
        if weight is not None:
            raise ConfigError(f"--member {text!r}: the search finds the weights; write {name}={folder}.")
        if name in members:
            raise ConfigError(f"--member {name!r} is given twice; give each member a name of its own.")
        members[name] = folder
    return members


def _problem(text: str, arguments: argparse.Namespace) -> Problem:
    from stm_training.merge.search.folders import read_problem

    folder, colon, split = text.rpartition(":")
    if not colon or Path(text).expanduser().exists():
        folder, split = text, "dev"
    if split == "test":
        print(
            f"note: {folder}: these test queries choose the merge now, so they can no longer prove it",
            file=sys.stderr,
        )
    return read_problem(
        Path(folder).expanduser(),
        split,
        queries=arguments.dev_queries,
        documents=arguments.dev_documents,
        exclude_self=folder in arguments.exclude_self,
        seed=arguments.seed or 0,
    )


@contextmanager
def _progress(trials: int) -> Iterator[Progress]:
    from tqdm import tqdm  # comes with tokenizers, through huggingface-hub

    with tqdm(total=trials, unit="merge", desc="searching", disable=None, leave=False) as bar:

        def tell(trial: Trial, total: int) -> None:
            bar.total = total
            score = "ended early" if trial.domain is None else f"{trial.domain:.4f}"
            bar.set_postfix_str(f"{trial.recipe.method} {score}")
            bar.update()

        yield tell


def _choose(
    result: SearchResult, max_guard_loss: float, ship_if: str
) -> tuple[Trial | None, Decision | None]:
    """The best merge that the guards allow, and whether it may replace the base."""
    from stm_training.merge.search.pareto import choose_by
    from stm_training.merge.stream.stream import BASE
    from stm_training.pipeline.deciding import decide

    best = choose_by(result.trials, max_guard_loss) or result.best_trial
    if best is None:
        return None, None
    decision = decide(
        {BASE: result.base, "merge": best.scores},
        {BASE: 0, "merge": len(best.recipe.weights)},
        base=BASE,
        ship_if="significant" if ship_if == "significant" else "mean",
        max_guard_loss=max_guard_loss,
    )
    return best, decision


def _draw(result: SearchResult, path: Path, max_guard_loss: float) -> None:
    from stm_training.merge.search.objective import domain, general
    from stm_training.report.pareto import ChartPoint, pareto_svg

    points = [ChartPoint("base", "base", domain(result.base), general(result.base) or 0.0)]
    points += [
        ChartPoint(
            f"merge {trial.number + 1}",
            "merge",
            trial.domain or 0.0,
            trial.general or 0.0,
            trial.worst_guard_loss,
        )
        for trial in result.trials
        if not trial.pruned
    ]
    front = [f"merge {trial.number + 1}" for trial in result.pareto_trials]
    if result.base.guards and (drawing := pareto_svg(points, max_guard_loss=max_guard_loss, front=front)):
        path.write_text(drawing + "\n", encoding="utf-8")


def _print(result: SearchResult, best: Trial | None, decision: Decision | None, scratch: Path) -> None:
    from stm_training.merge.search.objective import domain

    scored = len(result.trials) - result.pruned
    print(
        f"{len(result.trials)} merges in {result.seconds:.0f} s, {scored} scored whole, "
        f"{result.pruned} ended early; base {domain(result.base):.4f} nDCG@10 on the development queries"
    )
    for trial in result.pareto_trials:
        losses = ", ".join(f"{name} {-loss:+.2f}" for name, loss in trial.guard_losses.items())
        weights = json.dumps(dict(trial.recipe.weights))
        print(
            f"  {trial.domain:.4f}  {trial.recipe.method} {weights}"
            + (f"  guards: {losses}" if losses else "")
        )
    if best is None or decision is None:
        print("Every merge was ended early: none came near the base. Nothing was written.")
    else:
        print(decision.reason)
    chart = f" and {scratch / CHART}" if (scratch / CHART).is_file() else ""
    print(f"Every trial: {scratch / RESULT}{chart}")
