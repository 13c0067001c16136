"""The templates of the pages, and how figures are written in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stm_retriever.errors import require
from stm_training.evaluate.tables import heading, p_text

_TEMPLATES = Path(__file__).parent / "templates"


def page_environment(purpose: str) -> Any:
    """A jinja2 environment of the package's templates.

    Args:
        purpose: What it is needed for, should jinja2 be missing.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    jinja2 = require("jinja2", extra="train", purpose=purpose)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,  # always: texts of a page come from anywhere
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["points"] = _points
    environment.filters["heading"] = heading
    environment.filters["p"] = p_text
    return environment


def _points(difference: float) -> str:
    """A difference of scores (0-1) in points (0-100)."""
    return f"{100 * difference:+.2f}"
