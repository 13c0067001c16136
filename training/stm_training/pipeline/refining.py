"""Inside stage ``pairs``: drop the pairs that are not worth training on, and mine hard negatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stm_training.data.records import Pair, Passage
from stm_training.filtering.result import FilterResult
from stm_training.filtering.run import filter_pairs
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.encode import encode_texts
from stm_training.mining.mine import mine_negatives
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.settings import base_name, load_base
from stm_training.prompting.candidates import infer_template, make_prompt
from stm_training.prompting.generic import assign_prompts, generic_prompts
from stm_training.recipe import Recipe

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass
class BaseEncoder:
    """The untouched base as filters and mining want it; loaded when first used, vectors kept by text."""

    load: Callable[[], Backbone]

    def __post_init__(self) -> None:
        self._backbone: Backbone | None = None
        self._vectors: dict[tuple[str, str], NDArray[np.float32]] = {}

    @property
    def backbone(self) -> Backbone:
        """The base."""
        self._backbone = self._backbone or self.load()
        return self._backbone

    def query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) unit vectors of queries."""
        return self._encode(texts, "query")

    def document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) unit vectors of documents."""
        return self._encode(texts, "document")

    def _encode(self, texts: Sequence[str], role: str) -> NDArray[np.float32]:
        new = sorted({text for text in texts if (role, text) not in self._vectors})
        if new:
            rows = encode_texts(self.backbone, new, "query" if role == "query" else "document")
            self._vectors.update({(role, text): row for text, row in zip(new, rows, strict=True)})
        if not texts:
            return np.empty((0, self.backbone.dimension), dtype=np.float32)
        return np.stack([self._vectors[role, text] for text in texts])


def refine_pairs(
    recipe: Recipe,
    pairs: Sequence[Pair],
    passages: Sequence[Passage],
    held_out: Iterable[str],
    console: RunConsole,
) -> tuple[list[Pair], dict[str, Any]]:
    """Apply the recipe's filters, its mining, and its training prompts, in this order.

    Args:
        recipe: The recipe.
        pairs: Synthetic and labelled pairs.
        passages: The corpus.
        held_out: Development and test queries.
        console: Shows the progress.

    Returns:
        The pairs to train on, and what was done, as JSON.
    """
    encoder = BaseEncoder(lambda: load_base(recipe))
    refined, notes = list(pairs), dict[str, Any]()
    if recipe.filters is not None:
        with console.bar("filtering") as advance:
            result = filter_pairs(
                refined,
                passages,
                recipe.filters,
                encode_query=encoder.query,
                encode_document=encoder.document,
                held_out=held_out if recipe.on_leak == "drop" else (),
                progress=lambda what, done, total: advance(done, total=total, note=what),
            )
        refined, notes["filters"] = result.pairs, _filter_notes(result)
    if recipe.mine is not None:
        with console.bar("mining negatives") as advance:
            refined, report = mine_negatives(
                refined,
                passages,
                recipe.mine,
                encode_query=encoder.query,
                encode_document=encoder.document,
                model=base_name(recipe),
                seed=recipe.seed,
                progress=lambda done, total: advance(done, total=total),
            )
        notes["mining"] = report.to_json()
    if recipe.prompts is not None and recipe.prompts.train_prompts:
        template = recipe.prompts.template or infer_template(encoder.backbone.prompts.query)
        drawn = generic_prompts(recipe.prompts.train_prompts, seed=recipe.seed)
        prompts = [make_prompt(instruction, template) for instruction in drawn]
        refined = assign_prompts(refined, prompts, seed=recipe.seed)
        notes["train_prompts"] = prompts
    return refined, notes


def _filter_notes(result: FilterResult) -> dict[str, Any]:
    return {
        "counts": result.counts,
        "dropped": {name: dropped.count for name, dropped in result.dropped.items()},
        "examples": [
            {"cause": name, "text": text}
            for name, dropped in result.dropped.items()
            for _, text in dropped.examples[:3]
        ],
    }
