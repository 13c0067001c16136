"""What can be a negative of what: the corpus' different texts, and those that each query must not get."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import DataError
from stm_training.data.leakage import normalise
from stm_training.data.records import Pair, Passage

# Why a text cannot be a negative of a query, in the order in which reasons are looked for.
POSITIVE, SAME_PARENT, QUERY_ITSELF, OWN_NEGATIVE = "positive", "same_parent", "query_itself", "own_negative"
EXCLUSIONS = (POSITIVE, SAME_PARENT, QUERY_ITSELF, OWN_NEGATIVE)


class Corpus:
    """The different texts of a corpus, one column each.

    Passages whose texts are the same but for case, punctuation and spacing share a column: with its twin
    left in the corpus, a positive would come back as its own hard negative.

    Attributes:
        texts: The first text of each column.
        passages: How many passages there were.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        if not passages:
            raise DataError("the corpus is empty, so there is nothing to mine negatives from.")
        self.passages = len(passages)
        self.texts: list[str] = []
        self._of_text: dict[str, int] = {}
        self._of_form: dict[str, int] = {}
        self._of_id: dict[str, int] = {}
        self._parents: list[str] = []  # of each column's first passage; its own id, if it is whole
        self._other_parents: dict[int, set[str]] = defaultdict(set)  # of its duplicates
        self._pieces: dict[str, list[int]] = defaultdict(list)
        for passage in passages:
            self._add(passage)

    def __len__(self) -> int:
        return len(self.texts)

    def column(self, text: str) -> int | None:
        """The column of a text, or of one that differs in case, punctuation or spacing only."""
        column = self._of_text.get(text)  # the usual case, and far cheaper than to normalise it
        return self._of_form.get(normalise(text)) if column is None else column

    def column_of_form(self, form: str) -> int | None:
        """The column of a text that is normalised already."""
        return self._of_form.get(form)

    def relevant(self, pair: Pair) -> set[int]:
        """Columns of a pair's positive: by its text, and by its id."""
        columns = {self.column(pair.positive)}
        if pair.positive_id is not None:
            columns.add(self._of_id.get(pair.positive_id))
        return {column for column in columns if column is not None}

    def relatives(self, pair: Pair, relevant: set[int]) -> set[int]:
        """Columns that were cut from the same document as a pair's positive, itself included.

        An id that names a whole document, as qrels do where the corpus holds its pieces, counts as well.
        """
        parents = {self._parents[column] for column in relevant}
        if pair.positive_id is not None:
            parents.add(pair.positive_id)
        for column in relevant & self._other_parents.keys():
            parents |= self._other_parents[column]
        documents = {self._of_id[parent] for parent in parents if parent in self._of_id}
        return documents.union(*(self._pieces[parent] for parent in parents if parent in self._pieces))

    def _add(self, passage: Passage) -> None:
        text = passage.content
        parent = passage.id if passage.parent_id is None else passage.parent_id
        column = self._of_form.setdefault(normalise(text), len(self.texts))
        self._of_text[text] = column
        self._of_id[passage.id] = column
        if column == len(self.texts):
            self.texts.append(text)
            self._parents.append(parent)
        else:
            self._other_parents[column].add(parent)
        if passage.parent_id is not None:
            self._pieces[parent].append(column)


@dataclass
class QueryGroup:
    """The pairs of one query, however often it is written.

    Attributes:
        text: The query as the first pair has it.
        pairs: Places of its pairs that want negatives.
        positives: Its different positives' texts: by column, or by normalised form if not in the corpus.
        excluded: Column -> why it is no negative.
    """

    text: str
    pairs: list[int] = field(default_factory=list)
    positives: dict[int | str, str] = field(default_factory=dict)
    excluded: dict[int, str] = field(default_factory=dict)


def group_by_query(
    pairs: Sequence[Pair], corpus: Corpus, *, places: Sequence[int], exclude_own_negatives: bool
) -> list[QueryGroup]:
    """Put the pairs of a query together, with the texts that are relevant to it by any of them.

    Args:
        pairs: All pairs: what one of them calls relevant is no negative of another one of the same query.
        corpus: The corpus.
        places: The pairs that negatives are wanted for.
        exclude_own_negatives: Also leave out the texts that a pair has as negatives already.

    Returns:
        The groups, in the order of their first pair in ``places``.
    """
    forms = [normalise(pair.query) for pair in pairs]
    groups: dict[str, QueryGroup] = {}
    for place in places:
        groups.setdefault(forms[place], QueryGroup(pairs[place].query)).pairs.append(place)
    for form, pair in zip(forms, pairs, strict=True):
        if form in groups:
            _exclude(groups[form], form, pair, corpus, exclude_own_negatives)
    return list(groups.values())


def exclusion_rows(groups: Sequence[QueryGroup]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All exclusions as (starts (n + 1,), columns (m,)): row i has columns[starts[i]:starts[i + 1]]."""
    starts = np.zeros(len(groups) + 1, dtype=np.int64)
    starts[1:] = np.cumsum([len(group.excluded) for group in groups])
    columns = [column for group in groups for column in group.excluded]
    return starts, np.array(columns, dtype=np.int64)


def count_exclusions(groups: Sequence[QueryGroup]) -> dict[str, int]:
    """How many (query, text) were left out for each reason."""
    counts = Counter(reason for group in groups for reason in group.excluded.values())
    return {reason: counts[reason] for reason in EXCLUSIONS}


def _exclude(group: QueryGroup, form: str, pair: Pair, corpus: Corpus, own_negatives: bool) -> None:
    found = corpus.column(pair.positive)
    group.positives.setdefault(normalise(pair.positive) if found is None else found, pair.positive)
    relevant = corpus.relevant(pair)
    for column in relevant:
        group.excluded[column] = POSITIVE  # stronger than whatever another pair found
    for column in corpus.relatives(pair, relevant):
        group.excluded.setdefault(column, SAME_PARENT)
    itself = corpus.column_of_form(form)
    if itself is not None:  # ArguAna: queries are documents
        group.excluded.setdefault(itself, QUERY_ITSELF)
    for text in pair.negatives if own_negatives else ():
        own = corpus.column(text)
        if own is not None:
            group.excluded.setdefault(own, OWN_NEGATIVE)
