"""A stream of texts in windows: checked, each distinct text once, tokenised one window ahead."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from stm_retriever.errors import ConfigError
from stm_retriever.tokenization import Ids, TextTokenizer, check_texts
from stm_retriever.types import Role

logger = logging.getLogger("stm_retriever.embedder")


class Window(NamedTuple):
    """Some texts of a stream.

    Attributes:
        places: Per text, its row among the distinct ones.
        ids: Of each distinct text, cut to what the model reads.
        cut: Rows of the distinct texts that are longer than that.
    """

    places: list[int]
    ids: list[Ids]
    cut: frozenset[int]


def windows(texts: Iterable[str], role: Role, size: int) -> Iterator[list[str]]:
    """Cut a stream into lists of ``size`` texts, each text checked.

    Raises:
        ConfigError: If a bare string is passed, or ``size`` is below 1.
        DataError: If a text cannot be encoded; the message has its number in the stream.
    """
    if isinstance(texts, str):
        check_texts(texts, role)
    if size < 1:
        raise ConfigError(f"window={size}: a window holds at least one text. Pass 1 or more.")
    source = iter(texts)
    first = 0
    while window := list(islice(source, size)):
        yield check_texts(window, role, first=first)
        first += len(window)


def tokenised(pieces: Iterator[list[str]], tokenizer: TextTokenizer, role: Role) -> Iterator[Window]:
    """Tokenise windows, the next one in a thread of its own while the caller works on the one before.

    The stream itself is read in the caller's thread. What goes wrong with a window is raised after the one
    before it was handed over.
    """
    source = _and_its_error(pieces)
    first, following = next(source, None), next(source, None)
    if isinstance(first, Exception):
        raise first
    if first is None:
        return
    if following is None:
        yield _tokenise(first, tokenizer, role)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="stm-tokenise") as ahead:
        pending = ahead.submit(_tokenise, first, tokenizer, role)
        while isinstance(following, list):
            ready = pending.result()
            pending = ahead.submit(_tokenise, following, tokenizer, role)
            yield ready
            following = next(source, None)
        yield pending.result()
    if following is not None:
        raise following


def _and_its_error(pieces: Iterator[list[str]]) -> Iterator[list[str] | Exception]:
    """The pieces; what stops them comes as the last one, so that those before it are finished first."""
    try:
        yield from pieces
    except Exception as error:  # the caller's iterable may raise anything
        yield error


def _tokenise(texts: list[str], tokenizer: TextTokenizer, role: Role) -> Window:
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    ids, lengths = tokenizer.encode_counted(list(rows), role)
    places = [rows[text] for text in texts]
    cut = frozenset(row for row, length in enumerate(lengths) if length > tokenizer.max_length)
    return Window(places, ids, cut)


def warn_truncated(cut: int, total: int, role: Role, name: str, max_length: int) -> None:
    """Tell once per call how many texts were cut."""
    if cut:
        logger.warning(
            "%d of %d %s texts are longer than %s reads (%d tokens); what lies behind is not in their "
            "vectors. Split long documents, for instance with stm-train index --max-tokens.",
            cut,
            total,
            role,
            name,
            max_length,
        )
