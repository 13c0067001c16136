"""``stm-train export``: a model into a retriever folder."""

from __future__ import annotations

import argparse
import sys
from typing import TypeAlias

from stm_retriever.errors import ConfigError, require

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Turn a model into a retriever folder, without training it.

The folder holds the weights, the tokenizer, an ONNX file that runs without torch, and a manifest with the
prompts, the pooling and test vectors. stm-retriever, sentence-transformers, LangChain and LlamaIndex load it.
The ONNX file is compared with the model before the folder appears: if a vector differs, nothing is written.
"""
_EXAMPLES = """\
examples:
  stm-train export sentence-transformers/all-MiniLM-L6-v2 --download --out minilm
  stm-train export ./my-decoder --out my-retriever --query-prompt "query: " --document-prompt "passage: "
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
        "--variants", default="fp32", metavar="LIST", help="ONNX files to write, by commas (now: fp32 alone)"
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
    from stm_training.export.export import export_model

    manifest = export_model(
        arguments.model,
        arguments.out,
        name=arguments.name,
        revision=arguments.revision,
        pooling=arguments.pooling,
        attention=arguments.attention,
        max_length=arguments.max_length,
        query_prompt=arguments.query_prompt,
        document_prompt=arguments.document_prompt,
        licence=arguments.licence,
        variants=[name.strip() for name in arguments.variants.split(",") if name.strip()],
        overwrite=arguments.overwrite,
        download=arguments.download,
        progress=lambda step: print(f"{step} ...", file=sys.stderr),
    )
    print(f"Wrote {arguments.out}: {manifest.name}, {manifest.dimension} dimensions.")
    print(f"  pooling {manifest.pooling}, attention {manifest.attention}, up to {manifest.max_length} tokens")
    print(f"  query prompt {manifest.prompts.query!r}, document prompt {manifest.prompts.document!r}")
    if not manifest.licences:
        print("  the model's licence is not stated; pass --licence NAME if you know it")
    print(f"Use it: stm-train index DOCUMENTS --model {arguments.out} --out INDEX")
    return 0
