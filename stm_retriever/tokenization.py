"""From text to token ids: prompt, EOS, truncation, padding, batches by token budget.

Training, export and serving all go through :class:`TextTokenizer`: a text has the same ids everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from stm_retriever.errors import ConfigError, DataError, ModelFolderError
from stm_retriever.folder import Prompts
from stm_retriever.types import Role

Ids = npt.NDArray[np.int64]


def check_texts(texts: Sequence[str], role: Role, *, first: int = 0) -> list[str]:
    """Return the texts as a list, once each is known to be encodable.

    Args:
        texts: Texts to check.
        role: For messages.
        first: The first one's number, where they are a part of a longer stream.

    Raises:
        ConfigError: If a bare string was passed for a list of strings.
        DataError: If an item is no string, holds a lone surrogate, or is empty or only white space.
    """
    if isinstance(texts, str):
        raise ConfigError(
            f"Got the single string {texts[:60]!r} where a list of {role} texts is expected; each of its "
            f"characters would be encoded as a text. Pass [text]."
        )
    checked = list(texts)
    for position, text in enumerate(checked, first):
        check_text(text, f"{role} text number {position}")
        if not text.strip():
            raise DataError(
                f"{role} text number {position} is empty ({text!r}), and an empty text has no meaningful "
                "vector. Leave it out."
            )
    return checked


def check_text(text: object, what: str) -> None:
    """Raise :class:`DataError` unless ``text`` is a string that UTF-8 can hold."""
    if not isinstance(text, str):
        raise DataError(f"{what} is a {type(text).__name__} ({text!r:.60}), not a string. Pass a string.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds a lone surrogate, U+{ord(text[error.start]):04X} at character {error.start}; it "
            "is no valid text and no tokenizer takes it. Read the source with the right encoding, or replace "
            "it: text.encode('utf-8', 'replace').decode()."
        ) from error


class TextTokenizer:
    """A ``tokenizer.json`` with everything around it that decides a text's ids.

    Truncation and padding that the file itself asks for are switched off; EOS is appended iff it is absent.

    Args:
        tokenizer: The tokenizer; taken over, its truncation and padding are reset.
        max_length: Most ids of a text, special tokens and EOS included.
        eos_token_id: The id that every text must end with; None for models without.
        pad_token_id: The id that fills short rows; masked, so its value does not change a vector.
        prompts: What is put before the texts, verbatim.

    Raises:
        ConfigError: If prompt and special tokens leave no room for a text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        eos_token_id: int | None,
        pad_token_id: int,
        prompts: Prompts,
    ) -> None:
        # Some published files carry "truncate and pad to 128"; it would silently cut and fill every text.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.prompts = prompts
        self._check_room()

    @classmethod
    def from_file(
        cls, path: Path, *, max_length: int, eos_token_id: int | None, pad_token_id: int, prompts: Prompts
    ) -> TextTokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            ModelFolderError: If the file is missing or no tokenizer.
        """
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFolderError(
                f"The tokenizer {str(path)!r} cannot be read ({error}), and without it no text becomes ids. "
                "Copy the model folder again, whole."
            ) from error
        try:
            return cls.from_json(
                text,
                max_length=max_length,
                eos_token_id=eos_token_id,
                pad_token_id=pad_token_id,
                prompts=prompts,
            )
        except ModelFolderError as error:
            raise ModelFolderError(f"{str(path)!r}: {error}") from error

    @classmethod
    def from_json(
        cls, text: str, *, max_length: int, eos_token_id: int | None, pad_token_id: int, prompts: Prompts
    ) -> TextTokenizer:
        """Build from the content of a ``tokenizer.json``.

        Raises:
            ModelFolderError: If the text is no tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the Rust side raises plain Exception
            raise ModelFolderError(
                f"This is no tokenizer.json that tokenizers can read: {error}. "
                "Copy the model folder again, whole."
            ) from error
        return cls(
            tokenizer,
            max_length=max_length,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            prompts=prompts,
        )

    def to_json(self) -> str:
        """Return the tokenizer as ``tokenizer.json`` holds it, without truncation and padding."""
        return str(self._tokenizer.to_str())

    def __call__(self, texts: Sequence[str], role: Role) -> list[Ids]:
        """Same as :meth:`encode`."""
        return self.encode(texts, role)

    def encode(self, texts: Sequence[str], role: Role) -> list[Ids]:
        """Turn texts into ids: prompt + text, special tokens, cut to ``max_length``, EOS last.

        Args:
            texts: n texts, without prompts.
            role: Which prompt they get.

        Returns:
            n arrays, int64, each of 1 to ``max_length`` ids.

        Raises:
            ConfigError: If a bare string is passed.
            DataError: If a text is no string or holds a lone surrogate.
        """
        return self.encode_counted(texts, role)[0]

    def count(self, texts: Sequence[str], role: Role) -> list[int]:
        """Count each text's ids as they would be without truncation, prompt and specials included."""
        return self.encode_counted(texts, role)[1]

    def encode_counted(self, texts: Sequence[str], role: Role) -> tuple[list[Ids], list[int]]:
        """Return what :meth:`encode` and :meth:`count` return, in one pass."""
        if isinstance(texts, str):
            raise ConfigError(
                f"Got the single string {texts[:60]!r} where a list of texts is expected. Pass [text]."
            )
        prompt = self.prompts.of(role)
        for position, text in enumerate(texts):
            check_text(text, f"{role} text number {position}")
        encodings = self._tokenizer.encode_batch([prompt + text for text in texts])
        ids: list[Ids] = []
        counts: list[int] = []
        for encoding in encodings:
            counts.append(len(encoding.ids) + self._lacks_eos(encoding.ids))
            ids.append(np.asarray(self._fit(encoding), dtype=np.int64))
        return ids, counts

    def pad(self, ids: Sequence[Ids], side: Literal["left", "right"] = "right") -> tuple[Ids, Ids]:
        """Fill rows to the longest one.

        Args:
            ids: n >= 1 arrays of ids.
            side: Where the filling goes; never changes a vector.

        Returns:
            ``input_ids`` and ``attention_mask`` (1 for a token, 0 for filling), int64 (n, longest).
        """
        longest = max(len(row) for row in ids)
        input_ids = np.full((len(ids), longest), self.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(ids), longest), dtype=np.int64)
        for number, row in enumerate(ids):
            place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
            input_ids[number, place] = row
            mask[number, place] = 1
        return input_ids, mask

    def _lacks_eos(self, ids: Sequence[int]) -> bool:
        return self.eos_token_id is not None and (not ids or ids[-1] != self.eos_token_id)

    def _fit(self, encoding: Encoding) -> list[int]:
        ids: list[int] = encoding.ids
        head, tail = _special_ends(encoding.special_tokens_mask)
        tail_ids = ids[len(ids) - tail :]
        # The tail's own EOS counts; a text that merely ends with the EOS token may lose it when it is cut.
        room = self.max_length - head - tail - self._lacks_eos(tail_ids)
        content = ids[head : len(ids) - tail]
        fitted = (
            ids
            if len(ids) + self._lacks_eos(ids) <= self.max_length
            else ids[:head] + content[:room] + tail_ids
        )
        if self._lacks_eos(fitted) and self.eos_token_id is not None:
            return [*fitted, self.eos_token_id]
        return fitted

    def _check_room(self) -> None:
        roles: tuple[Role, Role] = ("query", "document")
        for role in roles:
            prompt = self.prompts.of(role)
            taken = self.count([""], role)[0]
            if taken >= self.max_length:
                raise ConfigError(
                    f"max_length={self.max_length} leaves no room for a {role}: its prompt {prompt!r:.80} "
                    f"and the special tokens alone take {taken} ids, so every {role} would get the same "
                    "vector. Take a shorter prompt or a larger max_length."
                )


def _special_ends(mask: Sequence[int]) -> tuple[int, int]:
    """How many ids the post-processor put before and behind the text."""
    if all(mask):
        return len(mask), 0
    head = next(position for position, special in enumerate(mask) if not special)
    tail = next(position for position, special in enumerate(reversed(mask)) if not special)
    return head, tail


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group texts of like length so that no padded batch holds more than ``budget`` tokens.

    Args:
        lengths: Ids per text.
        budget: Most rows x longest row of a batch; a text longer than that goes alone.

    Returns:
        Indices into ``lengths``, each once, longest first (so that memory runs out at once or never).

    Raises:
        ConfigError: If ``budget`` is below 1.
    """
    if budget < 1:
        raise ConfigError(f"budget={budget}: a batch holds at least one token. Pass 1 or more.")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = max(lengths[index], 1)
    return batches
