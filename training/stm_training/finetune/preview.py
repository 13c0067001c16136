"""A batch as the model sees it: what is printed before a training starts.

Wrong prompts, a missing EOS token and cut-off answers are seen here or nowhere: the loss falls all the same.
The lines hold the user's texts. They are for the console, never for a log file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from stm_retriever.folder import Prompts
from stm_retriever.tokenization import Ids, TextTokenizer
from stm_retriever.types import Role
from stm_training.data.records import Pair
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.pair_keys import KnownPositives, known_positives, text_key
from stm_training.finetune.settings import TrainSettings

_LONGEST_TEXT = 160  # characters shown of a text's start and end together
_LABEL = 11


@dataclass(frozen=True)
class SeenText:
    """One text as the model gets it.

    Attributes:
        label: ``query``, ``positive``, ``negative 1``.
        text: The tokens read back as text, special tokens included.
        tokens: How many the model sees.
        uncut: How many the text has; more than ``tokens`` where its end is cut off.
    """

    label: str
    text: str
    tokens: int
    uncut: int

    def line(self) -> str:
        """For the console, on one line."""
        cut = f", cut from {self.uncut}" if self.uncut > self.tokens else ""
        return f"    {self.label:<{_LABEL}} {self.tokens:>5} tokens{cut}  {shortened(self.text)}"


def preview_batch(
    backbone: Backbone,
    pairs: Sequence[Pair],
    settings: TrainSettings,
    *,
    rows: int = 2,
    known: KnownPositives | None = None,
) -> list[str]:
    """Describe a batch in lines of text.

    Args:
        backbone: Gives tokenizer, prompts and length.
        pairs: The rows of one batch, all of them: the counts are over the whole batch.
        settings: Says how many negatives a row brings and which others it gets.
        rows: How many rows are shown with their texts.
        known: What all training pairs call relevant; such texts are no negatives. ``None``: what these rows
            do.

    Returns:
        The lines, without line ends.
    """
    known = known or known_positives(pairs)
    seen = [_row(backbone, pair, _used_negatives(pair, settings, known)) for pair in pairs]
    lines = [
        f"A batch as the model sees it ({len(pairs)} rows, the first {min(rows, len(pairs))} shown):",
        f"  prompts: query {_prompt(backbone, pairs)}, document {backbone.prompts.document!r}",
        f"  {_ending(backbone)}",
    ]
    for number, texts in enumerate(seen[:rows], start=1):
        lines.append(f"  row {number}")
        lines += [text.line() for text in texts]
    return [*lines, *_counts(seen, backbone), f"  {_negatives(seen, settings)}"]


def shortened(text: str, most: int = _LONGEST_TEXT) -> str:
    """A text on one line, its middle left out where it is long."""
    plain = " ".join(text.split())
    if len(plain) <= most:
        return plain
    tail = most // 4
    return f"{plain[: most - tail]} [...] {plain[-tail:]}"


def _row(backbone: Backbone, pair: Pair, negatives: Sequence[str]) -> list[SeenText]:
    prompts = backbone.prompts
    query = (prompts.query if pair.prompt is None else pair.prompt) + pair.query
    documents = [prompts.document + text for text in (pair.positive, *negatives)]
    labels = ["positive", *(f"negative {number}" for number in range(1, len(documents)))]
    return _seen(backbone, ["query"], [query], "query") + _seen(backbone, labels, documents, "document")


def _seen(backbone: Backbone, labels: Sequence[str], prompted: Sequence[str], role: Role) -> list[SeenText]:
    # As in training: a row may have a prompt of its own, so prompts are put on before the tokenizer.
    tokenizer = TextTokenizer.from_json(
        backbone.tokenizer_json,
        max_length=backbone.max_length,
        eos_token_id=backbone.eos_token_id,
        pad_token_id=backbone.pad_token_id,
        prompts=Prompts(),
    )
    ids, counts = tokenizer.encode_counted(prompted, role)
    reader = Tokenizer.from_str(backbone.tokenizer_json)
    return [
        SeenText(label, reader.decode(row.tolist(), skip_special_tokens=False), len(row), count)
        for label, row, count in zip(labels, ids, counts, strict=True)
    ]


def _used_negatives(pair: Pair, settings: TrainSettings, known: KnownPositives) -> list[str]:
    relevant = known[text_key(pair.query)]
    return [text for text in pair.negatives if text_key(text) not in relevant][: settings.hard_negatives]


def _prompt(backbone: Backbone, pairs: Sequence[Pair]) -> str:
    own = {pair.prompt for pair in pairs if pair.prompt is not None}
    if not own:
        return repr(backbone.prompts.query)
    return (
        f"{backbone.prompts.query!r} (and {len(own)} of the rows' own, for instance {sorted(own)[0]!r:.60})"
    )


def _ending(backbone: Backbone) -> str:
    where = f"at most {backbone.max_length} tokens; vectors by {backbone.pooling} pooling"
    if backbone.eos_token_id is None:
        return f"{where}; no EOS token is appended"
    name = Tokenizer.from_str(backbone.tokenizer_json).id_to_token(backbone.eos_token_id)
    return f"{where}; every text ends with {name}"


def _counts(seen: Sequence[Sequence[SeenText]], backbone: Backbone) -> list[str]:
    lines = []
    for kind, one_of in (("queries", "query"), ("documents", "")):
        texts = [text for row in seen for text in row if (text.label == "query") == (one_of == "query")]
        lengths: Ids = np.array([text.tokens for text in texts])
        cut = sum(text.uncut > text.tokens for text in texts)
        share = f"; {cut} of {len(texts)} cut at {backbone.max_length}" if cut else "; none cut"
        lines.append(
            f"  {kind}: {int(lengths.min())} to {int(lengths.max())} tokens, median "
            f"{int(np.median(lengths))}{share}"
        )
    return lines


def _negatives(seen: Sequence[Sequence[SeenText]], settings: TrainSettings) -> str:
    own = [len(row) - 2 for row in seen]
    hard = f"{sum(own)} hard negatives in {sum(count > 0 for count in own)} of {len(own)} rows"
    others = {
        "stm": "; each query is set against its own and the other rows' positives",
        "info_nce": "; each query is set against all of them and the other rows' positives",
        "hard_negatives": "; each query is set against its own alone",
        "distill": "; each query's own texts are ranked as their scores say",
    }
    return hard + others[settings.loss]
