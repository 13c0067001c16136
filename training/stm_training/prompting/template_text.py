"""The texts that are put to a language model, as files beside this module."""

from __future__ import annotations

import re
from importlib import resources

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def render(name: str, **values: str) -> str:
    """Fill ``templates/<name>.txt``; what a value itself holds is never replaced again."""
    text = resources.files("stm_training.prompting").joinpath("templates", f"{name}.txt").read_text("utf-8")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)
