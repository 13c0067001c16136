"""Stage ``use``: the index as an application sees it, in processes of its own.

The frameworks' classes live in packages that training must not import; here they are programs to run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stm_retriever import Retriever
from stm_retriever.errors import ArtifactMismatchError
from stm_training.evaluate.metrics import mean
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.scoring import QueryMetrics, score_passages
from stm_training.pipeline.speed import measure_speed

logger = logging.getLogger(__name__)

# Framework: (module run as a program, what must be installed for it).
PROGRAMS = {
    "LangChain": ("langchain_stm", "langchain_core", "langchain"),
    "LlamaIndex": ("llama_index.retrievers.stm", "llama_index.core", "llama-index"),
}
USE, SPEED = "use.json", "speed.json"
_TOLERANCE = 1e-6
_DEPTH = 100


@dataclass(frozen=True)
class Answer:
    """One question's hits through one interface: (document id, similarity), best first."""

    interface: str
    question: str
    hits: tuple[tuple[str, float], ...]


def use_index(index: Path, questions: Sequence[str], test: Problem, out: Path) -> None:
    """Score the test queries through the index folder, and answer the examples; how fast its model is.

    Writes ``use.json``, and ``speed.json``, which is another one each time.
    """
    document = {
        "served": {metric: mean(values) for metric, values in score_served(index, test).items()},
        "answers": [asdict(answer) for answer in answer_examples(index, questions)] if questions else [],
    }
    (out / USE).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    documents = [passage.content for passage in test.passages]
    speed = measure_speed(_model_of(index), list(test.queries.values()), documents)
    (out / SPEED).write_text(speed.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_answers(folder: Path) -> list[Answer]:
    """The examples' answers that :func:`use_index` stored."""
    rows = json.loads((folder / USE).read_text(encoding="utf-8"))["answers"]
    return [
        Answer(row["interface"], row["question"], tuple((name, score) for name, score in row["hits"]))
        for row in rows
    ]


def _model_of(index: Path) -> Path:
    """The retriever folder that an index names."""
    with Retriever.open(index, read_only=True) as retriever:
        folder = retriever.embedder.path
    if folder is None:
        raise ArtifactMismatchError(
            f"{index} was built with a model that is no retriever folder, so it is not this run's. "
            "Remove it and start the run again."
        )
    return folder


def score_served(index: Path, problem: Problem) -> QueryMetrics:
    """Score what an application gets: the exported model's answers from the index folder."""
    with Retriever.open(index, read_only=True) as retriever:
        answers = retriever.search_batch(list(problem.queries.values()), k=min(_DEPTH, retriever.count()))
    run = {
        query_id: [(hit.id, hit.score) for hit in hits]
        for query_id, hits in zip(problem.queries, answers, strict=True)
    }
    return score_passages(run, problem)


def answer_examples(index: Path, questions: Sequence[str], *, k: int = 3) -> list[Answer]:
    """Answer questions through ``Retriever``, LangChain and LlamaIndex, and check that they agree.

    A framework that is not installed is left out, with a line in the log that says how to install it.

    Args:
        index: Index folder.
        questions: The questions.
        k: Hits per question.

    Returns:
        Answers by interface and question.

    Raises:
        ArtifactMismatchError: If a framework's class gives other hits or scores than ``Retriever``.
    """
    with Retriever.open(index, read_only=True) as retriever:
        own = [
            Answer(
                "Retriever", question, tuple((hit.id, hit.score) for hit in retriever.search(question, k=k))
            )
            for question in questions
        ]
    answers = list(own)
    for framework, (module, needed, extra) in PROGRAMS.items():
        if not _installed(needed):
            logger.warning("%s is not installed: pip install 'stm-retriever[%s]'", framework, extra)
            continue
        theirs = _run_program(framework, module, index, questions, k)
        _check_same(own, theirs)
        answers += theirs
    return answers


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _run_program(framework: str, module: str, index: Path, questions: Sequence[str], k: int) -> list[Answer]:
    command = [sys.executable, "-m", module, str(index), "-k", str(k), "--", *questions]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own modules
    if done.returncode != 0:
        message = (
            f"{framework}'s classes failed on {index} (exit status {done.returncode}):\n"
            f"{done.stderr[-2000:]}\nLook at the folder with: stm-train doctor {index}"
        )
        raise ArtifactMismatchError(message)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [
        Answer(framework, row["question"], tuple((name, score) for name, score in row["hits"]))
        for row in rows
    ]


def _check_same(own: Sequence[Answer], theirs: Sequence[Answer]) -> None:
    for ours, other in zip(own, theirs, strict=True):
        same_ids = [name for name, _ in ours.hits] == [name for name, _ in other.hits]
        worst = max((abs(a - b) for (_, a), (_, b) in zip(ours.hits, other.hits, strict=False)), default=0.0)
        if not same_ids or worst > _TOLERANCE:
            message = (
                f"{other.interface} answers {ours.question!r} with {other.hits}, Retriever with {ours.hits}: "
                "they read the same index, so one of them is wrong. Please report it with both versions."
            )
            raise ArtifactMismatchError(message)
