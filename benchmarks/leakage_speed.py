"""How long the search for leaks takes, and what it finds of what was planted.

    python benchmarks/leakage_speed.py --json benchmarks/results/leakage_speed.json
    python benchmarks/leakage_speed.py --texts 10000        a tenth, for a look

100,000 training and 100,000 test documents of 80 to 220 words, drawn from 50,000 words by the law of Zipf;
100,000 training and 100,000 test queries of 4 to 12 words. Among the test documents: 1 % copies, 2 % copies
with words replaced, put in and left out, whose Jaccard similarity of word 3-shingles is .8 or more, and 2 %
copies that are changed more, so that they lie below. Everything is counted: making shingles, hashing,
comparing, and the search for equal texts. Wall-clock seconds mean little on a busy machine; CPU seconds of
all threads stand beside them. With two idle cores the time lies between half the CPU seconds and all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stm_training.data.leakage import tokens
from stm_training.leakage.search import find_overlaps
from stm_training.leakage.sets import TextSet

_WORDS = 50_000
_EXACT, _NEAR, _FAR = 0.01, 0.02, 0.02
_THRESHOLD = 0.8


@dataclass(frozen=True)
class Planted:
    """Two collections, and the true similarity of the test documents that were copied and changed."""

    train: list[str]
    test: list[str]
    jaccard: dict[int, float]


class Writer:
    """Writes texts of random words.

    Args:
        seed: Of everything.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        letters = list("abcdefghijklmnopqrstuvwxyz")
        lengths = self.rng.integers(2, 11, _WORDS)
        self.words = np.array(
            [f"{''.join(self.rng.choice(letters, n))}{place % 7}" for place, n in enumerate(lengths)]
        )
        share = 1 / np.arange(1, _WORDS + 1)
        self.share = np.cumsum(share / share.sum())

    def draw(self, count: int) -> list[str]:
        """So many words."""
        found = np.searchsorted(self.share, self.rng.random(count))
        return list(self.words[np.minimum(found, _WORDS - 1)])

    def texts(self, count: int, shortest: int, longest: int) -> list[str]:
        """Texts of so many words."""
        sizes = self.rng.integers(shortest, longest + 1, count)
        words, ends = self.draw(int(sizes.sum())), np.cumsum(sizes)
        return [" ".join(words[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def changed(self, text: str, edits: int) -> str:
        """The text with so many words replaced, put in or left out."""
        words = text.split()
        for _ in range(edits):
            place = int(self.rng.integers(len(words)))
            words[place : place + int(self.rng.integers(0, 2))] = self.draw(int(self.rng.integers(0, 2)))
        return " ".join(words).capitalize() + "."


def plant(writer: Writer, count: int) -> Planted:
    """Make the documents."""
    train = writer.texts(count, 80, 220)
    test = writer.texts(count, 80, 220)
    copies = [int(count * share) for share in (_EXACT, _NEAR, _FAR)]
    sources = writer.rng.permutation(count)[: sum(copies)]
    places = writer.rng.permutation(count)[: sum(copies)]
    kinds = np.repeat(np.arange(3), copies)
    for source, place, kind in zip(sources, places, kinds, strict=True):
        size = train[source].count(" ") + 1
        edits = (0, int(size * writer.rng.uniform(0.005, 0.04)), int(size * writer.rng.uniform(0.06, 0.15)))[
            kind
        ]
        test[place] = train[source] if kind == 0 else writer.changed(train[source], max(1, edits))
    jaccard = {
        int(place): _jaccard(train[source], test[place])
        for source, place in zip(sources, places, strict=True)
    }
    return Planted(train, test, jaccard)


def measure(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a function returns, its wall-clock seconds, and its CPU seconds over all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def run(texts: int, seed: int) -> dict[str, Any]:
    """Measure documents, then queries."""
    writer = Writer(seed)
    planted = plant(writer, texts)
    queries = [writer.texts(texts, 4, 12) for _ in range(2)]
    report, documents = measure(
        lambda: find_overlaps([_set("train", [], planted.train)], [_set("test", [], planted.test)])
    )
    (overlap,) = [one for one in report.overlaps if one.train_role == one.test_role == "document"]
    found = {int(id_) for id_ in overlap.test_ids}
    true = {place for place, value in planted.jaccard.items() if value >= _THRESHOLD}
    documents |= {
        "planted": len(true),
        "recall": len(true & found) / len(true),
        "false_alarms": len(found - true),
        "false_alarms_per_10000": 1e4 * len(found - true) / (texts - len(true)),
    }
    _, asked = measure(
        lambda: find_overlaps(
            [_set("train", queries[0], [])], [_set("test", queries[1], [])], documents=False
        )
    )
    return {"documents": documents, "queries": asked}


def _set(name: str, queries: Sequence[str], documents: Sequence[str]) -> TextSet:
    by_id = [{str(place): text for place, text in enumerate(texts)} for texts in (queries, documents)]
    return TextSet(name, *by_id)


def _jaccard(left: str, right: str) -> float:
    ours, theirs = _shingles(left), _shingles(right)
    return len(ours & theirs) / len(ours | theirs)


def _shingles(text: str) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    return set(pairwise(pairwise(tokens(text))))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=100_000, help="on each side (default: 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()
    before = os.getloadavg()
    figures = {
        "texts": arguments.texts,
        **run(arguments.texts, arguments.seed),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "load_before": [round(one, 2) for one in before],
            "numpy": np.__version__,
        },
    }
    print(json.dumps(figures, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
