"""Checks a retriever folder or an index folder against its own manifest. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stm_retriever._version import __version__
from stm_retriever.errors import StmError
from stm_retriever.folder import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Manifest,
    fingerprint,
    read_manifest,
    sha256_file,
)
from stm_retriever.index.manifest import is_index_folder
from stm_retriever.tokenization import TextTokenizer
from stm_training.export.doctor_index import check_index
from stm_training.export.doctor_machine import check_machine
from stm_training.export.doctor_vectors import check_parity, check_vectors
from stm_training.export.findings import COPY_AGAIN, Finding, ok, problem, warning
from stm_training.export.hashes import sha256_of, weight_files
from stm_training.export.interop import disagreeing
from stm_training.export.machine import installed_version


def diagnose(folder: str | Path) -> list[Finding]:
    """Looks at the installation and at one folder, and changes nothing.

    Args:
        folder: A retriever folder or an index folder.

    Returns:
        What was found, in the order of the checks; no ``problem`` among them means fine.
    """
    folder = Path(folder)
    findings = check_machine()
    if is_index_folder(folder) and not (folder / MANIFEST_NAME).is_file():
        return findings + check_index(folder)
    return findings + check_retriever(folder)


def check_retriever(folder: Path) -> list[Finding]:
    """Looks at a retriever folder."""
    try:
        manifest = read_manifest(folder)
    except StmError as error:
        return [problem(str(error), COPY_AGAIN)]
    findings = [
        ok(
            f"manifest of {manifest.name!r}: pooling {manifest.pooling}, attention {manifest.attention}, "
            f"{manifest.dimension} dimensions, up to {manifest.max_length} tokens"
        )
    ]
    findings += _check_version(manifest)
    findings += _check_hashes(folder, manifest)
    findings += _check_layout(folder, manifest)
    tokenizer = _check_tokenizer(folder, manifest)
    findings += tokenizer
    if not any(finding.level == "problem" for finding in tokenizer):
        findings += check_vectors(folder, manifest)
    findings += check_parity(folder, manifest)
    return findings + _check_consumers(folder)


def _check_version(manifest: Manifest) -> list[Finding]:
    made_with = manifest.versions.get("stm-retriever")
    if made_with is None or _numbers(made_with) <= _numbers(__version__):
        return []
    return [
        warning(
            f"it was made with stm-retriever {made_with}, here is {__version__}.",
            "pip install --upgrade stm-retriever",
        )
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


# Files ------------------------------------------------------------------------------------------------------


def _check_hashes(folder: Path, manifest: Manifest) -> list[Finding]:
    findings = [_check_fingerprint(manifest)]
    weights = weight_files(folder)
    if weights:
        findings.append(_compare("the weights", sha256_of(weights), manifest.weights_sha256))
    else:
        findings.append(
            warning(
                "model.safetensors is not here: enough to serve, not for sentence-transformers or training"
            )
        )
    tokenizer = folder / TOKENIZER_NAME
    if tokenizer.is_file():
        findings.append(_compare(TOKENIZER_NAME, sha256_file(tokenizer), manifest.tokenizer_sha256))
    if not manifest.variants:
        findings.append(problem("the folder has no ONNX file", COPY_AGAIN))
    for name, variant in manifest.variants.items():
        files = [folder / file for file in (variant.file, *variant.external_data)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            findings.append(problem(f"variant {name}: {', '.join(missing)} is missing", COPY_AGAIN))
        else:
            findings.append(_compare(f"variant {name} ({variant.file})", sha256_of(files), variant.sha256))
    return findings


def _check_fingerprint(manifest: Manifest) -> Finding:
    found = fingerprint(
        weights_sha256=manifest.weights_sha256,
        tokenizer_sha256=manifest.tokenizer_sha256,
        prompts=manifest.prompts,
        pooling=manifest.pooling,
        normalize=manifest.normalize,
        attention=manifest.attention,
        eos_token_id=manifest.eos_token_id,
        max_length=manifest.max_length,
    )
    if found == manifest.fingerprint:
        return ok(f"fingerprint {found}")
    return problem(
        f"the manifest was edited: its settings give the fingerprint {found}, it states "
        f"{manifest.fingerprint}. "
        "An index would take its vectors for those of the model as it was.",
        "undo the edit, or make a folder with the wanted settings: stm-train export FOLDER --out NEW_FOLDER "
        "--query-prompt TEXT --document-prompt TEXT --max-length N",
    )


def _compare(what: str, found: str, recorded: str) -> Finding:
    if found == recorded:
        return ok(f"{what}: unchanged")
    return problem(
        f"{what}: sha256 is {found[:16]}..., the manifest recorded {recorded[:16]}...; the file was changed, "
        "damaged, or belongs to another model.",
        COPY_AGAIN,
    )


def _check_layout(folder: Path, manifest: Manifest) -> list[Finding]:
    """Other programs read prompts and pooling from their own files; those must say the same."""
    findings: list[Finding] = []
    stored = _read_json(folder / "config_sentence_transformers.json", findings)
    if stored is not None:
        prompts = stored.get("prompts") or {}
        wanted = {"query": manifest.prompts.query, "document": manifest.prompts.document}
        found = {role: prompts.get(role, "") for role in wanted}
        findings.append(
            _agree("prompts in config_sentence_transformers.json", found, wanted)
            if stored.get("default_prompt_name") is None
            else problem(
                "config_sentence_transformers.json sets default_prompt_name to "
                f"{stored['default_prompt_name']!r}, so plain encode() would put it before documents too.",
                "set default_prompt_name to null in that file",
            )
        )
    pooling = _read_json(folder / "1_Pooling" / "config.json", findings)
    if pooling is not None:
        flags = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
        on = sorted(name for name, flag in flags.items() if pooling.get(f"pooling_mode_{flag}"))
        findings.append(_agree("pooling in 1_Pooling/config.json", on, [manifest.pooling]))
    length = _read_json(folder / "sentence_bert_config.json", findings)
    if length is not None:
        found_length = length.get("max_seq_length")
        findings.append(_agree("length in sentence_bert_config.json", found_length, manifest.max_length))
    return findings


def _agree(what: str, found: Any, wanted: Any) -> Finding:
    if found == wanted:
        return ok(f"{what}: as in the manifest")
    return problem(
        f"{what}: {found!r}, the manifest says {wanted!r}. sentence-transformers would give other vectors.",
        COPY_AGAIN,
    )


def _read_json(path: Path, findings: list[Finding]) -> dict[str, Any] | None:
    """Returns an object; None where there is none (a copy for serving alone) or where it is broken."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        findings.append(problem(f"{path.name} is not readable JSON: {error}", COPY_AGAIN))
        return None
    if not isinstance(content, dict):
        findings.append(problem(f"{path.name} holds a {type(content).__name__}, not an object", COPY_AGAIN))
        return None
    return content


