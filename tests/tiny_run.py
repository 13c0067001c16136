"""A recipe that runs in seconds: a tiny random encoder, a corpus of 40 passages, recorded completions."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.tiny_models import build_tiny_model

TOPICS = (
    "asthma",
    "migraine",
    "gout",
    "eczema",
    "anaemia",
    "angina",
    "epilepsy",
    "psoriasis",
    "cystitis",
    "copd",
)
ASPECTS = {
    "signs": "Typical signs of {0} are noticed first at night and are described here for {0} alone.",
    "tests": "The doctor confirms {0} by a test; without that test {0} is easily mistaken for another illness.",
    "care": "People with {0} are treated with a medicine chosen for {0}, and are seen again after six weeks.",
    "future": "Over the years {0} gets better in half of all people, and {0} seldom shortens life.",
}
QUESTIONS = {
    "signs": "what does {0} feel like at night",
    "tests": "how do they find out if i have {0}",
    "care": "which pills help with {0}",
    "future": "will my {0} go away with time",
}
STAGES = (
    "corpus",
    "pairs",
    "expert-questions",
    "expert-statements",
    "expert-all_data",
    "merge",
    "evaluate",
    "retriever",
    "index",
    "use",
    "report",
)


def write_tiny_recipe(folder: Path, *, topics: tuple[str, ...] = TOPICS, **changes: Any) -> Path:
    """Write base, corpus, queries, guard, recordings and recipe; top-level keys can be replaced.

    Returns:
        The recipe's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    build_tiny_model("bert", folder / "base", prompts={"query": "query: ", "document": "passage: "})
    write_tiny_collection(folder / "health", topics, splits={"dev": 0, "test": 1})
    write_tiny_collection(folder / "general", ("bread", "chess", "sailing", "roses"), splits={"test": None})
    _write_recordings(folder / "completions.jsonl")
    recipe: dict[str, Any] = {
        "name": "tiny",
        "base": {"source": "base"},
        "corpus": "health",
        "queries": {"path": "health", "dev": "dev", "test": "test"},
        "guards": {"general": {"path": "general"}},
        "synthesize": {
            "llm": {"replay": "completions.jsonl"},
            "kinds": ["question", "claim", "keywords"],
            "hard_negatives": True,
        },
        "train": {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "lora_rank": 4, "lora_alpha": 8},
        "experts": {"questions": {"kinds": ["question"]}, "statements": {"kinds": ["claim", "keywords"]}},
        "merge": {"trials": 3},
        "evaluate": {"bootstrap_samples": 200, "max_guard_loss": 100},
        "examples": ["what helps with gout", "is asthma worse at night", "how is angina found"],
    }
    recipe = {
        key: value for key, value in (recipe | changes).items() if value is not None or key == "synthesize"
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _text(topic: str, aspect: str) -> str:
    """A passage with words of its own, so that something can be extracted from it."""
    words = ("lamp", "river", "garden", "violin", "copper", "winter", "button", "saddle", "pepper", "marble")
    own = random.Random(f"{topic} {aspect}").sample(words, 3)
    detail = f"A nurse in the ward by the {own[0]} wrote this down with a {own[1]} beside the old {own[2]}."
    return f"{ASPECTS[aspect].format(topic)} {detail} Nothing more is known about it until the next report comes."


def write_tiny_collection(folder: Path, topics: tuple[str, ...], splits: dict[str, int | None]) -> None:
    passages = [(topic, aspect) for topic in topics for aspect in ASPECTS]
    _write_rows(
        folder / "corpus.jsonl",
        [
            {"_id": f"{topic}-{aspect}", "title": f"{topic}: {aspect}", "text": _text(topic, aspect)}
            for topic, aspect in passages
        ],
    )
    queries = [
        {"_id": f"q{number}", "text": QUESTIONS[aspect].format(topic)}
        for number, (topic, aspect) in enumerate(passages)
    ]
    _write_rows(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir(exist_ok=True)
    for split, parity in splits.items():
        lines = ["query-id\tcorpus-id\tscore"]
        for number, (topic, aspect) in enumerate(passages):
            if parity is None or number % 2 == parity:
                lines.append(f"q{number}\t{topic}-{aspect}\t1")
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_recordings(path: Path) -> None:
    rows = []
    for topic in TOPICS:
        for aspect in ASPECTS:
            queries = [
                {
                    "type": "question",
                    "text": f"Tell a worried patient about the {aspect} of {topic}, please?",
                },
                {"type": "claim", "text": f"Nobody should fear {topic} because of its {aspect}."},
                {"type": "keywords", "text": f"{topic} {aspect} advice"},
            ]
            text = f"Hay fever is another illness altogether; its {aspect} were looked at in a survey of meadows."
            negative = {"for": "question", "text": text}
            row = {
                "_id": f"{topic}-{aspect}",
                "queries": queries,
                "hard_negative": negative,
                "written_by": "a test",
            }
            rows.append(row)
    _write_rows(path, rows)


def stm_train(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user does."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, cwd=cwd, env=environment()
    )


def command(*arguments: str | Path) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "stm_training.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread, no hub: runs are the same wherever the tests run."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
        "PYTHONUNBUFFERED": "1",
    }
