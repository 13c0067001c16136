"""How fast mining is beside sentence_transformers.util.mine_hard_negatives, on the same vectors and rules.

    make bench-env
    .venv-bench/sentence-transformers/bin/python benchmarks/mining_speed.py --json mining_speed.json

5,000 queries x 20,000 documents of dimension 384, clustered by topic so that the margin has something to
reject. Encoding is no part of it: both sides get the very same vectors. Ranks 1 to 100, below 95 % of the
positive's score, the five nearest that remain. The peer runs twice: as `n-tuple` (one row per pair with its
negatives, what we return) and in its default form, `triplet`. All run in turn in one process, and every
result is compared: where two lists differ, the scores must be equal to rounding, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
from numpy.typing import NDArray

from stm_training.data.records import Pair, Passage
from stm_training.mining.mine import mine_negatives
from stm_training.mining.settings import MineSection

Floats = NDArray[np.float32]
Negatives = list[tuple[str, ...]]

MAX_RANK, NEGATIVES, POSITIVE_SHARE = 100, 5, 0.95
OURS, PEER, PEER_DEFAULT = "stm-retriever", "sentence-transformers, n-tuple", "sentence-transformers, triplet"
_ROUNDING = 1e-5
_PACKAGES = ("stm-retriever", "numpy", "torch", "sentence-transformers", "datasets", "transformers")


class Problem:
    """Queries, documents and their vectors.

    Args:
        queries: How many.
        documents: How many; each query's positive is one of them.
        dimension: Of the vectors.
        seed: Of everything.
    """

    def __init__(self, queries: int, documents: int, dimension: int, seed: int) -> None:
        rng = np.random.default_rng(seed)

        def directions(count: int) -> Floats:
            return _unit(rng.standard_normal((count, dimension), dtype=np.float32))

        topics, own = directions(max(1, documents // 20)), directions(documents)
        topic = rng.integers(0, len(topics), documents)
        self.document_vectors = _unit(0.8 * topics[topic] + 0.6 * own)
        self.positive = rng.permutation(documents)[:queries]
        # How much of its own document a query holds; with little, others of the topic come within the margin.
        share = rng.uniform(0.0, 0.4, (queries, 1)).astype(np.float32)
        self.query_vectors = _unit(
            0.85 * topics[topic[self.positive]] + share * own[self.positive] + 0.4 * directions(queries)
        )
        self.queries = [f"query {number}" for number in range(queries)]
        self.documents = [f"document {number}" for number in range(documents)]


def ours(problem: Problem) -> Callable[[], Negatives]:
    """Our side, ready to run."""
    pairs = [
        Pair(query, problem.documents[place], positive_id=str(place))
        for query, place in zip(problem.queries, problem.positive.tolist(), strict=True)
    ]
    passages = [Passage(str(place), text) for place, text in enumerate(problem.documents)]
    settings = MineSection(
        preset="margin",
        positive_share=POSITIVE_SHARE,
        max_rank=MAX_RANK,
        num_negatives=NEGATIVES,
        pool=None,
    )

    def run() -> Negatives:
        mined, _ = mine_negatives(
            pairs,
            passages,
            settings,
            encode_query=lambda texts: problem.query_vectors,
            encode_document=lambda texts: problem.document_vectors,
        )
        return [pair.negatives for pair in mined]

    return run


def peer(problem: Problem, output_format: str) -> Callable[[], Negatives]:
    """Their side, ready to run."""
    import torch
    from datasets import Dataset
    from sentence_transformers.util import cos_sim, mine_hard_negatives, pairwise_cos_sim

    class Precomputed:
        """What mine_hard_negatives asks of a model."""

        device = torch.device("cpu")
        similarity = staticmethod(cos_sim)
        similarity_pairwise = staticmethod(pairwise_cos_sim)

        def encode_query(self, texts: Sequence[str], **options: Any) -> Floats:
            return problem.query_vectors

        def encode_document(self, texts: Sequence[str], **options: Any) -> Floats:
            return problem.document_vectors

    positives = [problem.documents[place] for place in problem.positive.tolist()]
    dataset = Dataset.from_dict({"query": problem.queries, "positive": positives})

    def run() -> Any:
        with redirect_stdout(io.StringIO()):  # its statistics, as our side makes its report
            return mine_hard_negatives(
                dataset,
                Precomputed(),
                corpus=problem.documents,
                range_max=MAX_RANK,
                relative_margin=1 - POSITIVE_SHARE,
                num_negatives=NEGATIVES,
                sampling_strategy="top",
                output_format=output_format,
            )

    return run


def as_lists(mined: Any, problem: Problem) -> Negatives:
    """The peer's data set as one tuple of negatives per query; outside of the timing."""
    found: dict[str, list[str]] = {query: [] for query in problem.queries}
    names = [name for name in mined.column_names if name.startswith("negative")]
    for row in mined.to_list():
        found[row["query"]].extend(row[name] for name in names)
    return [tuple(texts) for texts in found.values()]


