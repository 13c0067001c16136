"""The licence that a model's card states."""

from __future__ import annotations

from pathlib import Path

import yaml

from stm_retriever.errors import DataError


def card_licences(folder: Path) -> list[str]:
    """Returns the licences that a model card's front matter names; empty if there is none.

    Raises:
        DataError: If the front matter is not YAML.
    """
    card = folder / "README.md"
    if not card.is_file():
        return []
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return []
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise DataError(
            f"The front matter of {str(card)!r} is not YAML ({' '.join(str(error).split())}), so the model's "
            "licence is not known. Mend it, or give the licence: --licence NAME"
        ) from error
    stated = front.get("license") if isinstance(front, dict) else None
    if stated is None:
        return []
    return [str(item) for item in stated] if isinstance(stated, list) else [str(stated)]
