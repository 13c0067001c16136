"""The recipes of the papers: they say what the papers say, and run end to end on tiny stand-ins."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from stm_retriever.folder import read_manifest
from stm_training.data.reading import read_beir, read_pairs
from stm_training.recipe import load_recipe
from tests.tiny_models import build_tiny_model, build_tokenizer
from tests.tiny_run import stm_train, write_tiny_collection, write_tiny_recipe

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"
STM = ("qwen3-0.6b", "gemma-2b", "phi-4-mini")
RECIPES = (*STM, "refine", "bmretriever-410m")
SLICES = ("medical_synthetic", "medical_real", "search", "nlu")
TOPICS = ("asthma", "migraine", "gout", "eczema", "sciatica", "tinnitus", "anaemia", "angina")


@pytest.fixture
def paper_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Scripts of the folder, imported as they import each other."""
    monkeypatch.syspath_prepend(str(PAPER))
    yield importlib.import_module
    for name in ("figures", "tables", "data"):
        sys.modules.pop(name, None)


@pytest.fixture
def paper_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What STM_PAPER_DATA holds, tiny."""
    data = tmp_path / "data"
    collections = {
        "NFCorpus": ("train", "dev", "test"),
        "SciFact": ("train", "test"),
        "FiQA2018": ("dev", "test"),
    }
    collections["SQuAD"] = ("dev", "test")
    for place, (name, splits) in enumerate(collections.items()):
        folder = data / "collections" / name
        write_tiny_collection(folder, TOPICS[place : place + 4], splits={splits[0]: 0, splits[1]: 1})
        if len(splits) == 3:  # half of the second split becomes the third
            _halve(folder / "qrels" / "dev.tsv", folder / "qrels" / "test.tsv")
    for folder in ("pairs-10-random", "pairs-50-random", "pairs-gepa-medium"):
        (data / folder).mkdir()
        for slice_ in SLICES:
            _write_rows(data / folder / f"{slice_}.jsonl", _pairs(slice_))
    rows = [
        {"_id": f"p{n}", "title": f"About {topic} and more", "text": _prose(topic)}
        for n, topic in enumerate(TOPICS)
    ]
    _write_rows(data / "pretrain.jsonl", rows)
    monkeypatch.setenv("STM_PAPER_DATA", str(data))
    return data


def _halve(first: Path, second: Path) -> None:
    header, *lines = first.read_text("utf-8").splitlines()
    for path, part in ((first, lines[::2]), (second, lines[1::2])):
        path.write_text("\n".join([header, *part]) + "\n", encoding="utf-8")


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _pairs(slice_: str) -> list[dict[str, Any]]:
    return [
        {
            "query": f"what does a {slice_} nurse say of {topic}",
            "positive": f"The {slice_} nurse says that {topic} passes in a week or two.",
            "negatives": [f"The {slice_} doctor never speaks of {topic}."],
            "prompt": "Find what helps\nQuery: ",
        }
        for topic in TOPICS
    ]


def _prose(topic: str) -> str:
    return " ".join(f"Sentence {n} tells what a patient with {topic} did on day {n}." for n in range(12))


def stand_in(name: str, folder: Path) -> Path:
    """A tiny random model of the architecture that the recipe names."""
    if name == "qwen3-0.6b":
        return build_tiny_model("qwen3", folder)
    if name == "phi-4-mini":
        return build_tiny_model("phi3", folder, sliding_window=None)
    if name == "bmretriever-410m":
        return build_tiny_model("gpt_neox", folder)
    if name == "refine":
        return build_tiny_model("bert", folder, prompts={"query": "", "document": ""})
    return _tiny_gemma(folder)


def _tiny_gemma(folder: Path) -> Path:
    """The first Gemma, of which Gemma-2B is one; tests.tiny_models has the third."""
    import torch
    from transformers import GemmaConfig, GemmaModel

    build_tiny_model("gemma", folder)  # its tokenizer and its settings
    tokenizer = build_tokenizer("gemma")
    ids = {f"{role}_token_id": tokenizer.token_to_id(f"<{role}>") for role in ("bos", "eos", "pad")}
    config = GemmaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=160,
        **ids,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GemmaModel(config).save_pretrained(folder)
    return folder


def smaller(name: str, folder: Path) -> dict[str, Any]:
    """What a stand-in needs to be other than in the recipe: the model, sizes, and recorded completions."""
    raw = yaml.safe_load((PAPER / f"{name}.yaml").read_text("utf-8"))
    changes: dict[str, Any] = {
        "base": raw["base"] | {"source": str(stand_in(name, folder / "base")), "download": False},
        "train": raw["train"] | {"batch_size": 4, "max_length": 128, "steps": 2},
        "merge": raw["merge"] | {"trials": 3},
        "evaluate": {"bootstrap_samples": 200, "max_guard_loss": 100},
    }
    if "max_length" in raw["base"]:
        changes["base"]["max_length"] = 128
    if "pretrain" in raw:
        changes["pretrain"] = raw["pretrain"] | {"steps": 2, "batch_size": 4, "words_per_pair": 20}
    if raw["synthesize"] is not None:
        write_tiny_recipe(folder / "recorded")  # for its completions
        llm = {"replay": str(folder / "recorded" / "completions.jsonl")}
        changes["synthesize"] = raw["synthesize"] | {"llm": llm}
        changes["synthesize"].pop("tasks", None)  # invented pairs are not among the recordings
    if name == "bmretriever-410m":
        changes["filters"] = {"language": {"enabled": False}, "round_trip": {"retriever": "bm25", "k": 20}}
    if name == "refine":
        # a random model's similarities do not lie in BGE's band
        changes["mine"] = raw["mine"] | {"band": [-1.0, 1.0], "skip_top": 1}
    return changes


@pytest.mark.long
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_end_to_end_on_a_stand_in(tmp_path: Path, paper_data: Path, name: str) -> None:
    raw = yaml.safe_load((PAPER / f"{name}.yaml").read_text("utf-8"))
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(raw | smaller(name, tmp_path)), encoding="utf-8")
    done = stm_train("run", recipe, "--run-folder", tmp_path / "run", "--quiet")
    assert done.returncode in (0, 3), done.stderr
    manifest = read_manifest(tmp_path / "run" / "retriever")
    assert manifest.name == raw["name"]
    if "pooling" in raw["base"]:
        assert (manifest.pooling, manifest.attention) == ("last", raw["base"]["attention"])
        assert manifest.prompts.document == "Represent this passage\npassage: "
    for expert in raw["experts"]:
        record = json.loads((tmp_path / "run" / f"expert-{expert}" / "expert.json").read_text("utf-8"))
        assert record["trained_on"] > 0
    merges = json.loads((tmp_path / "run" / "merge" / "choice.json").read_text("utf-8"))
    assert merges["merge"] is None or merges["merge"]["method"] in raw["merge"]["methods"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_one_that_stm_train_reads(paper_data: Path, name: str) -> None:
    recipe = load_recipe(PAPER / f"{name}.yaml")
    assert recipe.name == f"paper-{name}"
    assert recipe.base.download, "one command is enough"
    assert Path(recipe.corpus).is_dir()
    for expert in recipe.experts.values():
        assert all(Path(path).is_file() for path in expert.pairs)


def test_the_stm_recipes_hold_what_the_paper_prints(paper_data: Path) -> None:
    printed = {"qwen3-0.6b": (5e-5, 256), "gemma-2b": (1e-5, 128), "phi-4-mini": (2e-5, 64)}
    for name, (rate, batch) in printed.items():
        recipe = load_recipe(PAPER / f"{name}.yaml")
        train = recipe.train
        assert (train.learning_rate, train.batch_size) == (rate, batch)
        assert (train.loss, train.lora_rank, train.lora_alpha, train.warmup_steps) == ("stm", 16, 32, 100)
        assert (train.epochs, train.steps, train.max_length) == (1, None, 512)
        assert (recipe.base.pooling, recipe.base.attention) == ("last", "bidirectional")
        assert tuple(recipe.experts) == SLICES
        assert recipe.merge.weights == tuple(n / 10 for n in range(10))
        assert recipe.merge.densities == tuple(n / 10 for n in range(1, 10))
        assert set(recipe.merge.methods) == {"linear", "ties"}


def test_whatever_a_paper_does_not_say_is_marked_as_our_choice() -> None:
    for name in RECIPES:
        lines = (PAPER / f"{name}.yaml").read_text("utf-8").splitlines()
        for key in ("seed:", "on_leak:", "  temperature:"):
            (line,) = [line for line in lines if line.startswith(key)]
            assert "our choice" in line, f"{name}: {line}"


def test_refine_and_bmretriever_hold_what_their_papers_print(paper_data: Path) -> None:
    refine = load_recipe(PAPER / "refine.yaml")
    assert refine.mine is not None
    assert (refine.mine.band, refine.mine.skip_top) == ((0.5, 0.7), 5)
    assert (refine.merge.weights, refine.merge.base_weights) == ((0.0, 0.35), (0.65,))
    bmretriever = load_recipe(PAPER / "bmretriever-410m.yaml")
    assert bmretriever.filters is not None
    assert bmretriever.filters.round_trip.k == 1
    assert bmretriever.mine is not None
    assert (bmretriever.mine.num_negatives, bmretriever.mine.max_rank) == (1, 100)
    assert bmretriever.pretrain is not None


def test_the_papers_means_are_those_of_its_tasks(paper_module: Callable[[str], ModuleType]) -> None:
    figures = paper_module("figures")
    for name, values in figures.PER_TASK.items():
        assert len(values) == 15, name
        tasks, printed = values[:12], values[12:]
        found = (sum(tasks[:7]) / 7, sum(tasks[7:]) / 5, sum(tasks) / 12)
        assert found == pytest.approx(printed, abs=0.0015), name


def test_the_tables_show_our_figures_and_say_where_there_are_none(
    tmp_path: Path, paper_module: Callable[[str], ModuleType]
) -> None:
    tables = paper_module("tables")
    names = paper_module("figures").TASKS
    (tmp_path / "qwen3-0.6b").mkdir()
    for system, score in (("shipped", 0.5), ("ties", 0.25)):
        tasks = {task: {"score": score} for task in names}
        (tmp_path / "qwen3-0.6b" / f"{system}.json").write_text(
            json.dumps({"runs/x": {"tasks": tasks}}), "utf-8"
        )
    lines = tables.render(tables.read_results(tmp_path)).splitlines()
    (ours,) = [line for line in lines if line.startswith("| **ours, Qwen3-0.6B** ")]
    assert ours.count(".500") == 15
    (missing,) = [line for line in lines if line.startswith("| **ours, Gemma-2B** ")]
    assert "not run here" in missing
    (ties,) = [line for line in lines if line.startswith("| STM, TIES ")]
    assert ".637 / .585 / .615 | .250 / .250 / .250 | .651" in ties
    assert ties.count("not run here") == 2
    assert (PAPER / "TABLES.md").read_text("utf-8") == tables.render(tables.read_results(PAPER / "results"))


def test_collections_of_the_hub_become_folders_with_all_their_splits(
    tmp_path: Path, paper_module: Callable[[str], ModuleType]
) -> None:
    data = paper_module("data")

    def load(task: str, split: str) -> dict[str, Any]:
        return {
            "corpus": [{"id": "d1", "title": "T", "text": "one"}, {"id": "d2", "text": "two"}],
            "queries": [{"id": f"{split}-q", "text": f"a {split} query of {task}"}],
            "relevant_docs": {f"{split}-q": {"d1": 1, "d2": 0}},
        }

    data.write_collection("NFCorpus", tmp_path, load)
    for split in ("train", "dev", "test"):
        read = read_beir(tmp_path / "collections" / "NFCorpus", split)
        assert read.queries == {f"{split}-q": f"a {split} query of NFCorpus"}
        assert read.qrels == {f"{split}-q": {"d1": 1, "d2": 0}}
        assert read.corpus["d1"].content == "T one"


def test_squad_is_halved_by_article(tmp_path: Path, paper_module: Callable[[str], ModuleType]) -> None:
    rows = [
        {
            "id": f"{title}{n}",
            "title": title,
            "context": f"Text {n // 2} of {title}.",
            "question": f"Q{n} {title}?",
        }
        for title in ("Ant_hill", "Bee", "Cat", "Dog")
        for n in range(4)
    ]
    paper_module("data").write_squad(tmp_path, rows)
    dev, test = (read_beir(tmp_path / "collections" / "SQuAD", split) for split in ("dev", "test"))
    assert len(dev.queries) + len(test.queries) == 16
    assert dev.queries
    assert test.queries
    answers = [{next(iter(grades)) for grades in one.qrels.values()} for one in (dev, test)]
    assert not answers[0] & answers[1], "dev and test share no paragraph"
    assert dev.corpus.keys() == test.corpus.keys()
    assert len(dev.corpus) == 8


def test_slices_get_prompts_and_lose_test_queries(
    tmp_path: Path, paper_module: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_collection(tmp_path / "collections" / "SciFact", ("gout",), splits={"test": None})
    for slice_ in SLICES:
        rows = [{"query": f"a {slice_} query {n}", "positive": "An answer."} for n in range(20)]
        _write_rows(
            tmp_path / f"{slice_}.jsonl",
            [*rows, {"query": "Which pills help with GOUT?", "positive": "None."}],
        )
    files = [f"{slice_}={tmp_path / slice_}.jsonl" for slice_ in SLICES]
    options = ["--out", str(tmp_path), "--name", "pairs-10-random", "--random-prompts", "10"]
    assert paper_module("data").main(["pairs", *options, *files]) == 0
    assert "nlu: 1 rows left out" in capsys.readouterr().out
    pairs = read_pairs(tmp_path / "pairs-10-random" / "nlu.jsonl")
    assert len(pairs) == 20
    prompts = {pair.prompt for pair in pairs}
    assert 1 < len(prompts) <= 10
    assert all(prompt is not None and prompt.endswith("\nQuery: ") for prompt in prompts)
    assert paper_module("data").main(["pairs", *options, *files[:3], "other=x"]) == 2
