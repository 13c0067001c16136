"""Queries taken from the passages themselves, where no language model is at hand; no language is assumed.

Three kinds, named ``extractive`` wherever their pairs go:

- ``title``: the title is the query, and the text without it the positive; a title that several documents
  carry ("Methods") is left out.
- ``keywords``: the passage's most telling phrases. Phrases are runs of words without frequent ones, as in
  RAKE (Rose et al. 2010, "Automatic keyword extraction from individual documents", section 1.2), with the
  corpus's own document frequencies instead of a stop list, and scored by inverse document frequency.
- ``sentence``: the inverse cloze task (Lee et al. 2019, arXiv 1906.00300, section 4): one sentence is the
  query and is taken *out* of the positive, so that word for word copying is not what is learnt. A passage
  that would not keep at least ``keep_words`` words and two thirds of its words gives none.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stm_training.data.leakage import normalise, tokens
from stm_training.data.records import Pair, Passage
from stm_training.data.sentences import units_of

EXTRACTIVE_KINDS = ("title", "keywords", "sentence")
SOURCE = "extractive"

_BREAK = re.compile(r"[^\w\s'’-]+|\n+|_+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_FREQUENT = 0.15
_FEW_PASSAGES = 20
_PHRASES = 3
_LONGEST_PHRASE = 4
_LONGEST_PHRASE_UNSPACED = 8
_KEYWORDS = 8
_SENTENCE_WORDS = (5, 50)


@dataclass(frozen=True)
class ExtractiveGenerator:
    """Makes pairs from the corpus alone.

    Attributes:
        frequency: In how many passages each word occurs.
        passages: How many passages were counted.
        shared_titles: Titles (normalised) that several documents carry.
        seed: Which sentence is taken out.
        keep_words: Fewest words that a passage keeps when a sentence is taken out.
    """

    frequency: Counter[str]
    passages: int
    shared_titles: frozenset[str] = frozenset()
    seed: int = 0
    keep_words: int = 20

    @classmethod
    def fit(cls, corpus: Iterable[Passage], *, seed: int = 0, keep_words: int = 20) -> ExtractiveGenerator:
        """Count words over a corpus."""
        frequency: Counter[str] = Counter()
        carriers: dict[str, set[str]] = {}
        count = 0
        for passage in corpus:
            frequency.update(set(tokens(passage.content)))
            carriers.setdefault(normalise(passage.title), set()).add(passage.parent_id or passage.id)
            count += 1
        shared = frozenset(title for title, documents in carriers.items() if len(documents) > 1)
        return cls(frequency, count, shared, seed, keep_words)

    def pair(self, passage: Passage, kind: str) -> Pair | None:
        """A passage's pair of one kind, or ``None`` if it yields none."""
        made = {"title": self._title, "keywords": self._keywords, "sentence": self._sentence}[kind](passage)
        if made is None:
            return None
        query, positive = made
        return Pair(
            query=query,
            positive=positive,
            query_id=f"{passage.id}/{kind}",
            positive_id=passage.id,
            source=SOURCE,
            kind=kind,
        )

    def _title(self, passage: Passage) -> tuple[str, str] | None:
        if not passage.title.strip() or not passage.text.strip():
            return None
        if normalise(passage.title) in self.shared_titles:
            return None
        return " ".join(passage.title.split()), passage.text

    def _keywords(self, passage: Passage) -> tuple[str, str] | None:
        scored: dict[str, tuple[float, str]] = {}
        for place, phrase in enumerate(self._phrases(passage.content)):
            words = tokens(phrase)
            key = " ".join(words)
            score = sum(self._rarity(word) for word in words) / math.sqrt(len(words))
            if key not in scored:
                scored[key] = (score - place * 1e-6, phrase)
        chosen: list[str] = []
        used: set[str] = set()
        for key, (_, phrase) in sorted(scored.items(), key=lambda item: (-item[1][0], item[0])):
            parts = set(key.split())
            if parts & used or (used and len(used) + len(parts) > _KEYWORDS):
                continue
            chosen.append(phrase)
            used |= parts
            if len(chosen) == _PHRASES:
                break
        return (" ".join(chosen), passage.content) if len(used) > 1 else None

    def _sentence(self, passage: Passage) -> tuple[str, str] | None:
        text = passage.text
        units = [unit for unit in units_of(text) if not unit.heading]
        total = len(tokens(text))
        usable = []
        for unit in units:
            size = len(tokens(text[unit.start : unit.end]))
            left = total - size
            enough = left >= self.keep_words and left * 3 >= total * 2
            if _SENTENCE_WORDS[0] <= size <= _SENTENCE_WORDS[1] and enough:
                usable.append(unit)
        if not usable:
            return None
        digest = hashlib.sha256(f"{self.seed}\0{passage.id}".encode("utf-8", "surrogatepass")).digest()
        unit = random.Random(digest).choice(usable)
        before, after = text[: unit.start].rstrip(), text[unit.end :].lstrip()
        rest = f"{before} {after}".strip()
        return " ".join(text[unit.start : unit.end].split()), f"{passage.title} {rest}".strip()

    def _phrases(self, text: str) -> Iterator[str]:
        for stretch in _BREAK.split(text):
            if _UNSPACED.search(stretch):
                yield from self._runs(tokens(stretch), "", _LONGEST_PHRASE_UNSPACED)
            else:
                yield from self._runs(stretch.split(), " ", _LONGEST_PHRASE)

    def _runs(self, words: list[str], glue: str, longest: int) -> Iterator[str]:
        for telling, run in itertools.groupby(words, key=self._is_telling):
            if telling:
                yield glue.join(list(run)[:longest])

    def _is_telling(self, word: str) -> bool:
        parts = tokens(word)
        if not parts or all(part.isdecimal() for part in parts):
            return False
        if self.passages >= _FEW_PASSAGES:
            return all(self.frequency[part] <= _FREQUENT * self.passages for part in parts)
        # too few passages to know what is frequent: long words are more often telling
        return len(word) > 3 or bool(_UNSPACED.search(word))

    def _rarity(self, word: str) -> float:
        return math.log((self.passages + 1) / (self.frequency[word] + 0.5))
