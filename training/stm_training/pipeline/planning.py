"""What a run would do: its stages, which of them are done, what is read, and what it would take.

Nothing is written, nothing is sent, and nothing is downloaded. The keys are those that the run itself
computes, by the same code, so that "done" here means that the run would skip the stage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stm_retriever import __version__
from stm_retriever.errors import ModelFolderError
from stm_training.data.reading import read_corpus
from stm_training.data.records import Passage
from stm_training.finetune.source import resolve_source
from stm_training.pipeline.collections import SPLITS, read_split
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.corpus import INFO, PASSAGES
from stm_training.pipeline.estimates import Stretch, disk_lines, measured_pace, stretches, time_lines
from stm_training.pipeline.experts import ExpertPlan, models_of, plan_experts
from stm_training.pipeline.members import PRETRAIN
from stm_training.pipeline.pairs import JOURNAL, PAIRS_INFO
from stm_training.pipeline.run import INDEX, REPORT, RETRIEVER, _Run
from stm_training.pipeline.stages import RECORD, Stage, StageRunner, stage_key
from stm_training.recipe import Recipe

State = Literal["done", "run", "open"]
_READ_BY_LATER_KEYS = ("merge", "prompt", "evaluate")  # the walk cannot go on without their output
_NOT_THERE = "not there yet"
_CHANGED = "its settings, its input files or its code have changed since"


@dataclass(frozen=True)
class PlannedStage:
    """One stage of the plan.

    Attributes:
        name: Of the stage, and of its folder.
        state: ``done``: skipped; ``run``: run; ``open``: decided once an earlier stage is there.
        why: In words.
        seconds: What it took when it was last run in this folder, with whatever settings.
    """

    name: str
    state: State
    why: str
    seconds: float | None = None

    def line(self) -> str:
        """For a person to read."""
        words = {"done": "done, skipped", "run": f"runs: {self.why}", "open": f"open: {self.why}"}
        return f"{self.name}: {words[self.state]}"


@dataclass(frozen=True)
class RunPlan:
    """What a run would do.

    Attributes:
        folder: The run folder.
        stages: In order.
        reads: What is read, line by line.
        takes: LLM requests, time and disk, line by line, with what each figure is based on.
    """

    folder: Path
    stages: tuple[PlannedStage, ...]
    reads: tuple[str, ...]
    takes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan for a person to read."""
        total = len(self.stages)
        lines = [f"Plan for {self.folder} (a dry run: nothing is written, sent or downloaded)", ""]
        lines += [f"[{number}/{total}] {stage.line()}" for number, stage in enumerate(self.stages, start=1)]
        lines += ["", "Reads:", *(f"  {line}" for line in self.reads)]
        return [*lines, "", "Takes:", *(f"  {line}" for line in self.takes)]


class _Halt(Exception):
    """The rest of the walk needs an output that is not there."""


@dataclass
class _Walker(StageRunner):
    """A runner that notes what it would do instead of doing it."""

    planned: list[PlannedStage] = field(default_factory=list)

    def run(
        self,
        name: str,
        work: Callable[[Path], None],
        *,
        settings: Any,
        inputs: Sequence[Stage | Path] = (),
        code: Sequence[str] = (),
    ) -> Stage:
        """Note the stage; ``work`` is not called."""
        key = stage_key(name, settings=settings, inputs=inputs, code=code)
        record = _record(self.folder / name)
        seconds = None if record is None else float(record.get("seconds", 0.0))
        done = record is not None and record.get("key") == key
        why = "" if done else self._why(record, inputs)
        self.planned.append(PlannedStage(name, "done" if done else "run", why, seconds))
        stage = Stage(name, self.folder / name, key, seconds or 0.0, skipped=done)
        self.finished.append(stage)
        if name == REPORT or (name in _READ_BY_LATER_KEYS and not done):
            raise _Halt
        return stage

    def _why(self, record: dict[str, Any] | None, inputs: Sequence[Stage | Path]) -> str:
        if record is None:
            return _NOT_THERE
        if record.get("version") != __version__:
            return f"what is there was made by version {record.get('version')}, this is {__version__}"
        again = [item.name for item in inputs if isinstance(item, Stage) and not item.skipped]
        again = [name for name in again if self._has_result(name)]
        return f"{', '.join(again)} runs again" if again else _CHANGED

    def _has_result(self, name: str) -> bool:
        """Whether a stage runs again (its key has changed), rather than for the first time (it has not)."""
        return _record(self.folder / name) is not None


