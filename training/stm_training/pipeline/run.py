"""A whole run: the stages of a recipe in order, and what it tells at the end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stm_training.data.reading import read_corpus, read_pairs
from stm_training.data.records import Pair, Passage
from stm_training.llm.build import open_llm
from stm_training.pipeline import corpus as corpus_stage
from stm_training.pipeline import summary as summary_stage
from stm_training.pipeline.collections import HELD_OUT, HeldOut, Problem, guard_problem, read_split
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.corpus import PASSAGES
from stm_training.pipeline.delivery import Provenance, build_index, write_retriever
from stm_training.pipeline.domains import Domain, cut_problem, domain_problems, read_domains
from stm_training.pipeline.evaluation import evaluate_on_test
from stm_training.pipeline.experts import (
    ExpertPlan,
    Watching,
    anchor_texts,
    models_of,
    plan_experts,
    train_one,
    trained_dimensions,
)
from stm_training.pipeline.members import PRETRAIN
from stm_training.pipeline.merging import VECTORS, read_choice, search_and_choose
from stm_training.pipeline.pairs import JOURNAL, LEAKED_FORMS, PAIRS, PAIRS_INFO, make_pairs
from stm_training.pipeline.pretraining import pretrain
from stm_training.pipeline.prompting import choose_prompt, with_prompt
from stm_training.pipeline.settings import MODEL_CODE, base_name, base_path, load_base
from stm_training.pipeline.stages import Stage, StageRunner, content_digest, run_lock
from stm_training.pipeline.systems import Choice
from stm_training.pipeline.use import read_answers, use_index
from stm_training.recipe import Recipe
from stm_training.report.summary import ProvenOn

RETRIEVER, INDEX, REPORT = "retriever", "index", "report"
_PAIR_SETTINGS = (
    "synthesize",
    "queries",
    "domains",
    "evaluate",
    "filters",
    "mine",
    "prompts",
    "seed",
    "on_leak",
    "on_error",
    "allow_leaks",
    "guards",
)
_PAIR_CODE = (
    "stm_training.synthesize",
    "stm_training.llm",
    "stm_training.data",
    "stm_training.filtering",
    "stm_training.mining",
    "stm_training.prompting.generic",
    "stm_training.leakage",
    "stm_training.pipeline.leaks",
    "stm_training.pipeline.pairs",
    "stm_training.pipeline.domains",
    "stm_training.pipeline.refining",
)
_CHOICE_SETTINGS = ("merge", "evaluate", "ship_if", "guards", "domains", "seed")
_FIXED_STAGES = 8  # corpus, pairs, merge, evaluate, retriever, index, use, report


def run_recipe(recipe: Recipe, folder: Path, *, json_path: Path | None = None, quiet: bool = False) -> int:
    """Run a recipe, or the rest of it.

    Args:
        recipe: The recipe.
        folder: Run folder; stages that are finished there are not repeated.
        json_path: Where to write the figures, if anywhere.
        quiet: No progress bars.

    Returns:
        0, or 3 where the test queries contradict the choice.
    """
    _calm_libraries()
    console = RunConsole(quiet=quiet)
    with run_lock(folder):
        return _Run(recipe, folder, console, quiet).execute(json_path)


def _files_of(recipe: Recipe) -> list[Path]:
    """Files that the synthesis reads beside the corpus: their contents decide its output, not their names."""
    section = recipe.synthesize
    if section is None:
        return []
    recordings = [one.replay for one in section.llm.generators()] if section.llm is not None else []
    return [Path(name) for name in (*recordings, section.sample_queries, section.templates) if name]


def _calm_libraries() -> None:
    """Keep other packages' bars, advice and telemetry out of a run."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@dataclass
