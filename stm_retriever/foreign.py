"""Embedders that are not ours: what is asked of one, and how it is known again.

A retriever folder has a fingerprint. An object of somebody else's has none, so it is known by a name that the
application gives it, or else by its class and by where it puts two probe texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from stm_retriever.embedder import Embedder, Progress, Vectors
from stm_retriever.errors import ConfigError, DataError
from stm_retriever.tokenization import check_texts
from stm_retriever.types import Role

_PROBES: dict[Role, str] = {
    "query": "What colour is the sky on a clear day?",
    "document": "On a clear day the sky is blue, for air scatters short waves of light the most.",
}
_BITS = 256
# A changed rounding (another processor, a service that answers in half precision) turns a vector by far less
# than a tenth of a degree and flips no bit as a rule; another model flips about half of them.
_FLIPPED = 4
_WINDOW = 1024


class Encoder(Protocol):
    """What an embedder must be able to do. sentence-transformers >= 5 and our own are such objects."""

    def encode_query(self, texts: list[str], /) -> Any:
        """Return (n, dimension) numbers for n queries."""
        ...

    def encode_document(self, texts: list[str], /) -> Any:
        """Return (n, dimension) numbers for n documents."""
        ...


class ForeignEmbedder:
    """Somebody else's encoder, with what an index wants to know of it.

    It is asked for two probe vectors when this is made, also with ``embedder_id``, which tells the dimension.
    Vectors are stored at length 1. May be used from several threads at once if the encoder may.
    """

    variant: str = ""
    precision: Literal["float32"] = "float32"
    path: None = None
    hub_name: None = None
    revision: None = None

    def __init__(
        self, encoder: Encoder, *, embedder_id: str | None = None, class_name: str | None = None
    ) -> None:
        """Wrap an encoder.

        Args:
            encoder: Has ``encode_query`` and ``encode_document``.
            embedder_id: The application's name for model, version and prompts together; whoever gives the
                same name promises the same vectors.
            class_name: What to call its class; None takes the encoder's own.

        Raises:
            ConfigError: If it lacks a method, ``embedder_id`` is empty, or it gives no matrix of numbers.
            DataError: If a probe's vector is zero or not finite.
        """
        _check_encoder(encoder)
        if embedder_id is not None and not embedder_id.strip():
            raise ConfigError(
                "embedder_id is empty and would fit every model. Name the model, for instance 'bge-m3@1'."
            )
        self._encoder = encoder
        self._id = embedder_id
        self._class = class_name or class_of(encoder)
        self._dimension: int | None = None
        probes = [_unit(self._encode([text], role)[0], role) for role, text in _PROBES.items()]
        if embedder_id is None:
            hashes = ":".join(simhash(probe).hex() for probe in probes)
            self._fingerprint = f"class:{self._class}:{hashes}"
        else:
            self._fingerprint = f"id:{embedder_id}"

    @property
    def encoder(self) -> Encoder:
        """The wrapped object."""
        return self._encoder

    @property
    def name(self) -> str:
        """The id that it was given, or its class."""
        return self._id or self._class

    @property
    def fingerprint(self) -> str:
        """What it is known by: ``id:NAME``, or ``class:NAME:HASH:HASH`` of two probe vectors."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._dimension or 0

    def encode_query(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        """Encode queries.

        Returns:
            float32 (n, dimension), in the order of the texts.

        Raises:
            ConfigError: If a bare string is passed, or the encoder gives no matrix of that shape.
            DataError: If a text is empty, no string, or holds a lone surrogate.
        """
        return self._windows(texts, "query", show_progress)

    def encode_document(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        """Encode documents; as :meth:`encode_query`."""
        return self._windows(texts, "document", show_progress)

    def _windows(self, texts: Sequence[str], role: Role, show_progress: Progress) -> Vectors:
        checked = check_texts(texts, role)
        vectors = np.empty((len(checked), self.dimension), dtype=np.float32)
        for start in range(0, len(checked), _WINDOW):
            part = checked[start : start + _WINDOW]
            vectors[start : start + len(part)] = self._encode(part, role)
            if callable(show_progress):
                show_progress(start + len(part), len(checked))
        return vectors

    def _encode(self, texts: list[str], role: Role) -> Vectors:
        encode = self._encoder.encode_query if role == "query" else self._encoder.encode_document
        given = encode(texts)
        try:
            vectors = np.asarray(given, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{self._class}.encode_{role} gave a {type(given).__name__} that is no matrix of numbers "
                f"({error}). It must return one vector per text, all of one length."
            ) from error
        wanted = (len(texts), self._dimension or (vectors.shape[-1] if vectors.ndim else 0))
        if vectors.shape != wanted or wanted[1] < 1:
            raise ConfigError(
                f"{self._class}.encode_{role} gave an array of shape {vectors.shape} for {len(texts)} texts; "
                f"needed is {wanted}. It must return one vector per text, of one length for both roles."
            )
        self._dimension = wanted[1]
        return vectors

    def __repr__(self) -> str:
        return f"ForeignEmbedder(name={self.name!r}, dimension={self.dimension})"


AnyEmbedder: TypeAlias = Embedder | ForeignEmbedder


def as_embedder(encoder: Embedder | ForeignEmbedder | Encoder, embedder_id: str | None = None) -> AnyEmbedder:
    """Return what a retriever can work with, wrapping what is not ours.

    Raises:
        ConfigError: If ``embedder_id`` is given for one of ours, which has a fingerprint; if vectors are not
            float32; or as :class:`ForeignEmbedder`.
    """
    if not isinstance(encoder, (Embedder, ForeignEmbedder)):
        return ForeignEmbedder(encoder, embedder_id=embedder_id)
    if embedder_id is not None:
        raise ConfigError(
            f"embedder_id={embedder_id!r} was given for {encoder!r}, which is known by its fingerprint. "
            "Leave embedder_id out."
        )
    precision = getattr(encoder, "precision", "float32")
    if precision != "float32":
        raise ConfigError(
            f"The embedder {encoder.name!r} gives {precision} vectors, but an index scores with float32 and "
            "makes smaller copies itself. Load it with precision='float32', and pass kind='sq8' or "
            "kind='binary' for a smaller index."
        )
    return encoder


def same_embedder(one: str, other: str) -> bool:
    """Tell whether two fingerprints are of one embedder: equal, or of one class with near-equal probes."""
    if one == other:
        return True
    first, second = one.split(":"), other.split(":")
    if len(first) != 4 or len(second) != 4 or first[:2] != second[:2] or first[0] != "class":
        return False
    return all(_flipped(a, b) <= _FLIPPED for a, b in zip(first[2:], second[2:], strict=True))


def simhash(vector: npt.ArrayLike) -> bytes:
    """Hash a direction so that near-equal ones differ in few bits (Charikar, STOC 2002, section 3).

    Each bit is the side of a fixed hyperplane with normals of +1 and -1 (Achlioptas, 2003), drawn from
    SHAKE-256, so that it does not depend on any library's random numbers.

    Args:
        vector: (dimension,).

    Returns:
        32 bytes; of two vectors at an angle of a radians each bit differs with probability a / pi.
    """
    array = np.asarray(vector, dtype=np.float64)
    stream = hashlib.shake_256(b"stm-retriever probe").digest(_BITS * len(array) // 8)
    signs = np.unpackbits(np.frombuffer(stream, dtype=np.uint8)).reshape(_BITS, len(array)) * 2.0 - 1.0
    return np.packbits(signs @ array >= 0).tobytes()


def class_of(instance: object) -> str:
    """Full name of an object's class."""
    kind = type(instance)
    return f"{kind.__module__}.{kind.__qualname__}"


def _flipped(one: str, other: str) -> int:
    if len(one) != len(other):
        return _BITS
    try:
        return (int(one, 16) ^ int(other, 16)).bit_count()
    except ValueError:
        return _BITS


def _check_encoder(encoder: object) -> None:
    missing = [
        name for name in ("encode_query", "encode_document") if not callable(getattr(encoder, name, None))
    ]
    if missing:
        raise ConfigError(
            f"A {class_of(encoder)} has no {' and no '.join(missing)}, so texts cannot become vectors. Pass "
            "an Embedder, or an object with both methods; for LangChain embeddings take "
            "langchain_stm.STMVectorStore, for LlamaIndex's llama_index.vector_stores.stm."
        )


def _unit(vector: Vectors, role: Role) -> npt.NDArray[np.float64]:
    wide = vector.astype(np.float64)
    length = float(np.linalg.norm(wide))
    if not np.isfinite(length) or length == 0.0:
        raise DataError(
            f"The encoder gives a {role} vector of length {length} for {_PROBES[role]!r}, which is similar "
            "to nothing. Look at what it does with a plain sentence."
        )
    unit: npt.NDArray[np.float64] = wide / length
    return unit
