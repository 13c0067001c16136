"""Makes the variants of a folder from its fp32 file, and lets through only those within their limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stm_retriever import Embedder
from stm_retriever.cpu_features import cpu_features
from stm_retriever.errors import ConfigError, ExportParityError
from stm_retriever.folder import Manifest, Variant, VectorGolden, variant_file, write_manifest
from stm_training.export.dev_quality import DevQuality
from stm_training.export.goldens import encoded_goldens
from stm_training.export.hashes import sha256_of
from stm_training.export.onnx_graph import EXTERNAL_DATA_ABOVE, vocabulary_size
from stm_training.export.parity import LONGEST_CHECKED
from stm_training.export.quantize import write_variant
from stm_training.export.variant_kinds import FP32, KINDS, VariantKind
from stm_training.export.variant_parity import VariantReport, compare_variant

if TYPE_CHECKING:
    from stm_training.pipeline.collections import Problem

Progress = Callable[[str], None]


def as_variant(
    files: Sequence[Path], folder: Path, precision: str, vectors: Sequence[VectorGolden] = ()
) -> Variant:
    """The manifest's entry for some files of a folder, the graph first."""
    first, *external = [path.relative_to(folder).as_posix() for path in files]
    return Variant(
        file=first,
        sha256=sha256_of(list(files)),
        external_data=external,
        precision=precision,
        goldens=list(vectors),
        cpu_features=cpu_features() if vectors else [],
    )


def make_variants(
    folder: Path,
    manifest: Manifest,
    names: Sequence[str],
    *,
    dev: Sequence[Problem] = (),
    longest_checked: int = LONGEST_CHECKED,
    external_data_above: int = EXTERNAL_DATA_ABOVE,
    progress: Progress = lambda _: None,
) -> tuple[Manifest, dict[str, VariantReport]]:
    """Makes ONNX files from the fp32 one and judges each; all pass, or the error names those that do not.

    Args:
        folder: One of ours, or at least its manifest, its tokenizer and its fp32 file. The new files and a
            manifest that names them are written into it, so give one that is thrown away on an error.
        manifest: Of the folder.
        names: The variants to make; not fp32.
        dev: Development queries on which each variant is compared with fp32.
        longest_checked: Cap of the longest input tried.
        external_data_above: Weights of more bytes than this go into a file of their own.
        progress: Called with a line before each step.

    Returns:
        The manifest with the new variants, and what the gate saw, by variant.

    Raises:
        ExportParityError: If any variant misses a limit, with all numbers.
    """
    fp32 = [
        variant_file(folder, manifest, FP32),
        *(folder / name for name in manifest.variants[FP32].external_data),
    ]
    write_manifest(folder, manifest)  # by which the light runtime reads
    vocabulary = vocabulary_size(fp32[0])
    if dev and names:
        progress("answering the development queries with fp32")
    quality = DevQuality(dev if names else (), Embedder.load(folder))
    reports: dict[str, VariantReport] = {}
    for name in names:
        kind = KINDS[name]
        progress(f"making {name} and comparing it with fp32")
        files = write_variant(kind, fp32[0], folder / kind.file, external_data_above=external_data_above)
        report = compare_variant(kind, files, fp32, manifest, vocabulary=vocabulary, longest=longest_checked)
        reports[name] = report
        if report.misses():
            continue  # the development queries would only cost time
        manifest, embedder = _served(folder, manifest, kind, files)
        report.dev = quality.changes(embedder)
    _judge(reports)
    return manifest, reports


def _served(
    folder: Path, manifest: Manifest, kind: VariantKind, files: Sequence[Path]
) -> tuple[Manifest, Embedder]:
    """The manifest with the variant and its goldens, as the light runtime itself gives them; and that."""

    def with_goldens(vectors: Sequence[VectorGolden]) -> Manifest:
        entry = as_variant(files, folder, kind.precision, vectors)
        changed = manifest.model_copy(update={"variants": {**manifest.variants, kind.name: entry}})
        write_manifest(folder, changed)
        return changed

    with_goldens([])
    changed = with_goldens(encoded_goldens(Embedder.load(folder, variant=kind.name)))
    return changed, Embedder.load(folder, variant=kind.name)


def _judge(reports: dict[str, VariantReport]) -> None:
    missed = {name: misses for name, report in reports.items() if (misses := report.misses())}
    if not missed:
        return
    lines = " ".join(f"{name}: {'; '.join(misses)}." for name, misses in missed.items())
    others = [FP32, *(name for name in reports if name not in missed)]
    raise ExportParityError(
        f"{', '.join(missed)} would not answer as fp32 does. {lines} "
        f"Nothing was written. Leave out what missed: --variants {','.join(others)}"
        + (", or take w8, which rounds least." if "w8" not in reports else ".")
    )


def checked_dimensions(dimensions: Sequence[int], dimension: int) -> list[int]:
    """The lengths to which a vector may be cut, the full one first.

    Raises:
        ConfigError: If a length is not between 1 and the full one.
    """
    wrong = [length for length in dimensions if not 1 <= length <= dimension]
    if wrong:
        raise ConfigError(
            f"dimensions={list(dimensions)!r}: the model's vectors have {dimension} numbers, so they cannot "
            f"be cut to {', '.join(map(str, wrong))}. Pass lengths from 1 to {dimension} that the model was "
            "trained for (the recipe's train.matryoshka)."
        )
    return sorted({dimension, *dimensions}, reverse=True)
