"""Stages ``expert-<name>``: one model per slice of the pairs, and one on all of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stm_retriever.errors import ConfigError
from stm_training.data.leakage import normalise
from stm_training.data.reading import read_corpus, read_pairs
from stm_training.data.records import Pair, Passage
from stm_training.finetune.history import DevScore
from stm_training.finetune.live import LiveFigures
from stm_training.finetune.memory_probe import PROBE
from stm_training.finetune.section import ExpertSection, TrainSection
from stm_training.finetune.settings import usual_save_steps
from stm_training.finetune.tensorboard import FOLDER as TENSORBOARD
from stm_training.finetune.tensorboard import TensorBoard
from stm_training.finetune.trainer import TrainResult, train_expert
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.members import ADAPTER, MODEL, START, starting_point
from stm_training.pipeline.selecting import Selected, selected_pairs
from stm_training.pipeline.settings import backbone_spec
from stm_training.pipeline.systems import ALL_DATA
from stm_training.pipeline.watching import Told, dev_score
from stm_training.recipe import Recipe

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone, BackboneSpec

RECORD = "expert.json"


@dataclass(frozen=True)
class ExpertPlan:
    """One model to train.

    Attributes:
        name: The expert's name, or ``all_data``.
        system: Its name in tables.
        pairs: What it is trained on.
        train: How.
        choice: Which of the pairs; ``random`` is the baseline of ``gradient``.
    """

    name: str
    system: str
    pairs: Sequence[Pair]
    train: TrainSection
    choice: Literal["all", "gradient", "random"] = "all"

    def settings(self) -> dict[str, Any]:
        """What decides the result beside the pairs of the run: which of them, and how."""
        return {
            "kinds": self.kinds(),
            "negatives": self.negatives(),
            "choice": self.choice,
            "train": self.train.model_dump(mode="json"),
        }

    def kinds(self) -> dict[str, int]:
        """Pairs by kind."""
        return dict(Counter(pair.kind for pair in self.pairs))

    def negatives(self) -> int:
        """Pairs with a hard negative."""
        return sum(1 for pair in self.pairs if pair.negatives)

    def card(self) -> dict[str, Any]:
        """The expert's entry on the model card."""
        return {
            "name": self.name,
            "kinds": self.kinds(),
            "pairs": len(self.pairs),
            "hard_negatives": self.negatives(),
            "written_by": sorted({pair.source for pair in self.pairs}),
            "steps": self.train.steps,
            "batch_size": self.train.batch_size,
        }


@dataclass(frozen=True)
class Watching:
    """What an expert's training looks at beside its pairs; each is made when it is first needed.

    Attributes:
        dev: The development problems.
        guards: The development halves of the guards.
        anchor_texts: General texts, for the term against forgetting.
    """

    dev: Callable[[], Sequence[Problem]]
    guards: Callable[[], Sequence[Problem]]
    anchor_texts: Callable[[], Sequence[str]]

    def score(self) -> Callable[[Backbone], DevScore]:
        """Scores a model in training."""
        dev, guards = list(self.dev()), list(self.guards())

        return lambda backbone: dev_score(backbone, dev, guards)


def plan_experts(recipe: Recipe, pairs: Sequence[Pair], leaked: Collection[str]) -> list[ExpertPlan]:
    """Divide the pairs among the experts.

    Args:
        recipe: The recipe.
        pairs: The run's training pairs.
        leaked: Normalised test queries that experts' own files must do without.

    ``all_data`` gets the same pairs as all experts together, and as many steps. An expert whose pairs are
    selected by gradient has a twin on a random choice of equal size.

    Raises:
        ConfigError: If an expert is left without pairs.
    """
    plans: list[ExpertPlan] = []
    for name, section in recipe.experts.items():
        train = _checkpointed(section.training(recipe.train))
        plan = ExpertPlan(name, f"expert:{name}", _slice(name, section, pairs, leaked), train)
        if train.select is None:
            plans.append(plan)
            continue
        twin = replace(plan, name=f"{name}-random", system=f"random:{name}", choice="random")
        plans += [replace(plan, choice="gradient"), twin]
    if recipe.all_data:
        experts = [plan for plan in plans if plan.choice != "random"]
        every = list(dict.fromkeys(pair for plan in experts for pair in plan.pairs))
        train = recipe.train.model_copy(update={"steps": _all_steps(experts), "select": None})
        plans.append(ExpertPlan(ALL_DATA, ALL_DATA, every, _checkpointed(train)))
    return plans


