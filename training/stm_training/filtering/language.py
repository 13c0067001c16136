"""Queries in another language than the document that they were written for.

Language models answer in the language of the prompt, or of their training, where the document has another.
py3langid 0.4 (BSD-3, one pure-Python wheel of 5 MB with its model, numpy only, no pickle, no randomness, 139
languages) decides; it was chosen over lingua-language-detector (96 MB installed), langdetect (unmaintained,
random unless seeded) and fastText models (native builds that lag behind Python).
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

from stm_retriever.errors import ConfigError, require
from stm_training.data.leakage import tokens
from stm_training.filtering.settings import LanguageFilterSection

_DOCUMENT_CHARACTERS = 2000  # enough to be sure of a language
_CACHED = 65536
_OWN_WORDS = 0.5

# Codes that name one written language, or ones that short texts cannot tell apart.
_ALIKE = (
    frozenset({"en", "pcm", "sco"}),
    frozenset({"zh", "wuu", "yue", "lzh", "gan"}),
    frozenset({"no", "nb", "nn", "da"}),
    frozenset({"sr", "hr", "bs", "sh"}),
    frozenset({"id", "ms", "jv", "su"}),
    frozenset({"es", "gl", "an", "ext", "ast"}),
    frozenset({"de", "lb", "bar", "nds"}),
    frozenset({"nl", "af", "fy", "li"}),
    frozenset({"cs", "sk"}),
    frozenset({"ca", "oc"}),
    frozenset({"it", "vec", "lmo", "scn"}),
    frozenset({"fr", "wa"}),
    frozenset({"pt", "gl"}),
)


class LanguageCheck:
    """Tells queries that are surely in another language than their document.

    A query is kept when it is short, when the detector is not sure of it or of the document, and when at
    least half of its words stand in the document: "Mycobacterium tuberculosis essential genes" reads like
    Latin, but is in the language of the English abstract that uses these words.

    Args:
        settings: Thresholds.

    Raises:
        MissingExtraError: If py3langid is not installed.
        ConfigError: If it is older than 0.4, whose confidences are calibrated for short texts.
    """

    def __init__(self, settings: LanguageFilterSection) -> None:
        module = require("py3langid.langid", extra="train", purpose="the language filter")
        self._settings = settings
        self._classify = _model(module).classify
        self._language_of = lru_cache(maxsize=_CACHED)(self._sure_language)

    def problem(self, query: str, document: str) -> tuple[str, str] | None:
        """(query's language, document's language) as ISO codes where they differ surely, else ``None``."""
        if len(query.strip()) < self._settings.shortest:
            return None
        spoken = self._sure_language(query)
        written = self._language_of(document[:_DOCUMENT_CHARACTERS])
        if spoken is None or written is None or _same(spoken, written) or _shares_words(query, document):
            return None
        return spoken, written

    def _sure_language(self, text: str) -> str | None:
        language, confidence = self._classify(text)
        return language if confidence >= self._settings.confidence and language != "zxx" else None


@lru_cache(maxsize=1)
def _model(module: ModuleType) -> Any:
    """The detector with its own model, read once (half a second)."""
    try:
        return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)
    except AttributeError as error:
        message = (
            "The installed py3langid is older than 0.4, whose confidences the language filter relies on. "
            "Run: pip install 'py3langid>=0.4'; or switch the filter off (language: enabled: false)."
        )
        raise ConfigError(message) from error


def _same(left: str, right: str) -> bool:
    return left == right or any(left in group and right in group for group in _ALIKE)


def _shares_words(query: str, document: str) -> bool:
    """At least half of the query's words stand in the document; single characters are no words here."""
    words = {word for word in tokens(query) if len(word) > 1}
    return bool(words) and len(words & set(tokens(document))) >= _OWN_WORDS * len(words)
