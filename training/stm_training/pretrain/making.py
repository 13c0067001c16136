"""Pairs of one document: its title and body, passages side by side, random crops."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from stm_training.data.records import Passage
from stm_training.pretrain.settings import PairKind, PretrainSection
from stm_training.pretrain.spans import Span, body_of, first_words, passages_of, word_spans

Texts = tuple[str, str]  # query and positive

# Two crops of a book's ends have nothing in common, so both come from one stretch of a few crops' length;
# Contriever (arXiv 2112.09118, section 3.1) crops from stretches of 256 tokens.
_STRETCH = 4


def document_pairs(
    document: Passage, section: PretrainSection, rng: random.Random
) -> Iterator[tuple[PairKind, Texts]]:
    """Draw a document's pairs; the number grows with its body, the kinds are drawn by their weights.

    Args:
        document: A whole document.
        section: What to draw.
        rng: The draws.

    Yields:
        Kind, and (query, positive).
    """
    body = body_of(document.title, document.text)
    words = word_spans(body)
    makers: dict[PairKind, Callable[[], Iterator[Texts]]] = {
        "title": lambda: _title_pair(document.title, body, words, section),
        "neighbours": lambda: _neighbours(body, section, rng),
        "crops": lambda: _crops(body, words, section, rng),
    }
    weights = {kind: float(getattr(section.weights, kind)) for kind in makers}
    left = {kind: make() for kind, make in makers.items() if weights[kind] > 0}
    wanted = max(1, round(len(words) / section.words_per_pair))
    while left and wanted:
        kind = rng.choices(list(left), [weights[kind] for kind in left])[0]
        texts = next(left[kind], None)
        if texts is None:
            del left[kind]
            continue
        wanted -= 1
        yield kind, texts


def _title_pair(title: str, body: str, words: Sequence[Span], section: PretrainSection) -> Iterator[Texts]:
    fewest, most = section.body_words
    if len(word_spans(title)) >= section.title_words and len(words) >= fewest:
        yield " ".join(title.split()), first_words(body, words, most)


def _neighbours(body: str, section: PretrainSection, rng: random.Random) -> Iterator[Texts]:
    """Each two passages side by side once, in a random order; all of a document in one random direction.

    In both directions, a passage would be the query of both its neighbours.
    """
    passages = passages_of(body, *section.passage_words)
    places = list(range(len(passages) - 1))
    rng.shuffle(places)
    forward = rng.random() < 0.5
    for place in places:
        left, right = passages[place], passages[place + 1]
        yield (left, right) if forward else (right, left)


def _crops(body: str, words: Sequence[Span], section: PretrainSection, rng: random.Random) -> Iterator[Texts]:
    """Endlessly two stretches, drawn apart from each other, which may overlap; at most half the text each."""
    fewest, most = section.crop_words
    if len(words) < 2 * fewest:
        return
    room = min(len(words), _STRETCH * most)
    longest = max(fewest, min(most, room // 2))

    def crop(offset: int) -> tuple[int, int]:
        length = rng.randint(fewest, longest)
        first = offset + rng.randint(0, room - length)
        return words[first][0], words[first + length - 1][1]

    while True:
        offset = rng.randint(0, len(words) - room)
        query, positive = crop(offset), crop(offset)
        if query != positive:  # of two words or more there are always two different crops
            yield body[slice(*query)], body[slice(*positive)]
