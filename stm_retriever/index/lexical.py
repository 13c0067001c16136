"""The lexical side: BM25 over FTS5's inverted index, which lies in the transaction of its documents.

SQLite's ``bm25()`` has k1 = 1.2 and b = 0.75 (Robertson and Zaragoza, "The Probabilistic Relevance
Framework", 2009, section 3.4). Words are cut by Unicode's rules, folded, and stemmed by Porter's algorithm.
On SciFact it ranks as well as bm25s (docs/index-folder.md).
"""

from __future__ import annotations

import json
import re

from stm_retriever.index.reading import Reader
from stm_retriever.index.vectors import Labels

# Words that stand in almost every English text and cost the most time; Lucene's list.
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these "
    "they this to was will with".split()
)
_MOST_WORDS = 300  # of one query: a whole document as a query would be slow, and FTS5 has limits of its own
_WORD = re.compile(r"\w+")
_SEARCH = "SELECT rowid, bm25(words) AS score FROM words WHERE words MATCH ?"
_AMONG = " AND +rowid IN (SELECT value FROM json_each(?))"  # the plus: match first, then look up
_BEST = " ORDER BY score, rowid LIMIT ?"


def lexical_top(reader: Reader, expression: str, k: int, allowed: Labels | None) -> list[tuple[int, float]]:
    """Rank the documents that share a word with a query.

    Args:
        reader: A connection to the store.
        expression: The query, as :func:`match_expression` writes it.
        k: How many, at most.
        allowed: Labels that count, or None for all.

    Returns:
        (label, score), best first, higher is better; equal ones in order of insertion.
    """
    if not expression:
        return []
    if allowed is None:
        rows = reader.connection.execute(_SEARCH + _BEST, (expression, k))
    else:
        labels = json.dumps(allowed.tolist())
        rows = reader.connection.execute(_SEARCH + _AMONG + _BEST, (expression, labels, k))
    return [(int(label), -float(score)) for label, score in rows]


def match_expression(query: str) -> str:
    """Write a query for FTS5: any of its words, each quoted, so that nothing in it is an operator."""
    words = list(dict.fromkeys(_WORD.findall(query.lower())))
    telling = [word for word in words if word not in STOP_WORDS] or words
    return " OR ".join(f'"{word}"' for word in telling[:_MOST_WORDS])
