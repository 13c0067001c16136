"""The retriever folder: its manifest, its fingerprint, and where a name leads to.

The folder is the only thing that training hands to serving. Its manifest says how a text becomes a vector
(prompts, pooling, EOS id, maximum length, ...) and carries goldens by which a reader can tell that it does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from stm_retriever.atomic_write import write_bytes_atomically
from stm_retriever.errors import ConfigError, ModelFolderError, require
from stm_retriever.types import Role

MANIFEST_NAME = "stm_manifest.json"
TOKENIZER_NAME = "tokenizer.json"
SCHEMA_VERSION = 1
SERVING_FILES = (MANIFEST_NAME, TOKENIZER_NAME, "onnx/*")
"""What a hub download needs to bring for serving; the torch weights stay where they are."""

Pooling = Literal["cls", "mean", "last"]
Attention = Literal["causal", "bidirectional"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _inside(name: str) -> str:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if not name or posix.is_absolute() or windows.is_absolute() or windows.drive:
        raise ValueError("must be a path relative to the folder")
    if ".." in posix.parts or ".." in windows.parts:
        raise ValueError("must not lead out of the folder")
    return name


InnerPath = Annotated[str, AfterValidator(_inside)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompts(_Strict):
    """The text put before the input, verbatim; empty means none."""

    query: str = ""
    document: str = ""

    def of(self, role: Role) -> str:
        """Return the prompt of one role."""
        return self.query if role == "query" else self.document


class TokenGolden(_Strict):
    """The token ids that a text must give, prompt and EOS included."""

    role: Role
    text: str
    ids: list[int]


class VectorGolden(_Strict):
    """The unit vector that a text must give: in the manifest with fp32, in a variant with that variant."""

    role: Role
    text: str
    vector: list[float]


class Variant(_Strict):
    """One ONNX file and the weight files that belong to it, by paths inside the folder.

    Attributes:
        file: The ONNX file.
        sha256: Of it and its weight files.
        external_data: The weight files.
        goldens: What the texts give with this variant on the exporting machine, each encoded alone; only
            variants whose arithmetic is not fp32's have them.
        precision: How weights and arithmetic were shortened, in words; empty if not recorded.
        cpu_features: Of the machine that made the goldens; empty if it is the one that the manifest names.
    """

    file: InnerPath
    sha256: str
    external_data: list[InnerPath] = []
    goldens: list[VectorGolden] = []
    precision: str = ""
    cpu_features: list[str] = []


class Manifest(_Strict):
    """What ``stm_manifest.json`` holds."""

    schema_version: int = SCHEMA_VERSION
    name: str
    fingerprint: str
    prompts: Prompts
    pooling: Pooling
    normalize: Literal[True] = True
    attention: Attention
    model_type: str
    eos_token_id: int | None
    pad_token_id: int = Field(ge=0)
    max_length: int = Field(ge=1)
    dimension: int = Field(ge=1)
    dimensions_allowed: list[int]
    similarity: Literal["cosine"] = "cosine"
    weights_sha256: str
    tokenizer_sha256: str
    variants: dict[str, Variant]
    token_goldens: list[TokenGolden]
    vector_goldens: list[VectorGolden]
    base: dict[str, Any] = {}
    experts: list[dict[str, Any]] = []
    merge: dict[str, Any] | None = None
    data: list[dict[str, Any]] = []
    licences: list[str] = []
    metrics: dict[str, Any] = {}
    versions: dict[str, str] = {}
    cpu_features: list[str] = []

    def goldens_of(self, variant: str) -> list[VectorGolden]:
        """Return the vectors that a variant must give: its own, or fp32's; empty if none were recorded."""
        return self.vector_goldens if variant == "fp32" else self.variants[variant].goldens

    def features_of(self, variant: str) -> list[str]:
        """Return the instruction sets of the CPU that recorded a variant's vectors."""
        return self.variants[variant].cpu_features or self.cpu_features


