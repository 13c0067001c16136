"""``stm-train export``: a model into a retriever folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stm_retriever.errors import ConfigError, require
from stm_training.export.variant_kinds import FP32, VARIANTS, check_variants
from stm_training.export.variant_words import megabytes, parity_in_words, read_parity

if TYPE_CHECKING:
    from stm_retriever.folder import Manifest
    from stm_training.pipeline.collections import Problem

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Turn a model into a retriever folder, without training it.

The folder holds the weights, the tokenizer, an ONNX file that runs without torch, and a manifest with the
prompts, the pooling and test vectors. stm-retriever, sentence-transformers, LangChain and LlamaIndex load it.
The ONNX file is compared with the model before the folder appears: if a vector differs, nothing is written.

Smaller ONNX files (--variants) are compared with the fp32 one, and with --dev also by what they answer; if
one misses its limit, the message has the numbers and nothing is written. Choose one when loading (variant=):
  fp32  the model's own vectors; what is loaded unless a variant is named
  fp16  half the size, for GPUs
  w8    8-bit weights, about a quarter of the size; vectors do not depend on the batch
  int8  fastest on CPUs with AVX-512 VNNI or the like; encodes one text at a time
  w4    smallest, and the least exact

Onto a folder that is one of ours (MODEL and --out the same) the variants that it lacks are added; the rest
of it stays as it is, and programs that have it loaded are not disturbed.
"""
_EXAMPLES = """\
examples:
  stm-train export sentence-transformers/all-MiniLM-L6-v2 --download --out minilm
  stm-train export ./my-decoder --out my-retriever --query-prompt "query: " --document-prompt "passage: "
  stm-train export my-retriever --out my-retriever --variants w8,int8 --dev ./my-collection
  stm-train doctor my-retriever
"""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "export",
        help="turn any model into a retriever folder, as it is",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder with config.json and model.safetensors, or hub name",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--name", help="the model's name (default: that of the folder)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub name")
    parser.add_argument("--download", action="store_true", help="fetch a hub name that is not cached")
    parser.add_argument(
        "--pooling",
        choices=("auto", "cls", "mean", "last"),
        default="auto",
        help="which tokens make the vector (auto: what the folder says, else last for decoders and "
        "mean for encoders)",
    )
    parser.add_argument(
        "--attention",
        choices=("auto", "causal", "bidirectional"),
        default="auto",
        help="whether a decoder's tokens see later ones (auto: what the folder says, else causal)",
    )
    parser.add_argument("--max-length", type=int, metavar="N", help="most tokens per text")
    parser.add_argument("--query-prompt", metavar="TEXT", help="text before each query ('' for none)")
    parser.add_argument("--document-prompt", metavar="TEXT", help="text before each document ('' for none)")
    parser.add_argument("--licence", "--license", metavar="NAME", help="licence (default: the model card's)")
    parser.add_argument(
        "--variants",
        default=FP32,
        metavar="LIST",
        help=f"ONNX files to write, by commas, of {', '.join(VARIANTS)} (default: {FP32})",
    )
    parser.add_argument(
        "--dimensions",
        metavar="LIST",
        help="shorter lengths that the model was trained for (Matryoshka), by commas: 256,128",
    )
    parser.add_argument(
        "--dev",
        metavar="FOLDER",
        help="BEIR folder with development queries, on which each smaller variant is compared with fp32",
    )
    parser.add_argument(
        "--dev-split", default="dev", metavar="NAME", help="its judgements, qrels/NAME.tsv (default: dev)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a retriever folder that is there")