def plan_run(recipe: Recipe, folder: Path, *, measure: bool = True) -> RunPlan:
    """Plan a run.

    Args:
        recipe: The recipe.
        folder: The run folder; need not exist.
        measure: Load the base and measure its pace on some of the documents (seconds), where that is needed
            for an estimate of the time.

    Returns:
        The plan.

    Raises:
        DataError: If the documents cannot be read.
        ModelFolderError: If the base is not here and must not be downloaded.
        ConfigError: For a recipe that the run would refuse.
    """
    with _offline():
        documents = _documents(recipe, folder)
        base = _local_base(recipe)
        stages, experts = _walk(recipe, folder, base)
        reads = _reads(recipe, folder, documents, stages)
        work = stretches(recipe, stages, experts, documents)
        pace = measured_pace(recipe, documents) if base and measure and _needs_pace(stages, work) else None
        takes = [
            *_llm_lines(recipe, folder, documents, stages),
            *time_lines({stage.name: stage.seconds for stage in stages}, work, pace),
            *disk_lines(
                recipe, folder, base, documents, experts, {one.name for one in stages if one.state != "done"}
            ),
        ]
    return RunPlan(folder, tuple(stages), tuple(reads), tuple(takes))


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub's client from the network: its calls then answer from the cache or fail."""
    from huggingface_hub import constants

    before, variable = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _local_base(recipe: Recipe) -> Path | None:
    """Where the base lies; None where the run would download it."""
    try:
        return resolve_source(recipe.base.source, revision=recipe.base.revision, local_files_only=True)
    except ModelFolderError:
        if recipe.base.download:
            return None
        raise


def _documents(recipe: Recipe, folder: Path) -> list[Passage]:
    """The passages, where the corpus was split already; else the documents as they are."""
    passages = folder / "corpus" / PASSAGES
    source = passages if passages.is_file() else Path(recipe.corpus)
    return read_corpus(source, "skip" if passages.is_file() else recipe.on_error, allow_title_only=True)


def _walk(
    recipe: Recipe, folder: Path, base: Path | None
) -> tuple[list[PlannedStage], list[ExpertPlan] | None]:
    names = _stage_names(recipe)
    if base is None:
        why = f"the base {recipe.base.source} is not on this machine, and would be downloaded first"
        return [PlannedStage(name, "open", why, _seconds(folder, name)) for name in names], None
    walker = _Walker(folder, len(names))
    run = _Run(recipe, folder, RunConsole(quiet=True), True)
    run.runner = walker
    experts: list[ExpertPlan] | None = None
    run._prepare()
    if walker.planned[-1].state == "done":
        experts = plan_experts(recipe, run._pairs(), run._leaked())
        _walk_on(run, walker, experts)
    return walker.planned + _rest(folder, names, walker.planned), experts


def _walk_on(run: _Run, walker: _Walker, experts: list[ExpertPlan]) -> None:
    """From the pairs on: as far as the outputs are there that later keys are made of."""
    recipe = run.recipe
    try:
        run._pretrain()
        trained = run._train(experts)
        choice = run._choose(trained)
        if recipe.prompts is not None and recipe.prompts.is_search:
            choice = run._search_prompt(choice, trained)
        run._evaluate(choice, trained)
        run._deliver(choice, trained, experts)
        if all(stage.state == "done" for stage in walker.planned):
            run._report(choice, experts, None)
    except _Halt:
        return


