"""Rerankers: anything that scores texts against a query, and cross-encoders exported to ONNX.

A cross-encoder reads query and text together, which is slower and better than comparing two vectors
(Nogueira and Cho, "Passage Re-ranking with BERT", 2019). It needs tokenizers and ONNX Runtime, no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stm_retriever.errors import ConfigError, DataError, ModelFolderError
from stm_retriever.folder import resolve_folder
from stm_retriever.onnx_session import Device, open_session
from stm_retriever.tokenization import check_text, token_budget_batches

Scores = npt.NDArray[np.float64]
Rerank = Callable[[str, Sequence[str]], Sequence[float] | npt.NDArray[Any]]
"""Takes a query and n texts and returns n scores, higher is better. A :class:`CrossEncoder` is one."""

_FILES = ("onnx/model.onnx", "tokenizer.json", "config.json", "tokenizer_config.json")
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
_TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}
_LONGEST = 512


def rerank_scores(rerank: Rerank, query: str, texts: Sequence[str]) -> Scores:
    """Call a reranker and check what comes back.

    Returns:
        float64 (n,), one score per text.

    Raises:
        ConfigError: If it is not callable, or does not give one number per text.
        DataError: If a score is not finite.
    """
    if not callable(rerank):
        raise ConfigError(
            f"rerank={rerank!r:.60} is a {type(rerank).__name__}, which cannot be called. Pass a function "
            "(query, texts) -> scores, or CrossEncoder.load(folder)."
        )
    given = rerank(query, list(texts))
    try:
        scores = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The reranker gave {given!r:.60}, which are no numbers ({error}). It must return one score per "
            "text, higher is better."
        ) from error
    if scores.shape != (len(texts),):
        raise ConfigError(
            f"The reranker gave scores of shape {scores.shape} for {len(texts)} texts, so it is not known "
            f"which belongs to which. It must return {len(texts)} numbers in the order of the texts."
        )
    if not np.isfinite(scores).all():
        place = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise DataError(
            f"The reranker gave {scores[place]} for the text {texts[place]!r:.60}, which cannot be ranked. "
            "Look at what it does with this text."
        )
    return scores


class CrossEncoder:
    """A cross-encoder from an ONNX folder. Make one with :meth:`load`; call it with a query and texts.

    Scores of models with one output are its sigmoid in [0, 1] (or the bare logit, if asked for); those of
    models with two outputs the probability of the second. May be used from several threads at once.
    """

    def __init__(
        self,
        path: Path,
        *,
        file: str = "onnx/model.onnx",
        device: Device = "cpu",
        threads: int | None = None,
        max_length: int | None = None,
        activation: Literal["sigmoid", "identity"] = "sigmoid",
    ) -> None:
        if activation not in ("sigmoid", "identity"):
            raise ConfigError(f"activation={activation!r} is not known. Take 'sigmoid' or 'identity'.")
        if max_length is not None and max_length < 8:
            raise ConfigError(
                f"max_length={max_length} leaves no room for a query and a text. Pass 8 or more."
            )
        self._path = Path(path).absolute()
        self._activation = activation
        config = _json(self._path / "config.json")
        self._tokenizer = _tokenizer(self._path)
        self._max_length = max_length or _max_length(self._path, config)
        self._tokenizer.enable_truncation(self._max_length)
        self._pad = int(config.get("pad_token_id") or 0)
        self._session = open_session(_graph(self._path, file), device=device, threads=threads)
        self._budget = _TOKENS_PER_BATCH[
            "cuda" if "CUDAExecutionProvider" in self._session.get_providers() else "cpu"
        ]
        self._inputs = {item.name for item in self._session.get_inputs()}
        if "input_ids" not in self._inputs or not self._inputs <= _INPUTS:
            raise ModelFolderError(
                f"{str(self._path)!r}: its ONNX graph takes {sorted(self._inputs)}; a cross-encoder takes "
                f"input_ids and maybe others of {sorted(_INPUTS)}. Export it for text classification."
            )

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        file: str = "onnx/model.onnx",
        device: Device = "cpu",
        threads: int | None = None,
        max_length: int | None = None,
        activation: Literal["sigmoid", "identity"] = "sigmoid",
    ) -> CrossEncoder:
        """Load a folder with ``tokenizer.json``, ``config.json`` and an ONNX graph of a cross-encoder.

        Args:
            model: A folder, or a Hugging Face hub name ``org/name``; an existing folder wins.
            revision: Branch, tag or commit of a hub name.
            local_files_only: Never touch the network; take a hub name from the local cache.
            file: The graph; ``model.onnx`` in the folder itself is found too.
            device: ``"cpu"``, ``"cuda"`` (an error if it does not run there) or ``"auto"``.
            threads: CPU threads of one run; None takes those that this process may use.
            max_length: Most tokens of query and text together, the longer one is cut; None takes what the
                model reads, at most 512.
            activation: What makes a score of a single logit.

        Raises:
            ModelFolderError: If there is no such folder, or a file is missing or cannot be read.
            ConfigError: If an argument cannot be used.
            ProviderError: If the device is not there.
            MissingExtraError: If ONNX Runtime is not installed.
        """
        path = resolve_folder(
            model, revision=revision, local_files_only=local_files_only, patterns=[*_FILES, file]
        )
        return cls(
            path, file=file, device=device, threads=threads, max_length=max_length, activation=activation
        )

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return self._path

    @property
    def max_length(self) -> int:
        """Most tokens of query and text together."""
        return self._max_length

    def __call__(self, query: str, texts: Sequence[str]) -> Scores:
        """Score texts against a query.

        Returns:
            float64 (n,), higher is better, in the order of the texts.

        Raises:
            ConfigError: If a bare string is passed for a list of texts.
            DataError: If query or a text is no string, or holds a lone surrogate.
            ModelFolderError: If the graph does not give one or two finite numbers per text.
        """
        if isinstance(texts, str):
            raise ConfigError(f"Got the single string {texts[:60]!r} where a list of texts is expected.")
        check_text(query, "The query")
        for place, text in enumerate(texts):
            check_text(text, f"text number {place}")
        encodings = self._tokenizer.encode_batch([(query, text) for text in texts]) if len(texts) else []
        scores = np.empty(len(encodings), dtype=np.float64)
        for batch in token_budget_batches([len(item.ids) for item in encodings], self._budget):
            scores[batch] = self._run([encodings[place] for place in batch])
        return scores

    def _run(self, encodings: list[Any]) -> Scores:
        longest = max(len(item.ids) for item in encodings)
        ids = np.full((len(encodings), longest), self._pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        types = np.zeros_like(ids)
        for row, item in enumerate(encodings):
            length = len(item.ids)
            ids[row, :length], mask[row, :length], types[row, :length] = item.ids, 1, item.type_ids
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        output = self._session.run(None, {name: feed[name] for name in self._inputs})[0]
        logits = np.asarray(output, dtype=np.float64).reshape(len(encodings), -1)
        if logits.shape[1] not in (1, 2) or not np.isfinite(logits).all():
            raise ModelFolderError(
                f"{str(self._path)!r}: its graph gives {logits.shape[1]} numbers per pair, or some that are "
                "not finite; a reranker gives one score, or two classes. Take a model for reranking."
            )
        if logits.shape[1] == 1 and self._activation == "identity":
            scores: Scores = logits[:, 0]
            return scores
        margin = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return _sigmoid(margin)

    def __repr__(self) -> str:
        return f"CrossEncoder(path={str(self._path)!r}, max_length={self._max_length})"


def _sigmoid(values: Scores) -> Scores:
    scores: Scores = 0.5 * (1.0 + np.tanh(0.5 * values))  # does not overflow
    return scores


def _graph(path: Path, file: str) -> Path:
    for name in (file, "model.onnx"):
        found = path / name
        if found.resolve().is_relative_to(path.resolve()) and found.is_file():
            return found
    raise ModelFolderError(
        f"{str(path)!r} has neither {file!r} nor 'model.onnx', so there is nothing to run. Export the "
        "cross-encoder to ONNX, for instance: optimum-cli export onnx --task text-classification"
    )


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelFolderError(
            f"{str(path)!r} has no tokenizer.json, so texts cannot become ids. Copy the whole model folder."
        ) from error
    except Exception as error:  # tokenizers raises a bare Exception
        raise ModelFolderError(
            f"{str(file)!r} cannot be read ({error}). Copy the model folder again."
        ) from error
    tokenizer.no_padding()
    return tokenizer


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFolderError(
            f"{str(file)!r} cannot be read ({error}), so padding and length are not known. Copy the whole "
            "model folder."
        ) from error
    if not isinstance(content, dict):
        raise ModelFolderError(f"{str(file)!r} holds a {type(content).__name__}, not a configuration.")
    return content


def _max_length(path: Path, config: dict[str, Any]) -> int:
    limits = [_LONGEST]
    sizes = [config.get("max_position_embeddings")]
    if (path / "tokenizer_config.json").is_file():
        sizes.append(_json(path / "tokenizer_config.json").get("model_max_length"))
    limits += [int(size) for size in sizes if isinstance(size, (int, float)) and 8 <= size]
    return min(limits)
