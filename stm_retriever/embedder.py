"""From texts to vectors, with nothing but tokenizers and ONNX Runtime."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stm_retriever.errors import ArtifactMismatchError, ModelFolderError
from stm_retriever.folder import (
    SERVING_FILES,
    TOKENIZER_NAME,
    Manifest,
    Prompts,
    read_manifest,
    resolve_folder,
    variant_file,
)
from stm_retriever.onnx_session import Device, open_session
from stm_retriever.tokenization import Ids, TextTokenizer, check_texts, token_budget_batches
from stm_retriever.types import Role

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]
Progress = bool | Callable[[int, int], None]
"""True writes a line to stderr; a function is called with (texts done, texts in all)."""

_INPUTS = {"input_ids", "attention_mask"}
_OUTPUT = "sentence_embedding"
# On a CPU short batches are the fastest per text; a GPU wants to be filled.
_TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}
# Dynamic int8 scales activations over the whole batch, so a text's vector would depend on its batch mates.
# Variants that are not known to be free of that run one text at a time.
_BATCH_INVARIANT = {"fp32", "fp16", "bf16", "w8"}
_WINDOW = 8192


class _Loaded(NamedTuple):
    session: InferenceSession
    tokenizer: TextTokenizer
    process: int


_OF_THE_PARENT: list[_Loaded] = []


class Embedder:
    """A retriever folder, loaded. Make one with :meth:`load`.

    Queries get the query prompt and documents the document prompt; there is no way to encode without saying
    which. May be used from several threads at once. Pickles by path: the copy opens the model itself when it
    is first used.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        variant: str = "fp32",
        device: Device = "cpu",
        threads: int | None = None,
        source: str | None = None,
        revision: str | None = None,
    ) -> None:
        self._path = Path(path).absolute()
        self._manifest = manifest
        self._variant = variant
        self._device: Device = device
        self._threads = threads
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
    ) -> Embedder:
        """Load a retriever folder.

        Args:
            model: A folder, or a Hugging Face hub name ``org/name``; an existing folder wins.
            revision: Branch, tag or commit of a hub name.
            local_files_only: Never touch the network; take a hub name from the local cache.
            variant: Which ONNX file: ``"fp32"`` or another one that the folder has.
            device: ``"cpu"``, ``"cuda"`` (an error if it does not run there) or ``"auto"``.
            threads: CPU threads of one run; None takes those that this process may use.

        Raises:
            ModelFolderError: If there is no such folder, or it was not made by ``stm-train export``.
            ConfigError: If the folder has no such variant; the message lists those it has.
            ArtifactMismatchError: If the tokenizer does not give the ids that the manifest recorded.
            ProviderError: If the device is not there.
            MissingExtraError: If ONNX Runtime is not installed.
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
        """Hash over everything that changes a vector."""
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
    def dimension(self) -> int:
        """Length of a vector."""
        return self._manifest.dimension

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
            show_progress: True for a line on stderr, or a function of (done, total).

        Returns:
            float32 (n, dimension), rows in the order of ``texts``, each of length 1; (0, dimension) for none.

        Raises:
            ConfigError: If a bare string is passed for a list.
            DataError: If a text is empty, no string, or holds a lone surrogate.
        """
        return self._encode(texts, "query", show_progress)

    def encode_document(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        """Encode documents, the document prompt put before each.

        Args, return value and errors are those of :meth:`encode_query`.
        """
        return self._encode(texts, "document", show_progress)

    def count_truncated(self, texts: Sequence[str], role: Role) -> int:
        """Count the texts that are longer than the model reads, so that their ends do not count."""
        return sum(length > self.max_length for length in self.tokenizer.count(texts, role))

    def _encode(self, texts: Sequence[str], role: Role, show_progress: Progress) -> Vectors:
        checked = check_texts(texts, role)
        distinct = list(dict.fromkeys(checked))
        vectors = np.empty((len(distinct), self.dimension), dtype=np.float32)
        report = _reporter(show_progress, len(distinct))
        too_long: set[str] = set()
        for start in range(0, len(distinct), _WINDOW):
            window = distinct[start : start + _WINDOW]
            ids, lengths = self.tokenizer.encode_counted(window, role)
            too_long.update(
                text for text, length in zip(window, lengths, strict=True) if length > self.max_length
            )
            done = start
            for batch in self._batches([len(row) for row in ids]):
                vectors[[start + index for index in batch]] = self._run([ids[index] for index in batch])
                done += len(batch)
                report(done)
        if too_long:
            self._warn_truncated(sum(text in too_long for text in checked), len(checked), role)
        place = {text: index for index, text in enumerate(distinct)}
        return vectors[[place[text] for text in checked]] if checked else vectors

    def _batches(self, lengths: list[int]) -> list[list[int]]:
        if self._variant not in _BATCH_INVARIANT:
            return [[index] for index in range(len(lengths))]
        on_gpu = "CUDAExecutionProvider" in self._open().session.get_providers()
        return token_budget_batches(lengths, _TOKENS_PER_BATCH["cuda" if on_gpu else "cpu"])

    def _run(self, ids: list[Ids]) -> Vectors:
        loaded = self._open()
        input_ids, mask = loaded.tokenizer.pad(ids)
        output = loaded.session.run([_OUTPUT], {"input_ids": input_ids, "attention_mask": mask})[0]
        vectors = np.asarray(output, dtype=np.float32)
        if vectors.shape != (len(ids), self.dimension):
            raise ArtifactMismatchError(
                f"{str(self._path)!r}: the {self._variant} graph gives vectors of shape {vectors.shape}, its "
                f"manifest promises {(len(ids), self.dimension)}. The files do not belong together. "
                f"Run: stm-train doctor {self._path}"
            )
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(vectors).all() or not (norms > 0).all():
            raise ModelFolderError(
                f"{str(self._path)!r}: the {self._variant} graph gives vectors that are not finite or zero, "
                f"which no search can rank. Take another variant, or run: stm-train doctor {self._path}"
            )
        unit: Vectors = vectors / norms
        return unit

    def _warn_truncated(self, cut: int, total: int, role: Role) -> None:
        logger.warning(
            "%d of %d %s texts are longer than %s reads (%d tokens); what lies behind is not in their "
            "vectors. Split long documents, for instance with stm-train index --max-tokens.",
            cut,
            total,
            role,
            self.name,
            self.max_length,
        )

    # Opening -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    def _open(self) -> _Loaded:
        loaded = self._loaded
        if loaded is not None and loaded.process == os.getpid():
            return loaded
        if loaded is not None:
            # A session's threads do not survive a fork: running it, or even freeing it, waits for ever.
            _OF_THE_PARENT.append(loaded)
            self._start()
        with self._lock:
            if self._loaded is None:
                path = variant_file(self._path, self._manifest, self._variant)
                tokenizer = self._open_tokenizer()
                session = open_session(path, device=self._device, threads=self._threads)
                self._loaded = _Loaded(_checked(session, self._path), tokenizer, os.getpid())
            return self._loaded

    def _open_tokenizer(self) -> TextTokenizer:
        manifest = self._manifest
        tokenizer = TextTokenizer.from_file(
            self._path / TOKENIZER_NAME,
            max_length=manifest.max_length,
            eos_token_id=manifest.eos_token_id,
            pad_token_id=manifest.pad_token_id,
            prompts=manifest.prompts,
        )
        for golden in manifest.token_goldens:
            found = tokenizer.encode([golden.text], golden.role)[0].tolist()
            if found != golden.ids:
                raise ArtifactMismatchError(
                    f"{str(self._path)!r}: the {golden.role} {golden.text!r:.60} becomes the tokens {found}, "
                    f"but the model was made with {golden.ids}. Its vectors would be wrong without any other "
                    "sign. The tokenizer was changed or belongs to another model; run: stm-train doctor "
                    f"{self._path}"
                )
        return tokenizer

    # Pickling ----------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_lock", "_loaded"):
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


def _checked(session: InferenceSession, path: Path) -> InferenceSession:
    inputs = {item.name for item in session.get_inputs()}
    outputs = [item.name for item in session.get_outputs()]
    if inputs != _INPUTS or _OUTPUT not in outputs:
        raise ModelFolderError(
            f"{str(path)!r}: its ONNX graph takes {sorted(inputs)} and gives {outputs}; needed are "
            f"{sorted(_INPUTS)} and {_OUTPUT!r}. Another tool wrote it. Make it anew: "
            "stm-train export MODEL --out FOLDER"
        )
    return session


def _reporter(show_progress: Progress, total: int) -> Callable[[int], None]:
    if callable(show_progress):
        return lambda done: show_progress(done, total)
    if not show_progress or total == 0:
        return lambda done: None

    def write(done: int) -> None:
        sys.stderr.write(f"\rencoded {done}/{total} texts" + ("\n" if done == total else ""))
        sys.stderr.flush()

    return write
