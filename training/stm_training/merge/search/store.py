"""Scores per query, a JSON file per merge: Optuna's storage keeps figures that a dashboard can show."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.records import TrialScores, recipe_key


class ScoreStore:
    """Scores of merges of the same experts on the same queries; shared by every search over them.

    Args:
        folder: Where the files lie; made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, recipe: MergeRecipe | None) -> TrialScores | None:
        """Scores of a merge, or of the base; None where there are none or the file is damaged."""
        try:
            return TrialScores.model_validate_json(self._path(recipe).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError, UnicodeDecodeError):
            return None

    def write(self, recipe: MergeRecipe | None, scores: TrialScores) -> None:
        """Keep scores; the file appears whole or not at all."""
        path = self._path(recipe)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(scores.model_dump_json(), encoding="utf-8")
        os.replace(temporary, path)

    def _path(self, recipe: MergeRecipe | None) -> Path:
        return self._folder / f"{recipe_key(recipe)}.json"
