"""Cut long documents into pieces of a limited number of tokens, at borders that a reader would choose."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Passage
from stm_training.data.sentences import Unit, units_of

CountTokens = Callable[[list[str]], list[int]]

_BATCH = 256
_CHARACTERS_PER_TOKEN = 4  # only a first guess; the tokenizer decides
_SOFT_BORDERS = frozenset(",;:，；、：،؛")
_JOINER = "\u200d"
_SELECTORS = "\ufe0e\ufe0f"


def split_passages(
    passages: Iterable[Passage],
    *,
    count_tokens: CountTokens,
    max_tokens: int,
    overlap_tokens: int = 0,
) -> list[Passage]:
    """Cut what is too long, and leave everything else as it is.

    A piece carries its document's title and metadata, its ``text`` is exactly
    ``parent.text[piece.start:piece.end]``, and its id is ``<parent id>#<number>``. Sections (from a heading
    to the next) are kept whole where they fit, a heading stays with what follows it, and sentences are cut
    only where one alone is too long: then at white space or a comma, else between characters. Overlap
    repeats whole sentences of the same section; inside a cut sentence it repeats words. A title that takes
    more than half of the room is shortened in the pieces.

    Args:
        passages: Documents; a passage that already is a piece keeps its parent.
        count_tokens: Token counts of texts as the model will see them (prompt and special tokens counted).
        max_tokens: No piece's ``content`` (title and text) has more.
        overlap_tokens: At most so many tokens of a piece are repeated in the next.

    Returns:
        The passages and pieces, in order.

    Raises:
        ConfigError: If the limits leave no room.
        DataError: If a piece's id is taken by another passage.
    """
    if max_tokens < 1 or not 0 <= overlap_tokens < max_tokens:
        message = (
            f"max_tokens={max_tokens} and overlap_tokens={overlap_tokens}: the limit must be at least 1 and "
            "the overlap at least 0 and smaller than the limit."
        )
        raise ConfigError(message)
    splitter = _Splitter(count_tokens, max_tokens, overlap_tokens)
    result: list[Passage] = []
    batch: list[Passage] = []
    for passage in passages:
        batch.append(passage)
        if len(batch) == _BATCH:
            result.extend(splitter.split(batch))
            batch = []
    result.extend(splitter.split(batch))
    _check_ids(result)
    return result


def _check_ids(passages: Sequence[Passage]) -> None:
    seen: set[str] = set()
    for passage in passages:
        if passage.id in seen:
            message = (
                f"After splitting, the id {passage.id!r} is used twice, and search results could not be "
                "told apart. Rename the document whose id ends in '#<number>'."
            )
            raise DataError(message)
        seen.add(passage.id)


class _Splitter:
    def __init__(self, count_tokens: CountTokens, max_tokens: int, overlap_tokens: int) -> None:
        self._count = count_tokens
        self._max = max_tokens
        self._overlap = overlap_tokens
        one, two = count_tokens(["a", "a a"])
        self._fixed = max(0, 2 * one - two)  # special tokens and prompt, once per text

    def split(self, passages: list[Passage]) -> list[Passage]:
        if not passages:
            return []
        result: list[Passage] = []
        for passage, count in zip(passages, self._count([p.content for p in passages]), strict=True):
            if count <= self._max:
                result.append(passage)
            else:
                result.extend(self._pieces(passage))
        return result

    def _pieces(self, passage: Passage) -> list[Passage]:
        title = self._short_title(passage.title)
        spans = _Cutter(passage.text, title, self._count, self._max, self._overlap, self._fixed).spans()
        offset = passage.start or 0 if passage.parent_id is not None else 0
        return [
            replace(
                passage,
                id=f"{passage.id}#{number}",
                text=passage.text[start:end],
                title=title,
                parent_id=passage.parent_id or passage.id,
                start=offset + start,
                end=offset + end,
            )
            for number, (start, end) in enumerate(spans)
        ]

    def _short_title(self, title: str) -> str:
        room = max(0, self._max - self._fixed) // 2
        while title and self._count([title])[0] - self._fixed > room:
            words = title.split()
            keep = " ".join(words[: len(words) // 2]) if len(words) > 1 else title[: len(title) // 2]
            title = keep.strip()
        return title


class _Cutter:
    """Cuts one text; positions are character offsets into it."""

    def __init__(
        self, text: str, title: str, count: CountTokens, max_tokens: int, overlap: int, fixed: int
    ) -> None:
        self._text = text
        self._title = title
        self._count = count
        self._max = max_tokens
        self._overlap = overlap
        self._fixed = fixed
        head = count([title])[0] - fixed if title else 0
        self._room = max(1, max_tokens - fixed - head)  # an estimate; every piece is counted exactly
        self._units = units_of(text)
        texts = [text[unit.start : unit.end] for unit in self._units]
        self._costs = [max(1, n - fixed) for n in count(texts)] if texts else []

    def spans(self) -> list[tuple[int, int]]:
        """Start and end of each piece."""
        spans: list[tuple[int, int]] = []
        first = fresh = 0  # the piece's first unit, and the first one not in any piece yet
        while fresh < len(self._units):
            last = self._pack(first, fresh)
            while last < fresh and first < fresh:  # the overlap leaves no room for anything new
                first += 1
                last = self._pack(first, fresh)
            if last < fresh:  # one unit alone is too long
                spans.extend(self._cut(self._units[fresh]))
                first = fresh = fresh + 1
                continue
            spans.append((self._units[first].start, self._units[last].end))
            fresh = last + 1
            first = self._overlap_start(fresh, first)
        return spans

    def _pack(self, first: int, fresh: int) -> int:
        """Index of the last unit of the piece that begins with unit ``first``; ``fresh - 1`` if none fits."""
        last, used = first - 1, 0
        while last + 1 < len(self._units) and used + self._costs[last + 1] <= self._room:
            if last >= fresh and self._units[last + 1].heading and self._breaks_here(last + 1, used):
                break
            last += 1
            used += self._costs[last]
        last = max(last, fresh)  # estimates of single sentences may be too high: try at least one
        while last >= fresh and not self._fits(self._units[first].start, self._units[last].end):
            last -= 1
        while last > fresh and last + 1 < len(self._units) and self._units[last].heading:
            last -= 1  # a heading belongs to what follows
        return last

    def _breaks_here(self, heading: int, used: int) -> bool:
        if used * 4 < self._room:
            return False  # too little to stand alone
        end = heading
        while end < len(self._units) and self._units[end].heading:
            end += 1
        while end < len(self._units) and not self._units[end].heading:
            end += 1
        return used + sum(self._costs[heading:end]) > self._room

    def _overlap_start(self, fresh: int, first: int) -> int:
        start, used = fresh, 0
        while (
            start - 1 > first
            and fresh < len(self._units)
            and not self._units[fresh].heading
            and not self._units[start - 1].heading
            and used + self._costs[start - 1] <= self._overlap
        ):
            start -= 1
            used += self._costs[start]
        return start

    def _fits(self, start: int, end: int) -> bool:
        content = f"{self._title} {self._text[start:end]}".strip()
        return self._count([content])[0] <= self._max

    def _cut(self, unit: Unit) -> list[tuple[int, int]]:
        """Pieces of one sentence that is too long."""
        spans: list[tuple[int, int]] = []
        start = unit.start
        while start < unit.end:
            end = self._cut_end(start, unit.end)
            spans.append((start, end))
            if end >= unit.end:
                break
            start = self._skip_space(self._step_back(start, end, unit.end), unit.end)
        return spans

    def _cut_end(self, start: int, limit: int) -> int:
        longest = self._longest(start, limit)
        if longest >= limit:
            return limit
        for border in range(longest, start + (longest - start) // 2, -1):
            soft = self._text[border].isspace() or self._text[border - 1] in _SOFT_BORDERS
            if soft and (end := self._strip_end(start, border)) > start and self._fits(start, end):
                return end
        return self._strip_end(start, longest) or longest

    def _longest(self, start: int, limit: int) -> int:
        """The farthest end that still fits, by doubling and halving."""
        low, step = start, max(1, self._room * _CHARACTERS_PER_TOKEN)
        high = min(limit, start + step)
        while self._fits(start, high):
            low = high
            if low >= limit:
                return limit
            step *= 2
            high = min(limit, low + step)
        while high - low > 1:
            middle = (low + high) // 2
            if self._fits(start, middle):
                low = middle
            else:
                high = middle
        end = self._whole_character(start, low)
        if end <= start:
            message = (
                f"max_tokens={self._max} leaves no room for a single character: the title, the document "
                f"prompt and special tokens take the rest (about {self._max - self._room} tokens). Raise it."
            )
            raise ConfigError(message)
        return end

    def _whole_character(self, start: int, end: int) -> int:
        """Step back so that no accent or joined sign is torn from its letter, where that leaves anything."""
        back = end
        while back > start and back < len(self._text) and _continues(self._text, back):
            back -= 1
        return back if back > start and self._fits(start, back) else end

    def _step_back(self, start: int, end: int, limit: int) -> int:
        """Where the next piece of the same sentence begins: overlap in words, but always farther on."""
        if self._overlap == 0:
            return end
        best = end
        for position in range(end - 1, start, -1):
            if self._text[position].isspace():
                if self._tokens(position, end) > self._overlap:
                    break
                best = position
        if best == end:  # no spaces: by characters
            best = max(start + 1, end - (end - start) * self._overlap // self._room)
            while best < end and self._tokens(best, end) > self._overlap:
                best += 1
            best = self._whole_character(start, best)
        best = self._skip_space(best, end)
        # whatever the overlap costs, the next piece must reach beyond this one
        return best if best < end and self._cut_end(best, limit) > end else end

    def _tokens(self, start: int, end: int) -> int:
        piece = self._text[start:end].strip()
        return self._count([piece])[0] - self._fixed if piece else 0

    def _strip_end(self, start: int, end: int) -> int:
        return start + len(self._text[start:end].rstrip())

    def _skip_space(self, start: int, limit: int) -> int:
        while start < limit and self._text[start].isspace():
            start += 1
        return start


def _continues(text: str, position: int) -> bool:
    character = text[position]
    attached = unicodedata.combining(character) or character == _JOINER or character in _SELECTORS
    return bool(attached) or text[position - 1] == _JOINER