class _Run:
    recipe: Recipe
    folder: Path
    console: RunConsole
    quiet: bool
    stages: dict[str, Stage] = field(default_factory=dict)

    def execute(self, json_path: Path | None) -> int:
        recipe = self.recipe
        searches_prompt = recipe.prompts is not None and recipe.prompts.is_search
        stages = _FIXED_STAGES + int(searches_prompt) + int(recipe.pretrain is not None)
        stages += int(recipe.all_data) + sum(models_of(one, recipe.train) for one in recipe.experts.values())
        self.runner = StageRunner(self.folder, stages, self.console.announce)
        self._prepare()
        plans = plan_experts(recipe, self._pairs(), self._leaked())
        self._pretrain()
        experts = self._train(plans)
        choice = self._choose(experts)
        if searches_prompt:
            choice = self._search_prompt(choice, experts)
        self._evaluate(choice, experts)
        self._deliver(choice, experts, plans)
        return self._report(choice, plans, json_path)

    def _prepare(self) -> None:
        recipe = self.recipe
        described = recipe.model_dump(mode="json")
        weights = summary_stage.weights_digest(base_path(recipe))
        self.base_key = {"base": described["base"], "weights": weights}
        corpus_settings = {
            name: described[name] for name in ("corpus", "split", "queries", "seed", "on_error")
        }
        inputs = [Path(recipe.corpus)] + ([Path(recipe.queries.path)] if recipe.queries else [])

        def prepare(out: Path) -> None:
            base = load_base(recipe)
            corpus_stage.prepare_corpus(
                recipe,
                out,
                count_tokens=lambda texts: base.tokenizer.count(texts, "document"),
                max_length=base.max_length,
            )

        self._stage(
            "corpus",
            prepare,
            settings=corpus_settings | self.base_key,
            inputs=inputs,
            code=("stm_training.data", "stm_training.pipeline.corpus"),
        )
        self._stage(
            "pairs",
            lambda out: make_pairs(recipe, self._path("corpus"), self.folder / JOURNAL, out, self.console),
            settings={name: described[name] for name in _PAIR_SETTINGS} | self.base_key,
            inputs=[
                self.stages["corpus"],
                *_files_of(recipe),
                *self._domain_folders(),
                *(Path(guard.path) for guard in recipe.guards.values()),
                *(Path(path) for expert in recipe.experts.values() for path in expert.pairs),
            ],
            code=_PAIR_CODE,
        )

    def _pretrain(self) -> None:
        section = self.recipe.pretrain
        if section is None:
            return
        self._stage(
            PRETRAIN,
            lambda out: pretrain(
                self.recipe, section, self._held_out(), self.folder / "scratch" / PRETRAIN, out, self.console
            ),
            settings={
                "pretrain": section.model_dump(mode="json"),
                "train": self.recipe.train.model_dump(mode="json"),
                "seed": self.recipe.seed,
            }
            | self.base_key,
            inputs=[self.stages["pairs"], Path(section.corpus or self.recipe.corpus)],
            code=(
                "stm_training.finetune",
                "stm_training.pretrain",
                "stm_training.pipeline.pretraining",
                *MODEL_CODE,
            ),
        )

    def _held_out(self) -> list[str]:
        """Development and test queries of every collection."""
        return [
            text
            for split in HELD_OUT
            for problem in self._problems(split)
            for text in problem.queries.values()
        ]

    def _train(self, plans: list[ExpertPlan]) -> dict[str, Path]:
        experts: dict[str, Path] = {}
        for plan in plans:
            name = f"expert-{plan.name}"
            self._stage(
                name,
                lambda out, plan=plan: train_one(
                    self.recipe,
                    plan,
                    self._watching(plan),
                    self.folder / "scratch" / plan.name,
                    out,
                    self.console,
                ),
                settings=plan.settings() | self.base_key | {"seed": self.recipe.seed},
                inputs=self._expert_inputs(plan),
                code=(
                    "stm_training.finetune",
                    "stm_training.pipeline.experts",
                    "stm_training.pipeline.selecting",
                    *MODEL_CODE,
                ),
            )
            experts[plan.system] = self._path(name)
        return experts

    def _expert_inputs(self, plan: ExpertPlan) -> list[Stage | Path]:
        """The pairs, and whatever else this training looks at."""
        inputs: list[Stage | Path] = [self.stages["pairs"]]
        if PRETRAIN in self.stages:
            inputs.append(self.stages[PRETRAIN])
        section = self.recipe.experts.get(plan.name.removesuffix("-random"))
        sections = list(self.recipe.experts.values()) if section is None else [section]
        inputs += [Path(path) for section in sections for path in section.pairs]
        if plan.train.eval_steps is not None:
            inputs += [self.stages["corpus"], *self._domain_folders(), *self._guard_folders()]
        if plan.train.anchor_weight and plan.train.anchor is not None:
            inputs.append(Path(plan.train.anchor))
        return inputs

    def _watching(self, plan: ExpertPlan) -> Watching:
        return Watching(
            dev=lambda: self._problems("dev"),
            guards=lambda: self._guards("dev"),
            anchor_texts=lambda: anchor_texts(plan.train.anchor, self._passages()),
        )

    def _choose(self, experts: Mapping[str, Path]) -> Choice:
        recipe = self.recipe
        described = recipe.model_dump(mode="json")
        self._stage(
            "merge",
            lambda out: search_and_choose(
                recipe,
                experts,
                self._problems("dev"),
                self._guards("dev"),
                self._scored_by(),
                self.folder / "scratch" / "merge",
                out,
                self.console,
            ),
            settings={
                name: described[name]
                for name in ("merge", "evaluate", "ship_if", "guards", "domains", "seed")
            }
            | self.base_key,
            inputs=[
                self.stages["pairs"],
                *self._experts(),
                *self._domain_folders(),
                *self._guard_folders(),
            ],
            code=(
                "stm_training.merge",
                "stm_training.evaluate",
                "stm_training.finetune.encode",
                "stm_training.pipeline.merging",
                "stm_training.pipeline.systems",
                *MODEL_CODE,
            ),
        )
        return read_choice(self._path("merge"))

    def _search_prompt(self, choice: Choice, experts: Mapping[str, Path]) -> Choice:
        recipe = self.recipe
        described = recipe.model_dump(mode="json")
        test_queries = [text for one in self._problems("test") for text in one.queries.values()]
        candidates = [Path(recipe.prompts.candidates)] if recipe.prompts and recipe.prompts.candidates else []

        def work(out: Path) -> None:
            section = recipe.synthesize.llm if recipe.synthesize else None
            with open_llm(section if recipe.prompts and recipe.prompts.gepa else None, []) as opened:
                choose_prompt(
                    recipe,
                    choice,
                    experts,
                    self._problem("dev"),
                    test_queries,
                    self._path("merge") / VECTORS,
                    self.folder / "scratch" / "prompt",
                    out,
                    self.console,
                    opened.llm,
                )

        self._stage(
            "prompt",
            work,
            settings={name: described[name] for name in ("prompts", "seed")} | self.base_key,
            inputs=[self.stages["merge"], self.stages["pairs"], *self._experts(), *candidates],
            code=("stm_training.prompting", "stm_training.pipeline.prompting", *MODEL_CODE),
        )
        return with_prompt(choice, self._path("prompt"))

    def _prompt_stage(self) -> list[Stage]:
        return [self.stages["prompt"]] if "prompt" in self.stages else []

    def _deliver(self, choice: Choice, experts: Mapping[str, Path], plans: list[ExpertPlan]) -> None:
        recipe = self.recipe
        provenance = Provenance(
            experts=[plan.card() for plan in plans],
            data=summary_stage.data_card(recipe, self._path("pairs")),
            metrics=summary_stage.card_metrics(recipe, choice, self._path("evaluate"), self._proven_on()),
        )
        dimensions = trained_dimensions(plans, choice.members)
        self._stage(
            RETRIEVER,
            lambda out: write_retriever(
                recipe, choice, experts, provenance, self._problems("dev"), dimensions, out, self.console
            ),
            settings={"name": recipe.name, "licence": recipe.licence, "base": base_name(recipe)}
            | {"variants": recipe.export.variants, "dimensions": dimensions}
            | self.base_key,
            inputs=[self.stages["merge"], *self._prompt_stage(), self.stages["evaluate"], *self._experts()],
            code=("stm_training.export", "stm_training.merge", "stm_retriever", *MODEL_CODE),
        )
        self._stage(
            INDEX,
            lambda out: build_index(
                self._path(RETRIEVER), self._passages(), out, kind=recipe.index.kind, quiet=self.quiet
            ),
            settings={"kind": recipe.index.kind},
            inputs=[self.stages[RETRIEVER], self.stages["corpus"]],
            code=("stm_retriever",),
        )
        self._stage(
            "use",
            lambda out: use_index(self._path(INDEX), recipe.examples, self._problem("test"), out),
            settings={"examples": list(recipe.examples)},
            inputs=[self.stages[INDEX], self.stages["pairs"]],
            code=("stm_retriever", "stm_training.pipeline.use", "stm_training.pipeline.speed"),
        )

    def _evaluate(self, choice: Choice, experts: Mapping[str, Path]) -> None:
        recipe = self.recipe
        self._stage(
            "evaluate",
            lambda out: evaluate_on_test(
                recipe,
                choice,
                experts,
                self._problems("test"),
                self._guards("test"),
                self._path("merge") / VECTORS,
                out,
                self.console,
            ),
            settings={"guards": recipe.model_dump(mode="json")["guards"], "seed": recipe.seed},
            inputs=[
                self.stages["pairs"],
                self.stages["merge"],
                *self._prompt_stage(),
                *self._domain_folders(),
                *self._guard_folders(),
            ],
            code=("stm_training.evaluate", "stm_training.merge", "stm_training.pipeline.evaluation"),
        )

    def _report(self, choice: Choice, plans: list[ExpertPlan], json_path: Path | None) -> int:
        summary = summary_stage.summarise(
            self.recipe, choice, plans, self.stages, self.runner.seconds(), self._proven_on()
        )
        self._stage(
            REPORT,
            lambda out: summary_stage.write_outputs(summary, out),
            settings=json.loads(summary.model_dump_json()),
            inputs=[self.stages["evaluate"], self.stages["use"]],
            code=("stm_training.report",),
        )
        summary_stage.show(summary, self.console.console)
        self._show_examples()
        self._show_folders()
        if json_path is not None:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(json.dumps(summary.figures(), indent=2) + "\n", encoding="utf-8")
        return 3 if summary.contradiction else 0

    def _show_examples(self) -> None:
        answers = read_answers(self._path("use"))
        if not answers:
            return
        interfaces = list(dict.fromkeys(answer.interface for answer in answers))
        self.console.announce(f"\nExamples, the same hits and scores through {', '.join(interfaces)}:")
        for answer in answers:
            if answer.interface != interfaces[0]:
                continue
            self.console.announce(f"  {answer.question}")
            for name, score in answer.hits:
                self.console.announce(f"    {score:.4f}  {name}")

    def _show_folders(self) -> None:
        self.console.announce("\nWhere things are:")
        for label, name in (
            ("retriever folder", RETRIEVER),
            ("index folder", INDEX),
            ("report", "report/report.html"),
        ):
            self.console.announce(f"  {label:<17}{self.folder / name}")

    # What the stages left, read when it is needed.

    def _stage(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.stages[name] = self.runner.run(name, *args, **kwargs)

    def _path(self, name: str) -> Path:
        return self.stages[name].path

    def _experts(self) -> list[Stage]:
        return [stage for name, stage in self.stages.items() if name.startswith("expert-")]

    def _guard_folders(self) -> list[Path]:
        return [Path(guard.path) for guard in self.recipe.guards.values()]

    def _scored_by(self) -> str:
        """Hash of all that decides a merge's score on dev, so that a search goes on only where it may."""
        parts = [self.stages["pairs"].key, *(stage.key for stage in self._experts())]
        parts += [json.dumps(self.recipe.model_dump(mode="json")["evaluate"], sort_keys=True)]
        parts += [content_digest(path) for path in (*self._domain_folders(), *self._guard_folders())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _domain_folders(self) -> list[Path]:
        return [Path(domain.path) for domain in self.recipe.domains.values()]

    def _passages(self) -> list[Passage]:
        return read_corpus(self._path("corpus") / PASSAGES, allow_title_only=True)

    def _pairs(self) -> list[Pair]:
        return read_pairs(self._path("pairs") / PAIRS)

    def _leaked(self) -> list[str]:
        info = json.loads((self._path("pairs") / PAIRS_INFO).read_text(encoding="utf-8"))
        forms: list[str] = info[LEAKED_FORMS]
        return forms

    def _proven_on(self) -> ProvenOn:
        return summary_stage.proven_on(self._path("pairs"))

    def _problem(self, split: HeldOut) -> Problem:
        queries, qrels = read_split(self._path("pairs"), split)
        return cut_problem(self.recipe, Problem(split, self._passages(), queries, qrels), split)

    @cached_property
    def _domains(self) -> list[Domain]:
        return read_domains(self.recipe)

    def _problems(self, split: HeldOut) -> list[Problem]:
        return [self._problem(split), *domain_problems(self.recipe, self._domains, split)]

    def _guards(self, half: HeldOut) -> list[Problem]:
        limit = self.recipe.evaluate.dev_documents if half == "dev" else None
        return [
            guard_problem(name, guard, half, seed=self.recipe.seed, max_documents=limit)
            for name, guard in self.recipe.guards.items()
        ]
