"""The recipe: one YAML file that says everything a run does.

Every field is documented here once; ``stm-train init`` writes these descriptions as comments, and an
unknown key is an error. Defaults are the paper's (STM, arXiv 2602.04731) where it gives one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stm_retriever.errors import ConfigError, require
from stm_retriever.index.kinds import check_kind
from stm_training.filtering.settings import FilterSection
from stm_training.finetune.section import ExpertSection, TrainSection
from stm_training.merge.search.settings import SearchSection
from stm_training.mining.settings import MineSection
from stm_training.pretrain.settings import PretrainSection
from stm_training.prompting.settings import PromptSearchSection
from stm_training.recipe_variables import expand_variables
from stm_training.synthesize.settings import SynthesizeSection, with_absolute_paths

LABELLED = "labelled"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptSection(_Section):
    """Text put before every query and every document, at training and ever after."""

    query: str = Field("", description="Put before each query, verbatim.")
    document: str = Field("", description="Put before each document, verbatim.")


class BaseSection(_Section):
    """The model to start from."""

    source: str = Field(description="Folder or Hugging Face name of an encoder, a decoder or an embedder.")
    name: str | None = Field(None, description="How the model card calls it; null: the source.")
    revision: str | None = Field(None, description="Revision on the hub; a commit hash repeats exactly.")
    download: bool = Field(False, description="Allow a download from the hub when the cache has no copy.")
    pooling: Literal["auto", "cls", "mean", "last"] = Field(
        "auto",
        description="How token states become one vector; auto: the folder's own, else by architecture.",
    )
    attention: Literal["auto", "causal", "bidirectional"] = Field(
        "auto", description="Attention mask of a decoder. STM's paper trains decoders bidirectionally."
    )
    max_length: int | None = Field(None, ge=8, description="Tokens a text may have; null: the folder's own.")
    prompts: PromptSection | None = Field(None, description="null: the prompts stored in the folder, if any.")


class SplitSection(_Section):
    """How long documents become passages."""

    mode: Literal["auto", "always", "never"] = Field(
        "auto", description="auto: split all but BEIR folders, whose qrels name whole documents."
    )
    max_tokens: int | None = Field(None, ge=16, description="Tokens a passage may have; null: the model's.")
    overlap_tokens: int = Field(32, ge=0, description="Tokens that a passage repeats of the one before.")


class QueriesSection(_Section):
    """Labelled queries (BEIR layout), for training, for choosing (dev) and for the final figures (test)."""

    path: str = Field(description="BEIR folder with queries.jsonl and qrels/*.tsv.")
    train: str | None = Field(None, description="Name of the qrels file to train on; null: none.")
    dev: str | None = Field(
        None, description="qrels file to choose on; null: cut out of train by a seeded hash."
    )
    test: str | None = Field(
        None, description="qrels file that is scored once, at the end; never trained on."
    )
    dev_fraction: float = Field(0.2, gt=0, lt=1, description="Share of train that becomes dev.")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="Share of train that becomes test without one.")

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> Self:
        taken = (0 if self.dev else self.dev_fraction) + (0 if self.test else self.test_fraction)
        if self.train is not None and taken >= 1:
            message = f"dev_fraction and test_fraction take {taken:g} of train; leave some to train on"
            raise ValueError(message)
        return self


class GuardSection(_Section):
    """A collection of another domain that must not get worse; its queries are halved into dev and test."""

    path: str = Field(description="BEIR folder.")
    split: str = Field("test", description="Name of its qrels file.")
    exclude_self: bool = Field(False, description="Drop the document with the query's own id (ArguAna).")


class EvaluateSection(_Section):
    """How models are scored."""

    dev_documents: int | None = Field(
        None,
        ge=100,
        description="Rank dev and guards against judged documents plus a seeded sample up to this.",
    )
    dev_queries: int | None = Field(
        None, ge=10, description="Choose on a seeded sample of so many development queries per collection."
    )
    max_guard_loss: float = Field(
        0.5, ge=0, description="Largest loss on a guard, in nDCG@10 points (0-100)."
    )
    bootstrap_samples: int = Field(10_000, ge=100, description="Resamples of the paired bootstrap.")


class ExportSection(_Section):
    """What lies in the retriever folder."""

    variants: tuple[Literal["fp32", "fp16", "w8", "int8", "w4"], ...] = Field(
        ("fp32",),
        min_length=1,
        description="ONNX files to write; each beside fp32 must keep nDCG@10 on the development queries.",
    )


class IndexSection(_Section):
    """The index of the corpus."""

    kind: str = Field(
        "flat",
        description="flat (exact), hnsw, ivf, ivf-pq, sq8, rabitq, binary, factory:<FAISS string>, or "
        "auto: by size.",
    )

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        check_kind(kind)
        return kind


class Recipe(_Section):
    """Everything a run does."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="Names the run folder and the model.")
    seed: int = Field(0, ge=0, description="Seeds every sample, split and shuffle.")
    notice: str | None = Field(None, description="A line to print with the results.")
    base: BaseSection
    corpus: str = Field(description="BEIR folder, JSONL file, or folder of .txt, .md, .html files.")
    on_error: Literal["raise", "skip"] = Field("raise", description="skip: leave bad rows out and list them.")
    on_leak: Literal["raise", "drop"] = Field(
        "raise", description="A training query that is a dev, test or guard query: stop, or drop the pair."
    )
    allow_leaks: tuple[str, ...] = Field(
        (), description="Sets, by the name that the error gives, whose queries may be trained on."
    )
    split: SplitSection = SplitSection()
    queries: QueriesSection | None = Field(
        None, description="null: dev and test are synthetic queries from documents not trained on."
    )
    domains: dict[str, QueriesSection] = Field(
        default_factory=dict,
        description="Further collections of your domain by name, with documents of their own: train queries "
        "become pairs of kind NAME; dev and test weigh as much as those of queries.",
    )
    guards: dict[str, GuardSection] = Field(default_factory=dict, description="Name: collection.")
    synthesize: SynthesizeSection | None = Field(
        SynthesizeSection(), description="null: labelled pairs only."
    )
    filters: FilterSection | None = Field(None, description="null: only each query on its own is looked at.")
    mine: MineSection | None = Field(None, description="null: no hard negatives from the corpus.")
    prompts: PromptSearchSection | None = Field(None, description="null: the base's own query prompt stays.")
    pretrain: PretrainSection | None = Field(None, description="null: experts start from the base itself.")
    train: TrainSection = TrainSection()
    experts: dict[str, ExpertSection] = Field(
        default_factory=lambda: {
            "questions": ExpertSection(kinds=("question", "sentence")),
            "statements": ExpertSection(kinds=("claim", "title", "keywords")),
        },
        min_length=2,
        description="At least two experts by name.",
    )
    all_data: bool = Field(True, description="Also train one model on all pairs at once, as a baseline.")
    merge: SearchSection = SearchSection()
    ship_if: Literal["mean", "significant"] = Field(
        "mean", description="mean: better on dev; significant: the 95 % interval of the gain is above 0."
    )
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    index: IndexSection = IndexSection()
    licence: str | None = Field(None, description="Licence of the resulting model, for its card.")
    examples: tuple[str, ...] = Field((), description="Questions answered from the index at the end.")

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        labelled = [self.queries, *self.domains.values()]
        if self.synthesize is None and not any(one is not None and one.train for one in labelled):
            message = "there is nothing to train on: set synthesize, or queries with a train split"
            raise ValueError(message)
        for kind, names in (("expert", self.experts), ("domain", self.domains)):
            for name in names:
                if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
                    message = f"{kind} name {name!r} must be letters, digits, '.', '_' or '-'"
                    raise ValueError(message)
        for expert in self.experts.values():
            expert.training(
                self.train
            )  # an unknown key of an expert's own training is an error here, not later
        return self