def fingerprint(
    *,
    weights_sha256: str,
    tokenizer_sha256: str,
    prompts: Prompts,
    pooling: Pooling,
    normalize: bool,
    attention: Attention,
    eos_token_id: int | None,
    max_length: int,
) -> str:
    """Hash everything that changes a vector; two models with the same one are interchangeable.

    Returns:
        ``"sha256:"`` and 64 hexadecimal digits, over the arguments as canonical JSON.
    """
    content = {
        "weights_sha256": weights_sha256,
        "tokenizer_sha256": tokenizer_sha256,
        "prompts": {"query": prompts.query, "document": prompts.document},
        "pooling": pooling,
        "normalize": normalize,
        "attention": attention,
        "eos_token_id": eos_token_id,
        "max_length": max_length,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash a file's bytes without reading it into memory at once; 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check a retriever folder's manifest.

    Raises:
        ModelFolderError: If the folder or its manifest is missing, broken, or of a newer schema.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(
            f"{str(folder)!r} is not a folder, so there is no retriever to load. "
            f"Check the path, or make one: {_export_command(folder)}"
        )
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ModelFolderError(
            f"{str(folder)!r} has no {MANIFEST_NAME}, so prompts, pooling and the ONNX file are not known. "
            f"Make a retriever folder of this model: {_export_command(folder)}"
        )
    return _parse(path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically: a crash leaves the old one or the new one.

    Raises:
        OSError: If the folder cannot be written.
    """
    text = manifest.model_dump_json(indent=2) + "\n"
    write_bytes_atomically(Path(folder) / MANIFEST_NAME, text.encode("utf-8"))


def variant_file(folder: Path, manifest: Manifest, variant: str) -> Path:
    """Return the ONNX file of a variant, once it and its weight files are known to be there.

    Raises:
        ConfigError: If the manifest knows no such variant; the message lists those it knows.
        ModelFolderError: If a file of the variant is missing.
    """
    known = manifest.variants
    if not known:
        raise ModelFolderError(
            f"{str(folder)!r} has no ONNX file, and the light runtime runs nothing else. "
            f"Make one: {_export_command(folder)}"
        )
    if variant not in known:
        raise ConfigError(
            f"variant={variant!r} is not in {str(folder)!r}; it has {', '.join(sorted(known))}. "
            f"Take one of these, or add it: stm-train export {folder} --out {folder} --variants {variant}"
        )
    wanted = known[variant]
    for name in (wanted.file, *wanted.external_data):
        if not (Path(folder) / name).is_file():
            raise ModelFolderError(
                f"{str(folder)!r} has no {name!r}, which its manifest names for variant {variant!r}; "
                f"without it nothing can be encoded. Copy the whole folder again, or make it anew: "
                f"{_export_command(folder)}"
            )
    return Path(folder) / wanted.file


def resolve_folder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    patterns: Sequence[str] | None = None,
) -> Path:
    """Turn a path or a hub name into a folder on this machine.

    An existing folder always wins. Only a name of the form ``org/name`` that is no path here is looked up on
    the Hugging Face hub (its local cache first).

    Args:
        name_or_path: A folder, or a hub name.
        revision: Branch, tag or commit; for hub names only.
        local_files_only: Take a hub name from the cache alone and never touch the network.
        patterns: Only these files of a hub repository (glob patterns); all if None.

    Raises:
        ModelFolderError: If nothing is found; the message says where was looked.
        ConfigError: If the name is empty, or ``revision`` is given with a folder, which has none.
    """
    text = str(name_or_path)
    if not text.strip():
        raise ConfigError("The model's name is empty. Pass a retriever folder, or a hub name 'org/name'.")
    path = Path(text).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigError(
                f"revision={revision!r} was given, but {text!r} is a folder on this machine, which has no "
                f"revisions. Leave revision out, or run where no folder {text!r} shadows the hub name."
            )
        return path
    if path.exists():
        raise ModelFolderError(f"{text!r} is a file; a model is a folder. Pass the folder that it lies in.")
    if isinstance(name_or_path, Path) or not _is_hub_name(text):
        raise ModelFolderError(
            f"No folder {text!r} (looked for {str(path.absolute())!r}), and it is no hub name of the form "
            f"'org/name'. Check the path, or make a retriever folder: stm-train export MODEL --out {text}"
        )
    return _from_hub(text, revision, local_files_only, patterns)


def _is_hub_name(text: str) -> bool:
    if not _HUB_NAME.fullmatch(text):
        return False
    # "runs/demo" beside an existing folder "runs" is a mistyped path, not an organisation on the hub.
    return not Path(text.split("/")[0]).is_dir()


def _from_hub(
    name: str, revision: str | None, local_files_only: bool, patterns: Sequence[str] | None
) -> Path:
    hub = require("huggingface_hub", extra="cpu", purpose="a model named by its hub name")
    errors = require("huggingface_hub.errors", extra="cpu", purpose="a model named by its hub name")
    try:
        found = hub.snapshot_download(
            name,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=None if patterns is None else list(patterns),
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        where = (
            "the local Hugging Face cache" if local_files_only else "the Hugging Face hub or its local cache"
        )
        at = "" if revision is None else f" at revision {revision!r}"
        raise ModelFolderError(
            f"No folder {name!r} here, and {where} did not give it{at}: {type(error).__name__}: {error}. "
            "Check the name, download it where there is a network (hf download), or pass a folder."
        ) from error
    return Path(found)


def _parse(path: Path) -> Manifest:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFolderError(
            f"{str(path)!r} is not readable JSON ({error}), so its prompts and pooling are not known. "
            f"Copy the folder again, or make it anew: {_export_command(path.parent)}"
        ) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ModelFolderError(
            f"{str(path)!r} has schema version {version}; this stm-retriever reads up to {SCHEMA_VERSION} "
            "and would misread it. Run: pip install --upgrade stm-retriever"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in error.errors()[:5]
        )
        raise ModelFolderError(
            f"{str(path)!r} is not a manifest that can be trusted: {problems}. "
            f"Make the folder anew: {_export_command(path.parent)}"
        ) from error


def _export_command(folder: Path) -> str:
    return f"stm-train export MODEL --out FOLDER (for instance: stm-train export {folder} --out {folder}-stm)"
