"""Near-duplicate queries: an exact token-Jaccard join over an inverted index of rare words.

Two sets whose Jaccard similarity reaches t share at least one of the (|x| - ceil(t |x|) + 1) rarest words of
each (prefix filtering: Chaudhuri et al. 2006, "A primitive operator for similarity joins in data cleaning";
Bayardo et al. 2007, "Scaling up all pairs similarity search"). So only those words are indexed, and only
queries that share one are compared: nothing is missed, and few comparisons are made.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

from stm_training.data.leakage import normalise, tokens

_EPSILON = 1e-9  # 0.8 * 5 must ceil to 4, whatever the last bit says


@lru_cache(maxsize=4096)  # a query is looked for, then added
def features(text: str) -> frozenset[str]:
    """What two queries are compared by: words, or pairs of characters where words are not spaced.

    A text without any word (digits of other scripts, emoji) is its own feature.
    """
    words = tokens(text)
    single = sum(len(word) == 1 and not word.isascii() for word in words)
    if len(words) > 1 and 2 * single > len(words):
        return frozenset(left + right for left, right in pairwise(words))
    return frozenset(words) if words else frozenset({normalise(text)})


class NearDuplicates:
    """Queries seen so far, and the first of them that a new one repeats.

    Args:
        threshold: Jaccard similarity, above 0 up to 1, from which two queries say the same.
        frequency: How often each feature occurs; rare ones are compared first. Features that are missing
            count as the rarest. The result does not depend on it, only the speed does.
    """

    def __init__(self, threshold: float, frequency: Counter[str]) -> None:
        self._threshold = threshold
        self._frequency = frequency
        self._sets: list[frozenset[str]] = []
        self._texts: list[str] = []
        self._postings: dict[str, list[int]] = defaultdict(list)

    def add(self, text: str) -> None:
        """Remember a query."""
        words = features(text)
        place = len(self._sets)
        self._sets.append(words)
        self._texts.append(text)
        for word in self._prefix(words):
            self._postings[word].append(place)

    def find(self, text: str) -> str | None:
        """The earliest remembered query that is at least as similar as the threshold, or ``None``."""
        words = features(text)
        candidates = {place for word in self._prefix(words) for place in self._postings.get(word, ())}
        least = self._threshold * len(words) - _EPSILON
        for place in sorted(candidates):
            other = self._sets[place]
            if not least <= len(other) <= (len(words) + _EPSILON) / self._threshold:
                continue  # of so different sizes, even a subset is not alike enough
            shared = len(words & other)
            if shared >= self._threshold * (len(words) + len(other) - shared) - _EPSILON:
                return self._texts[place]
        return None

    def _prefix(self, words: frozenset[str]) -> list[str]:
        ordered = sorted(words, key=lambda word: (self._frequency[word], word))
        return ordered[: len(words) - math.ceil(self._threshold * len(words) - _EPSILON) + 1]


def feature_counts(texts: Iterable[str]) -> Counter[str]:
    """In how many texts each feature occurs."""
    return Counter(word for text in texts for word in features(text))