def differing(left: Negatives, right: Negatives, problem: Problem) -> tuple[int, list[int]]:
    """How many queries got other negatives, and which of them by more than the rounding of a score."""
    number = {text: place for place, text in enumerate(problem.documents)}
    places = [place for place, lists in enumerate(zip(left, right, strict=True)) if lists[0] != lists[1]]
    vectors = problem.document_vectors.astype(np.float64)

    def scores(place: int, texts: tuple[str, ...]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = vectors[[number[text] for text in texts]] @ problem.query_vectors[
            place
        ].astype(np.float64)
        return np.sort(found)

    wrong = [
        place
        for place in places
        if len(left[place]) != len(right[place])
        or np.abs(scores(place, left[place]) - scores(place, right[place])).max(initial=0) > _ROUNDING
    ]
    return len(places), wrong


def measure(problem: Problem, rounds: int) -> dict[str, Any]:
    """Run all sides in turn.

    Args:
        problem: What to mine.
        rounds: How often each runs, after one round that warms up and is compared.

    Returns:
        Seconds, medians and ratios.
    """
    sides: dict[str, Callable[[], Any]] = {
        OURS: ours(problem),
        PEER: peer(problem, "n-tuple"),
        PEER_DEFAULT: peer(problem, "triplet"),
    }
    first = {name: run() for name, run in sides.items()}
    mine = first[OURS]
    compared = {
        name: _compare(name, mine, as_lists(first[name], problem), problem) for name in sides if name != OURS
    }
    del first
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds):
        for name, run in sides.items():
            gc.collect()
            started = time.perf_counter()
            result = run()
            seconds[name].append(time.perf_counter() - started)
            del result
        print(
            f"round {round_ + 1}: "
            + ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items())
        )
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "seconds": seconds,
        "medians": medians,
        "times_faster": {name: medians[name] / medians[OURS] for name in sides if name != OURS},
        "negatives": sum(map(len, mine)),
        "queries_that_differ_by_rounding": compared,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--documents", type=int, default=20000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each side (default: 7)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    try:
        import datasets  # noqa: F401
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        print(
            f"{error.name} is not installed here. Run: make bench-env, then\n"
            "  .venv-bench/sentence-transformers/bin/python benchmarks/mining_speed.py",
            file=sys.stderr,
        )
        return 2
    problem = Problem(arguments.queries, arguments.documents, arguments.dimension, arguments.seed)
    figures = {
        "queries": arguments.queries,
        "documents": arguments.documents,
        "dimension": arguments.dimension,
        "settings": {"max_rank": MAX_RANK, "num_negatives": NEGATIVES, "positive_share": POSITIVE_SHARE},
        "environment": environment(),
        **measure(problem, arguments.rounds),
    }
    print(f"\n{arguments.queries} queries x {arguments.documents} documents, dimension {arguments.dimension}")
    for name, seconds in figures["medians"].items():
        print(f"  {name:<34} {seconds:6.3f} s (median of {arguments.rounds})")
    for name, ratio in figures["times_faster"].items():
        print(f"  {ratio:.2f} times as fast as {name}, same candidates")
    print(
        "  " + ", ".join(f"{name} {version}" for name, version in figures["environment"]["versions"].items())
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def environment() -> dict[str, Any]:
    """What a figure depends on beside the code."""
    import torch

    from stm_training.finetune.precision import multiplies_bf16

    return {
        "bfloat16_instructions": multiplies_bf16(torch.device("cpu")),  # our side uses them
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }


def _compare(name: str, mine: Negatives, theirs: Negatives, problem: Problem) -> int:
    differ, wrong = differing(mine, theirs, problem)
    if wrong:
        place = wrong[0]
        raise SystemExit(
            f"{name}: {len(wrong)} queries got other negatives than ours, for instance "
            f"{problem.queries[place]!r}: "
            f"{theirs[place]} against {mine[place]}. The times would not be comparable."
        )
    return differ


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype(np.float32)


if __name__ == "__main__":
    raise SystemExit(main())