def run(arguments: argparse.Namespace) -> int:
    """Export the model.

    Raises:
        ConfigError: If an option cannot be.
        MissingExtraError: If the training packages are not installed.
    """
    if arguments.max_length is not None and arguments.max_length < 1:
        raise ConfigError(f"--max-length {arguments.max_length}: a text has at least one token.")
    for package in ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "yaml"):
        require(package, extra="train", purpose="stm-train export")
    from stm_training.export.dev_quality import read_dev
    from stm_training.export.export import export_model

    variants = _listed(arguments.variants)
    check_variants(variants)
    dev = [] if arguments.dev is None else [read_dev(Path(arguments.dev), arguments.dev_split)]
    out = Path(arguments.out)
    if not arguments.overwrite and _is_same(arguments.model, out):
        _add(arguments, out, variants, dev)
        return 0
    manifest = export_model(
        arguments.model,
        out,
        name=arguments.name,
        revision=arguments.revision,
        pooling=arguments.pooling,
        attention=arguments.attention,
        max_length=arguments.max_length,
        query_prompt=arguments.query_prompt,
        document_prompt=arguments.document_prompt,
        licence=arguments.licence,
        variants=variants,
        dimensions=_lengths(arguments.dimensions),
        dev=dev,
        overwrite=arguments.overwrite,
        download=arguments.download,
        progress=_say,
    )
    print(f"Wrote {out}: {manifest.name}, {manifest.dimension} dimensions.")
    print(f"  pooling {manifest.pooling}, attention {manifest.attention}, up to {manifest.max_length} tokens")
    print(f"  query prompt {manifest.prompts.query!r}, document prompt {manifest.prompts.document!r}")
    _print_variants(out, manifest)
    if not manifest.licences:
        print("  the model's licence is not stated; pass --licence NAME if you know it")
    print(f"Use it: stm-train index DOCUMENTS --model {out} --out INDEX")
    return 0


def _add(arguments: argparse.Namespace, out: Path, variants: list[str], dev: list[Problem]) -> None:
    from stm_retriever.folder import read_manifest
    from stm_training.export.add_variants import add_variants

    given = [option for option, value in _changes(arguments).items() if value]
    if given:
        raise ConfigError(
            f"{', '.join(given)} would make another model of {str(out)!r}, while export onto the same folder "
            "adds variants and leaves the rest. Choose another --out, or pass --overwrite to replace it."
        )
    before = read_manifest(out).variants
    manifest = add_variants(out, variants, dev=dev, progress=_say)
    added = [name for name in manifest.variants if name not in before]
    print(f"{out}: added {', '.join(added)}." if added else f"{out}: has {', '.join(variants)} already.")
    _print_variants(out, manifest)


def _changes(arguments: argparse.Namespace) -> dict[str, bool]:
    return {
        "--name": arguments.name is not None,
        "--pooling": arguments.pooling != "auto",
        "--attention": arguments.attention != "auto",
        "--max-length": arguments.max_length is not None,
        "--query-prompt": arguments.query_prompt is not None,
        "--document-prompt": arguments.document_prompt is not None,
        "--licence": arguments.licence is not None,
        "--dimensions": arguments.dimensions is not None,
    }


def _is_same(model: str, out: Path) -> bool:
    """Whether a retriever folder is to be exported onto itself."""
    from stm_retriever.folder import MANIFEST_NAME

    source = Path(model).expanduser()
    return (source / MANIFEST_NAME).is_file() and out.is_dir() and source.samefile(out)


def _print_variants(out: Path, manifest: Manifest) -> None:
    parity = read_parity(out)
    for name, variant in manifest.variants.items():
        size = sum((out / file).stat().st_size for file in (variant.file, *variant.external_data))
        print(f"  {name}: {megabytes(size)}{parity_in_words(name, parity.get(name))}")
    if FP32 not in manifest.variants:
        print(
            "  without fp32: pass variant= wherever you load it; no variant can be added, and programs that "
            "look for onnx/model.onnx (fastembed, optimum, text-embeddings-inference) do not find it"
        )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _lengths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in _listed(text)]
    except ValueError:
        raise ConfigError(f"--dimensions {text!r}: give whole numbers, by commas: 256,128") from None


def _say(step: str) -> None:
    print(f"{step} ...", file=sys.stderr)