def load_recipe(path: Path | str, *, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe, expand ``${NAME}`` and ``${NAME:-default}``, resolve its paths, and check every key.

    Relative paths are taken from the recipe's own folder.

    Args:
        path: YAML file.
        overrides: Top-level values that replace those of the file.

    Returns:
        The checked recipe, all paths absolute.

    Raises:
        ConfigError: If the file is missing, is no YAML, or has an unknown or unusable key.
    """
    path = Path(path)
    yaml = require("yaml", extra="train", purpose="reading recipes")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"There is no recipe at {path}. Write one with: stm-train init {path}"
        raise ConfigError(message) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"{path} is not valid YAML: {error}"
        raise ConfigError(message) from error
    if not isinstance(raw, dict):
        message = (
            f"{path} must hold a mapping of recipe keys, found {type(raw).__name__}. See: stm-train init"
        )
        raise ConfigError(message)
    return parse_recipe(raw | (overrides or {}), folder=path.resolve().parent, origin=str(path))


def parse_recipe(raw: dict[str, Any], *, folder: Path, origin: str) -> Recipe:
    """Check a recipe that is already a dictionary; see :func:`load_recipe`."""
    expanded = _expand(raw, folder)
    try:
        recipe = Recipe.model_validate(expanded)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from error
    return _with_absolute_paths(recipe, folder)


def _explain(error: ValidationError, origin: str) -> str:
    lines = [f"{origin}: {error.error_count()} problem(s) in the recipe:"]
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(top level)"
        plain = (
            isinstance(item["input"], str | int | float | list | tuple) and item["type"] != "extra_forbidden"
        )
        found = f" (found {item['input']!r:.120})" if plain else ""
        what = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
        lines.append(f"  {where}: {what}{found}")
    lines.append("All keys, with their meaning: stm-train init --show")
    return "\n".join(lines)


def _expand(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, folder) for item in value]
    if isinstance(value, str):
        return expand_variables(value, folder)
    return value


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def _with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    changes: dict[str, Any] = {"corpus": _absolute(recipe.corpus, folder)}
    if recipe.queries is not None:
        queries = {"path": _absolute(recipe.queries.path, folder)}
        changes["queries"] = recipe.queries.model_copy(update=queries)
    changes["domains"] = {
        name: domain.model_copy(update={"path": _absolute(domain.path, folder)})
        for name, domain in recipe.domains.items()
    }
    changes["guards"] = {
        name: guard.model_copy(update={"path": _absolute(guard.path, folder)})
        for name, guard in recipe.guards.items()
    }
    base = Path(recipe.base.source).expanduser()
    if recipe.base.source.startswith((".", "/", "~")) or (folder / base).exists():
        changes["base"] = recipe.base.model_copy(update={"source": _absolute(recipe.base.source, folder)})
    changes["experts"] = {
        name: expert.model_copy(update={"pairs": tuple(_absolute(path, folder) for path in expert.pairs)})
        for name, expert in recipe.experts.items()
    }
    for section, field in (("train", "anchor"), ("pretrain", "corpus"), ("merge", "storage")):
        found = getattr(recipe, section)
        if found is not None and getattr(found, field) is not None:
            changes[section] = found.model_copy(update={field: _absolute(getattr(found, field), folder)})
    if recipe.synthesize is not None:
        changes["synthesize"] = with_absolute_paths(recipe.synthesize, lambda path: _absolute(path, folder))
    if recipe.prompts is not None and recipe.prompts.candidates is not None:
        candidates = {"candidates": _absolute(recipe.prompts.candidates, folder)}
        changes["prompts"] = recipe.prompts.model_copy(update=candidates)
    return recipe.model_copy(update=changes)
