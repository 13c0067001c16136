"""Who asks, and how hard the query is to match: drawn for each document by the seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.rows import BadRows, read_json_rows, read_lines, shown
from stm_training.synthesize.prompts import STYLE, Template

Difficulty = Literal["easy", "medium", "hard"]

_DIFFICULTIES: Mapping[str, str] = {
    "easy": "use the subject's usual terms, so that a keyword search would find the document",
    "medium": "say it in other words than the document, and name the subject in a way that many people would",
    "hard": "share no telling word with the document: describe the subject instead of naming it, and ask for "
    "something that follows from several of its sentences together",
}
NO_EXAMPLES = "(none)"
FEW_SHOT = "few_shot"


@dataclass(frozen=True)
class Style:
    """How queries should sound; every draw depends on seed, document and task alone.

    Attributes:
        personas: Who asks, for instance ``"a nurse on a night shift"``; one is drawn per document and task.
        difficulties: Likewise drawn; empty: not spoken of.
        sample_queries: The user's own queries, for kind ``few_shot``.
        shown: How many of them one prompt shows.
    """

    personas: tuple[str, ...] = ()
    difficulties: tuple[Difficulty, ...] = ()
    sample_queries: tuple[str, ...] = ()
    shown: int = 5

    def check(self, templates: Mapping[str, Template]) -> None:
        """Check that the templates of the asked kinds can carry this style.

        Args:
            templates: By kind of query.

        Raises:
            ConfigError: If something that is asked for would go nowhere.
        """
        unknown = sorted(set(self.difficulties) - set(get_args(Difficulty)))
        if unknown or self.shown < 1:
            message = (
                f"difficulty {unknown or list(self.difficulties)} with {self.shown} sample queries shown: "
                f"known are {', '.join(get_args(Difficulty))}, and at least 1 sample query is shown."
            )
            raise ConfigError(message)
        if FEW_SHOT in templates and not self.sample_queries:
            message = (
                "Kind few_shot writes in the style of your own queries, and none are given. Name a file with "
                "some (one per line): sample_queries in a recipe, --sample-queries on the command line."
            )
            raise ConfigError(message)
        deaf = [kind for kind, template in templates.items() if not template.has(STYLE)]
        if deaf and (self.personas or self.difficulties):
            message = (
                f"The prompt template query_{deaf[0]}.txt lacks {{{STYLE}}}, so personas and difficulty "
                "would go nowhere. Put it at the end of the list of demands, as in the original."
            )
            raise ConfigError(message)

    def lines(self, document_id: str, task: str, seed: int) -> str:
        """The demands for one prompt, each on a line of its own after what stands before; empty for none."""
        made = []
        if self.personas:
            persona = draw(self.personas, seed, document_id, task, "persona")
            made.append(f"- Write as this person would: {persona}.")
        if self.difficulties:
            difficulty = draw(self.difficulties, seed, document_id, task, "difficulty")
            made.append(f"- Difficulty {difficulty}: {_DIFFICULTIES[difficulty]}.")
        return "".join(f"\n{line}" for line in made)

    def examples(self, document_id: str, seed: int) -> str:
        """The sample queries for one document's prompt, one per line."""
        if not self.sample_queries:
            return NO_EXAMPLES
        count = min(self.shown, len(self.sample_queries))
        chosen = _random(seed, document_id, "examples").sample(self.sample_queries, count)
        return "\n".join(f"- {query}" for query in chosen)


PLAIN = Style()


def read_queries(path: Path | str) -> tuple[str, ...]:
    """Read queries: a text file with one per line, or JSONL rows with ``text`` or ``query``.

    Raises:
        DataError: For a broken row.
        ConfigError: If the file is missing or holds none.
    """
    file = Path(path)
    if not file.is_file():
        message = (
            f"There is no file of queries at {file}. It has one query per line, or JSONL rows with 'text'."
        )
        raise ConfigError(message)
    bad = BadRows("raise")
    if file.suffix.lower() == ".jsonl":
        rows = []
        for line, row in read_json_rows(file, bad):
            text = row.get("text", row.get("query"))
            if not isinstance(text, str):
                message = f"{file}:{line}: the row has no 'text' or 'query' ({shown(text)} found). Add it."
                raise DataError(message)
            rows.append(text)
    else:
        rows = [line for _, line in read_lines(file, bad)]
    queries = tuple(dict.fromkeys(" ".join(row.split()) for row in rows if row.strip()))
    if not queries:
        message = f"{file} holds no query. Put one on each line."
        raise ConfigError(message)
    return queries


def _random(*parts: object) -> random.Random:
    text = "\0".join(str(part) for part in parts)
    return random.Random(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())


def draw(choices: Sequence[str], *parts: object) -> str:
    """One of the choices, the same for the same parts in every run."""
    return _random(*parts).choice(choices)
