"""Names of parameters, whether a model was saved with a language-model head around it or without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# How the first module of a bare text model is called: embed_tokens, embeddings, embed_in, wte, ...
_EMBEDDINGS = ("embed", "wte.", "tok_embed", "word_embed")


@dataclass(frozen=True)
class Names:
    """The parameters of a model by the name that they have in the bare model.

    Attributes:
        stored: Bare name -> name in the file. A head's parameters keep their own name.
        heads: Bare names of what lies outside of the bare model.
    """

    stored: Mapping[str, str]
    heads: frozenset[str]


def bare_names(names: Iterable[str]) -> Names:
    """Take off what a head puts before the names of the model in it (``model.``, ``bert.``, ...).

    ``AutoModel`` and a PEFT adapter on it know a parameter as ``layers.0...``; the same model saved with its
    language-model head calls it ``model.layers.0...``.
    """
    listed = list(names)
    prefix = _prefix(listed)
    stored = {name.removeprefix(prefix): name for name in listed}
    heads = frozenset(name for name in listed if prefix and not name.startswith(prefix))
    return Names(stored, heads)


def find_target(name: str, known: Mapping[str, object]) -> str | None:
    """The bare name of an adapter's target, which may carry the head's prefix; ``None`` if there is none."""
    for candidate in (name, name.partition(".")[2]):
        if candidate in known:
            return candidate
    return None


def _prefix(names: Iterable[str]) -> str:
    for name in names:
        first, dot, rest = name.partition(".")
        if dot and not first.startswith("embed") and rest.startswith(_EMBEDDINGS):
            return first + dot
    return ""
