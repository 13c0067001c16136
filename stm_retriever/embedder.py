"""From texts to vectors, with nothing but tokenizers and ONNX Runtime."""

from __future__ import annotations

import asyncio
import copy
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stm_retriever.encoding.precision import (
    Precision,
    Vectors,
    check_dimension,
    check_precision,
    stored_shape,
    to_stored,
    unit,
)
from stm_retriever.encoding.progress import Progress, Reporter
from stm_retriever.encoding.windows import Window, tokenised, warn_truncated, windows
from stm_retriever.errors import ArtifactMismatchError
from stm_retriever.folder import SERVING_FILES, Manifest, Prompts, read_manifest, resolve_folder
from stm_retriever.onnx_session import Device
from stm_retriever.tokenization import TextTokenizer, check_texts
from stm_retriever.types import Role

if TYPE_CHECKING:
    from stm_retriever.encoding.engines import EngineName
    from stm_retriever.encoding.opening import Opened

__all__ = ["Embedder", "Precision", "Progress", "Vectors"]

WINDOW = 1024
"""Texts that are tokenised, sorted by length and encoded together."""
_ASYNC_CALLS = 4

_OF_THE_PARENT: list[Any] = []


class Embedder:
    """A retriever folder, loaded. Make one with :meth:`load`.

    Queries get the query prompt and documents the document prompt; there is no way to encode without saying
    which. May be used from several threads at once. Pickles by path: the copy opens the model itself when it
    is first used.
    """

    _lock: threading.Lock
    _loaded: Opened | None
    _async_calls: ThreadPoolExecutor | None

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        variant: str = "fp32",
        device: Device = "cpu",
        threads: int | None = None,
        engine: EngineName = "onnxruntime",
        dimension: int | None = None,
        precision: Precision = "float32",
        source: str | None = None,
        revision: str | None = None,
    ) -> None:
        self._dimension = check_dimension(dimension, manifest.dimensions_allowed, manifest.dimension)
        check_precision(precision, self._dimension)
        self._path = Path(path).absolute()
        self._manifest = manifest
        self._variant = variant
        self._device: Device = device
        self._threads = threads
        self._engine: EngineName = engine
        self._precision: Precision = precision
        self._source = source
        self._revision = revision
        self._start()

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        variant: str = "fp32",
        device: Device = "cpu",
        threads: int | None = None,
        engine: EngineName = "onnxruntime",
        dimension: int | None = None,
        precision: Precision = "float32",
    ) -> Embedder:
        """Load a retriever folder.

        Args:
            model: A folder, or a Hugging Face hub name ``org/name``; an existing folder wins.
            revision: Branch, tag or commit of a hub name.
            local_files_only: Never touch the network; take a hub name from the local cache.
            variant: Which ONNX file: ``"fp32"`` or another one that the folder has.
            device: ``"cpu"``, ``"cuda"`` (an error if it does not run there) or ``"auto"``.
            threads: CPU threads in all; None takes those that this process may use.
            engine: ``"onnxruntime"``; ``"openvino"`` (CPU, float32); ``"openvino-bf16"`` (products in
                bfloat16; an error where the CPU has no instructions for it).
            dimension: Length of the vectors; only where the manifest allows to cut them (Matryoshka). Cut
                vectors are brought to length 1 again. None for all components.
            precision: How vectors come: ``"float32"``; ``"int8"`` or ``"binary"`` for stored ones, as
                :func:`stm_retriever.encoding.precision.to_stored` says.

        Raises:
            ModelFolderError: If there is no such folder, or it was not made by ``stm-train export``.
            ConfigError: If the folder has no such variant or dimension; the message lists those it has.
            ArtifactMismatchError: If the tokenizer does not give the ids that the manifest recorded, or a
                quantised variant not its vectors on this CPU.
            ProviderError: If the device is not there.
            MissingExtraError: If the engine is not installed.
        """
        path = resolve_folder(
            model, revision=revision, local_files_only=local_files_only, patterns=SERVING_FILES
        )
        is_hub_name = not Path(str(model)).expanduser().is_dir()
        embedder = cls(
            path,
            read_manifest(path),
            variant=variant,
            device=device,
            threads=threads,
            engine=engine,
            dimension=dimension,
            precision=precision,
            source=str(model) if is_hub_name else None,
            revision=revision,
        )
        embedder._open()
        return embedder

    @property
    def name(self) -> str:
        """The model's name, as its manifest gives it."""
        return self._manifest.name

    @property
    def path(self) -> Path:
        """The retriever folder, absolute."""
        return self._path

    @property
    def hub_name(self) -> str | None:
        """The hub name that it was loaded by; None for a folder."""
        return self._source

    @property
    def revision(self) -> str | None:
        """The revision that was asked for with the hub name."""
        return self._revision

    @property
    def fingerprint(self) -> str:
        """Hash over everything that changes a vector of the whole length."""
        return self._manifest.fingerprint

    @property
    def variant(self) -> str:
        """Which of the folder's ONNX files runs."""
        return self._variant

    @property
    def device(self) -> Device:
        """The device that was asked for."""
        return self._device

    @property
    def engine(self) -> EngineName:
        """What runs the graph."""
        return self._engine

    @property
    def dimension(self) -> int:
        """Components of a vector, after it was cut."""
        return self._dimension

    @property
    def precision(self) -> Precision:
        """How vectors come out."""
        return self._precision

    @property
    def prompts(self) -> Prompts:
        """What is put before queries and documents."""
        return self._manifest.prompts

    @property
    def max_length(self) -> int:
        """Most tokens of a text, prompt and special tokens included; the rest is cut off and told."""
        return self._manifest.max_length

    @property
    def manifest(self) -> Manifest:
        """The whole manifest."""
        return self._manifest

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer, checked against the manifest's goldens."""
        return self._open().tokenizer

    def encode_query(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        """Encode queries, the query prompt put before each.

        Args:
            texts: n queries.
            show_progress: True for a bar on stderr, or a function of (done, total).

        Returns:
            float32 (n, dimension), rows in the order of ``texts``, each of length 1; (0, dimension) for none.
            With ``precision="int8"`` int8 (n, dimension), with ``"binary"`` uint8 (n, dimension / 8).

        Raises:
            ConfigError: If a bare string is passed for a list.
            DataError: If a text is empty, no string, or holds a lone surrogate.
            ProviderError: If a single text does not fit into the device's memory.
        """
        return self._encode(texts, "query", show_progress)

    def encode_document(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        """Encode documents, the document prompt put before each.

        Args, return value and errors are those of :meth:`encode_query`.
        """
        return self._encode(texts, "document", show_progress)

    async def aencode_query(self, texts: Sequence[str]) -> Vectors:
        """:meth:`encode_query` in a thread, so that the event loop goes on; a few calls run at a time."""
        return await self._in_thread(texts, "query")

    async def aencode_document(self, texts: Sequence[str]) -> Vectors:
        """:meth:`encode_document` in a thread, so that the event loop goes on; a few calls run at a time."""
        return await self._in_thread(texts, "document")

    def encode_query_stream(
        self, texts: Iterable[str], *, show_progress: Progress = False, window: int = WINDOW
    ) -> Iterator[Vectors]:
        """:meth:`encode_document_stream` for queries."""
        return self._stream(texts, "query", show_progress, window)

    def encode_document_stream(
        self, texts: Iterable[str], *, show_progress: Progress = False, window: int = WINDOW
    ) -> Iterator[Vectors]:
        """Encode more documents than fit into memory.

        Args:
            texts: Any iterable; two windows of it are held at a time.
            show_progress: True for a bar on stderr, or a function of (done, 0).
            window: Texts that are sorted by length and encoded together.

        Yields:
            The vectors of the next ``window`` texts, in order; the last array may be shorter. An error in a
            window is raised once the windows before it are out.

        Raises:
            What :meth:`encode_query` raises; ConfigError if ``window`` is below 1.
        """
        return self._stream(texts, "document", show_progress, window)

    def count_truncated(self, texts: Sequence[str], role: Role) -> int:
        """Count the texts that are longer than the model reads, so that their ends do not count."""
        return sum(length > self.max_length for length in self.tokenizer.count(texts, role))

    def encode_counted(
        self, texts: Sequence[str], role: Role, *, show_progress: Progress = False
    ) -> tuple[Vectors, int]:
        """Encode texts of a role; returns the vectors and how many texts were cut, which is not logged."""
        checked = check_texts(texts, role)
        places = {text: index for index, text in enumerate(dict.fromkeys(checked))}
        distinct = list(places)
        shape, dtype = stored_shape(len(distinct), self._dimension, self._precision)
        vectors = np.empty(shape, dtype=dtype)
        cut: list[str] = []
        pieces = (distinct[start : start + WINDOW] for start in range(0, len(distinct), WINDOW))
        done = 0
        with Reporter(show_progress, len(distinct)) as reporter:
            for found in tokenised(pieces, self.tokenizer, role):
                rows = slice(done, done + len(found.places))
                vectors[rows] = self._run(found, reporter)
                cut += [distinct[done + place] for place in found.cut]
                done = rows.stop
        if len(distinct) == len(checked):
            return cast(Vectors, vectors), len(cut)
        too_long = set(cut)
        rows_of_all = [places[text] for text in checked]
        return cast(Vectors, vectors[rows_of_all]), sum(text in too_long for text in checked)

    def _encode(self, texts: Sequence[str], role: Role, show_progress: Progress) -> Vectors:
        vectors, cut = self.encode_counted(texts, role, show_progress=show_progress)
        warn_truncated(cut, len(vectors), role, self.name, self.max_length)
        return vectors

    def _stream(
        self, texts: Iterable[str], role: Role, show_progress: Progress, window: int
    ) -> Iterator[Vectors]:
        cut = total = 0
        with Reporter(show_progress, None) as reporter:
            for found in tokenised(windows(texts, role, window), self.tokenizer, role):
                vectors = self._run(found, reporter)
                yield cast(Vectors, vectors[found.places])
                cut += sum(place in found.cut for place in found.places)
                total += len(found.places)
        warn_truncated(cut, total, role, self.name, self.max_length)

    def _run(self, window: Window, reporter: Reporter) -> Any:
        vectors = self._open().runner.encode(window.ids, reporter.add)
        if self._dimension < vectors.shape[1]:
            vectors = unit(vectors[:, : self._dimension])
        return to_stored(vectors, self._precision)

    async def _in_thread(self, texts: Sequence[str], role: Role) -> Vectors:
        await asyncio.to_thread(self._open)
        with self._lock:
            if self._async_calls is None:
                self._async_calls = ThreadPoolExecutor(_ASYNC_CALLS, thread_name_prefix="stm-async")
            calls = self._async_calls
        return await asyncio.get_running_loop().run_in_executor(calls, self._encode, texts, role, False)

    def with_threads(self, threads: int | None) -> Embedder:
        """Returns another embedder of the same settings with so many CPU threads; it opens when used."""
        other = copy.copy(self)  # as a pickle would: without what is open
        other._threads = threads
        return other

    # Opening -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._loaded = None
        self._async_calls = None

    def _open(self) -> Opened:
        loaded = self._loaded
        if loaded is not None and loaded.process == os.getpid():
            return loaded
        if loaded is not None:
            # A session's threads do not survive a fork: running it, or even freeing it, waits for ever.
            _OF_THE_PARENT.append((loaded, self._async_calls))
            self._start()
        with self._lock:
            if self._loaded is None:
                from stm_retriever.encoding.opening import open_folder

                self._loaded = open_folder(
                    self._path,
                    self._manifest,
                    variant=self._variant,
                    device=self._device,
                    threads=self._threads,
                    engine=self._engine,
                )
            return self._loaded

    # Pickling ----------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_lock", "_loaded", "_async_calls"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
        found = read_manifest(self._path).fingerprint
        if found != self.fingerprint:
            raise ArtifactMismatchError(
                f"{str(self._path)!r} holds another model now ({found}) than when this embedder was pickled "
                f"({self.fingerprint}); its vectors would not fit. Load it anew: Embedder.load(...)"
            )

    def __repr__(self) -> str:
        return (
            f"Embedder(name={self.name!r}, path={str(self._path)!r}, variant={self._variant!r}, "
            f"dimension={self.dimension})"
        )
