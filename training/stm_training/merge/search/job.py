"""One search: what it is over, and where it is kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from stm_training.merge.search.settings import SearchSection

# What may change between two starts of the same search.
_NOT_NAMED = {
    "trials",
    "processes",
    "storage",
    "seed",
    "max_guard_loss",
    "cocktail_examples",
    "fusion_curve",
}


@dataclass(frozen=True)
class SearchJob:
    """One search.

    Attributes:
        settings: The search's settings.
        experts: Names of the experts.
        folder: For the storage, unless the settings name one.
        inputs: Hash of all that decides a score: experts, base, development queries, guards.
        seed: The recipe's; ``settings.seed`` goes before it.
        max_guard_loss: The recipe's, in points; ``settings.max_guard_loss`` goes before it.
    """

    settings: SearchSection
    experts: tuple[str, ...]
    folder: Path
    inputs: str
    seed: int = 0
    max_guard_loss: float = 0.5

    @property
    def storage(self) -> Path:
        """The SQLite file."""
        named = self.settings.storage
        return self.folder / "search.db" if named is None else Path(named).expanduser()

    @property
    def study(self) -> str:
        """The study's name: equal settings go on with it, others begin their own beside it."""
        plain = self.settings.model_dump(mode="json", exclude=_NOT_NAMED)
        parts = [plain, self.experts, self.inputs, self.actual_seed, self.tolerance]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]
        return f"merge-{self.settings.sampler}-{digest}"

    @property
    def actual_seed(self) -> int:
        """The seed."""
        return self.seed if self.settings.seed is None else self.settings.seed

    @property
    def tolerance(self) -> float:
        """Loss on a guard that costs nothing, in points."""
        own = self.settings.max_guard_loss
        return self.max_guard_loss if own is None else own