def models_of(section: ExpertSection, shared: TrainSection) -> int:
    """How many models an expert takes: two where its pairs are selected, for the random choice beside it."""
    return 1 if section.training(shared).select is None else 2


def _all_steps(experts: Sequence[ExpertPlan]) -> int | None:
    """As many steps as the experts take together; passes over the pairs where they count in passes."""
    steps = [plan.train.steps for plan in experts]
    return None if None in steps else sum(one or 0 for one in steps)


def _checkpointed(train: TrainSection) -> TrainSection:
    if train.save_steps is not None:
        return train
    return train.model_copy(update={"save_steps": usual_save_steps(train.steps or 0)})


def _slice(name: str, section: ExpertSection, pairs: Sequence[Pair], leaked: Collection[str]) -> list[Pair]:
    kinds = set(section.kinds)
    chosen = [pair for pair in pairs if pair.kind in kinds]
    if kinds and not chosen:
        found = ", ".join(sorted({pair.kind for pair in pairs})) or "none"
        message = (
            f"Expert {name!r} asks for pairs of the kinds {', '.join(section.kinds)}, but the run has "
            f"{found}. Change experts.{name}.kinds in the recipe, or synthesize such queries."
        )
        raise ConfigError(message)
    for path in section.pairs:
        chosen += [pair for pair in read_pairs(path) if normalise(pair.query) not in leaked]
    if not section.hard_negatives:
        chosen = [pair.with_negatives(()) for pair in chosen]
    if section.prompt is not None:
        chosen = [replace(pair, prompt=section.prompt) for pair in chosen]
    return chosen


def train_one(
    recipe: Recipe, plan: ExpertPlan, watching: Watching, scratch: Path, out: Path, console: RunConsole
) -> None:
    """Train one expert into ``out`` and record its curve in ``out/expert.json``.

    Checkpoints lie in ``scratch``, which outlives a kill; a restart goes on from the last one.
    """
    spec, start = _starting_spec(recipe, plan, out.parent)
    selected = selected_pairs(plan, spec, scratch / "probe", seed=recipe.seed, console=console)
    settings = plan.train.one_training()
    told = Told(selected.pairs, settings, console, rows=1)
    board = TensorBoard(scratch / TENSORBOARD)
    with console.bar(f"training {plan.name}", total=plan.train.steps) as advance, closing(board):
        result = train_expert(
            spec,
            selected.pairs,
            settings=settings,
            out_dir=scratch,
            seed=recipe.seed,
            callbacks=[told, board, LiveFigures(advance)],
            score=told.telling(watching.score()) if settings.eval_steps is not None else None,
            max_guard_loss=recipe.evaluate.max_guard_loss,
            anchor_texts=watching.anchor_texts() if settings.anchor_weight else (),
        )
        board.write(result.history)
    if result.model_dir is None:
        shutil.copytree(result.adapter_dir, out / ADAPTER)
    else:
        shutil.copytree(result.model_dir, out / MODEL)
    shutil.copytree(scratch / TENSORBOARD, out / TENSORBOARD)
    if (scratch / PROBE).is_file():
        shutil.copy(scratch / PROBE, out / PROBE)
    shutil.rmtree(scratch)
    record = plan.card() | {START: start} | _figures(result, selected)
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _starting_spec(recipe: Recipe, plan: ExpertPlan, run_folder: Path) -> tuple[BackboneSpec, str | None]:
    spec, start = starting_point(backbone_spec(recipe), recipe, run_folder)
    if plan.train.max_length is not None:
        spec = replace(spec, max_length=plan.train.max_length)
    return spec, start


def _figures(result: TrainResult, selected: Selected) -> dict[str, Any]:
    return {
        "losses": list(result.losses),
        "seconds": round(result.seconds, 2),
        "token_budget": result.token_budget,
        "best_step": result.best_step,
        "trained_on": len(selected.pairs),
        "selection": selected.report,
        "history": result.history,
    }


def anchor_texts(source: str | None, passages: Sequence[Passage]) -> list[str]:
    """The general texts that an expert shall not forget: a corpus of its own, or the run's documents."""
    chosen = passages if source is None else read_corpus(source, "skip", allow_title_only=True)
    return [passage.content for passage in chosen]


def trained_dimensions(plans: Sequence[ExpertPlan], members: Sequence[str]) -> list[int]:
    """Lengths to which vectors may be cut: those that every model in the result was trained for."""
    lengths = [set(plan.train.matryoshka) for plan in plans if plan.system in members]
    return sorted(set.intersection(*lengths), reverse=True) if lengths else []
