"""Upload a retriever folder, by huggingface_hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stm_retriever.errors import ConfigError, StmError
from stm_training.hub.checks import CARD, NOT_PUSHED, check_folder

_NAME = "ORGANISATION/NAME, for instance my-lab/health-retriever"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubError(StmError):
    """The hub refused, or could not be reached."""


@dataclass(frozen=True)
class Pushed:
    """What was uploaded.

    Attributes:
        url: Where it lies.
        commit: The commit's hash.
        files: How many files.
        size: Bytes of all of them.
    """

    url: str
    commit: str
    files: int
    size: int


def push_folder(
    folder: Path,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Check a folder and upload it.

    A stopped upload is taken up by the same call: huggingface_hub asks the hub which large files, or chunks
    of them, it has already. The folder becomes visible by one commit, whole or not at all.

    Args:
        folder: Retriever folder.
        name: Repository, ``ORGANISATION/NAME``; made if it is not there.
        private: Make a new repository private; one that is there keeps what it is.
        revision: Branch; made if it is not there. ``None``: main.
        message: Of the commit.
        tell: Receives a line per step.

    Returns:
        What was uploaded.

    Raises:
        ConfigError: For an unusable name, or a file that must not leave.
        DataError: For a card that the hub refuses.
        ModelFolderError: If it is no retriever folder.
        HubError: If the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    if not _REPOSITORY.fullmatch(name):
        raise ConfigError(f"{name!r} is no organisation (or user) and name. It must be {_NAME}.")
    files = check_folder(folder)
    size = sum((folder / file).stat().st_size for file in files)
    tell(f"{len(files)} files, {size} bytes; card and files look well")
    api = HfApi()
    with _explained(name):
        _validate_card(folder / CARD)
        tell("the hub accepts the card")
        api.create_repo(name, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        tell(f"uploading to {name}{f' ({revision})' if revision else ''}")
        info = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            ignore_patterns=list(NOT_PUSHED),
            commit_message=message or f"Upload {folder.absolute().name} with stm-retriever",
        )
    return Pushed(f"{api.endpoint}/{name}", info.oid, len(files), size)


def _validate_card(path: Path) -> None:
    from huggingface_hub import ModelCard

    from stm_retriever.errors import DataError

    try:
        ModelCard.load(path).validate()
    except ValueError as error:
        raise DataError(f"The hub refuses the metadata of {path}: {error}") from error


class _explained:
    """Turn the client's errors into ours, with what to do next."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        if isinstance(error, OfflineModeIsEnabled):
            message = "HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it, then push again."
            raise HubError(message) from error
        if isinstance(error, HFValidationError):
            raise ConfigError(f"The hub takes no such name: {error}. It must be {_NAME}.") from error
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code if error.response is not None else "?"
            raise HubError(
                f"The hub answered {status} for {self._name}: {_remedy(status)} ({error})"
            ) from error
        if error is not None and _of_the_network(error):
            message = (
                f"The hub could not be reached ({type(error).__name__}). What was uploaded is kept, and "
                f"the same command goes on."
            )
            raise HubError(message) from error
        if isinstance(error, RuntimeError) and str(error).startswith("Error while uploading"):
            message = f"{error} ({error.__cause__}). What was uploaded is kept; the same command goes on."
            raise HubError(message) from error


def _of_the_network(error: BaseException) -> bool:
    """Whether a connection failed; which HTTP package the client rests on changes with its version."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")


def _remedy(status: int | str) -> str:
    if status == 401:
        return "no token, or a wrong one. Run `hf auth login`, or set HF_TOKEN to a token that may write."
    if status == 403:
        return "this token may not write there. Take one with write access, or another organisation."
    if status == 404:
        return "there is no such organisation, or this token may not see it. Look at the name."
    return "it may be busy. What was uploaded is kept there; try the same command again."