def _rest(folder: Path, names: Sequence[str], planned: Sequence[PlannedStage]) -> list[PlannedStage]:
    """The stages that the walk did not reach: what they depend on runs first."""
    rest = []
    again = [one for one in planned if one.state == "run"]
    keyed = any(one.why != _NOT_THERE for one in again)
    last = again[-1].name if again else "the stages before"
    for name in names[len(planned) :]:
        record = _record(folder / name)
        if record is None:
            state: State = "run"
            why = _NOT_THERE
        elif keyed or name == REPORT:
            state, why = "run", f"{again[0].name if again else last} runs again"
        else:
            state, why = "open", f"skipped if {last} comes out as before"
        rest.append(PlannedStage(name, state, why, _seconds(folder, name)))
    return rest


def _seconds(folder: Path, name: str) -> float | None:
    record = _record(folder / name)
    return None if record is None else float(record.get("seconds", 0.0))


def _stage_names(recipe: Recipe) -> list[str]:
    names = ["corpus", "pairs"] + ([PRETRAIN] if recipe.pretrain is not None else [])
    for name, section in recipe.experts.items():
        twin = [f"expert-{name}-random"] if models_of(section, recipe.train) == 2 else []
        names += [f"expert-{name}", *twin]
    names += ["expert-all_data"] if recipe.all_data else []
    names += ["merge"] + (["prompt"] if recipe.prompts is not None and recipe.prompts.is_search else [])
    return [*names, "evaluate", RETRIEVER, INDEX, "use", REPORT]


def _needs_pace(stages: Sequence[PlannedStage], work: Sequence[Stretch]) -> bool:
    known = {stage.name for stage in stages if stage.seconds is not None}
    return any(one.stage not in known for one in work)


def _reads(
    recipe: Recipe, folder: Path, documents: Sequence[Passage], stages: Sequence[PlannedStage]
) -> list[str]:
    corpus, pairs = folder / "corpus", folder / "pairs"
    if (corpus / INFO).is_file():
        info = json.loads((corpus / INFO).read_text(encoding="utf-8"))
        lines = [f"corpus {recipe.corpus}: {info['documents']} documents, {info['passages']} passages"]
    else:
        lines = [f"corpus {recipe.corpus}: {len(documents)} documents"]
    current = {stage.name for stage in stages if stage.state == "done"}
    if "corpus" in current:
        counts = {split: len(read_split(corpus, split)[0]) for split in SPLITS}
        labelled = ", ".join(f"{split} {count}" for split, count in counts.items() if count)
        lines.append(f"labelled queries: {labelled or 'none; development and test will be synthetic'}")
    elif recipe.queries is not None:
        lines.append(f"labelled queries: {recipe.queries.path} (counted once the corpus is read)")
    if "pairs" in current:
        kinds = json.loads((pairs / PAIRS_INFO).read_text(encoding="utf-8"))["kinds"]
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        lines.append(f"training pairs: {sum(kinds.values())} ({listed})")
    lines += [f"domain {name}: {one.path}" for name, one in recipe.domains.items()]
    lines += [f"guard {name}: {one.path}" for name, one in recipe.guards.items()]
    return [*lines, f"base: {recipe.base.source}"]


def _llm_lines(
    recipe: Recipe, folder: Path, documents: list[Passage], stages: Sequence[PlannedStage]
) -> list[str]:
    section = recipe.synthesize
    if section is None or section.llm is None:
        return ["LLM: none is asked"]
    if any(stage.name == "pairs" and stage.state == "done" for stage in stages):
        return ["LLM: nothing more to ask, the pairs are there"]
    from stm_training.data.sample import sample_passages
    from stm_training.synthesize.section import estimate_section

    chosen = documents
    if section.max_documents is not None:
        chosen = sample_passages(documents, section.max_documents, seed=recipe.seed)
    found, hosts = estimate_section(section, chosen, journal=folder / JOURNAL, seed=recipe.seed)
    return [f"LLM: {line}" if not number else line for number, line in enumerate(found.lines(hosts))]