# Tokens and vectors -----------------------------------------------------------------------------------------


def _check_tokenizer(folder: Path, manifest: Manifest) -> list[Finding]:
    try:
        tokenizer = TextTokenizer.from_file(
            folder / TOKENIZER_NAME,
            max_length=manifest.max_length,
            eos_token_id=manifest.eos_token_id,
            pad_token_id=manifest.pad_token_id,
            prompts=manifest.prompts,
        )
    except StmError as error:
        return [problem(str(error), COPY_AGAIN)]
    for golden in manifest.token_goldens:
        found = tokenizer.encode([golden.text], golden.role)[0].tolist()
        if found != golden.ids:
            return [_token_miss(manifest, golden.role, golden.text, found, golden.ids)]
    findings = [ok(f"tokens: {len(manifest.token_goldens)} recorded texts give the recorded ids")]
    return findings + _check_eos(folder, manifest)


def _token_miss(manifest: Manifest, role: str, text: str, found: list[int], wanted: list[int]) -> Finding:
    ends = f"it ends with {found[-1]} instead of {wanted[-1]}; " if found[-1] != wanted[-1] else ""
    here, there = installed_version("tokenizers"), manifest.versions.get("tokenizers")
    remedy = COPY_AGAIN
    if here != there and there is not None:
        remedy += f"; if the file is unchanged, the library may be the cause: pip install tokenizers=={there}"
    return problem(
        f"tokens: the {role} {text[:40]!r} gives {len(found)} ids {_short(found)}, recorded are "
        f"{len(wanted)} ids {_short(wanted)}; {ends}tokenizers {here} here, {there} at export.",
        remedy,
    )


def _short(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"{str(ids[:6])[:-1]}, ..., {str(ids[-3:])[1:]}"


def _check_eos(folder: Path, manifest: Manifest) -> list[Finding]:
    """Programs that do not read our manifest must get the end-of-text token from tokenizer.json."""
    if manifest.eos_token_id is None:
        return [ok("no end-of-text token is needed")]
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(folder / TOKENIZER_NAME))
    plain.no_truncation()
    ids = plain.encode("one two three").ids
    if ids and ids[-1] == manifest.eos_token_id:
        return [ok(f"end-of-text token {manifest.eos_token_id} is appended by tokenizer.json itself")]
    what = (
        f"tokenizer.json does not append the end-of-text token {manifest.eos_token_id} (a text ends with "
        f"{ids[-1:]}). stm-retriever does, other programs would pool another token."
    )
    # a copy for serving alone is not read by others
    return [problem(what, COPY_AGAIN) if (folder / "modules.json").is_file() else warning(what, COPY_AGAIN)]


def _check_consumers(folder: Path) -> list[Finding]:
    findings: list[Finding] = []
    config = _read_json(folder / "config.json", findings)
    if config is None or config.get("is_causal") is not False:
        return findings
    return [
        warning(
            "ONNX only: this decoder attends in both directions. The ONNX file and transformers 5 do that; "
            "transformers 4 and most servers do not, and return other vectors without an error." + _tested(),
            "serve it with stm-retriever, or through onnx/model.onnx",
        )
    ]


def _tested() -> str:
    """Which programs were tried with such a folder and gave other vectors."""
    programs = disagreeing("bidirectional decoder")
    return f" Tried, and not the same: {'; '.join(programs)}." if programs else ""
