"""No dependency may tell anybody what is done here."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

_OFF = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # read by huggingface_hub, and through it by transformers
    "DISABLE_TELEMETRY": "1",  # the name that older versions of both read
    "DO_NOT_TRACK": "1",
}


def telemetry_off() -> None:
    """Turn every dependency's telemetry off; also where it has been imported already."""
    os.environ.update(_OFF)
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it reads the environment once, at import
        constants.HF_HUB_DISABLE_TELEMETRY = True


@contextlib.contextmanager
def tracing_off() -> Iterator[None]:
    """Keep LangSmith, which environment variables can turn on, from recording the prompts of this thread."""
    helpers: Any = sys.modules.get("langsmith.run_helpers")
    if helpers is None:
        yield
        return
    context: AbstractContextManager[Any] = helpers.tracing_context(enabled=False)
    with context:
        yield
