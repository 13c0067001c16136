"""``stm-train reindex``: the documents of an index, encoded again with another model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from stm_retriever import Embedder
from stm_retriever.errors import ConfigError
from stm_retriever.index.reindex import reindex
from stm_retriever.opening import reference_of

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "reindex",
        help="encode an index's documents again with another model",
        description="Encode every document of an index folder with another retriever folder. The index is "
        "searched and written with the old model until all is done; then the folder is the new model's, and "
        "programs that open it again need that model. After an interruption the same command goes on.",
    )
    parser.add_argument("index", help="index folder")
    parser.add_argument("--model", required=True, help="retriever folder of the new model")
    parser.add_argument("--variant", default="fp32", help="which ONNX file of the model (default: fp32)")
    parser.add_argument("--kind", help="another kind of vector index (default: as it is)")
    parser.add_argument("--batch", type=int, default=256, help="documents per transaction (default: 256)")
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait at the end for another writer to close the index (default: 60)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Re-encode the index."""
    if arguments.batch < 1:
        raise ConfigError(f"--batch is {arguments.batch}; a transaction needs at least one document.")
    embedder = Embedder.load(arguments.model, variant=arguments.variant)
    index = Path(arguments.index)
    from tqdm import tqdm  # comes with tokenizers, through huggingface-hub

    with tqdm(unit="document", desc="encoding", disable=None) as bar:

        def report(done: int, left: int) -> None:
            bar.total = done + max(left, 0)
            bar.update(done - bar.n)

        result = reindex(
            index,
            embedder=reference_of(embedder, index),
            encode=lambda texts: embedder.encode_counted(texts, "document")[0],
            kind=arguments.kind,
            block=arguments.batch,
            wait=arguments.wait,
            report=report,
        )
    if result.kept:
        print(f"{result.kept} documents had been encoded before the interruption.")
    print(f"{result.encoded} documents encoded; {arguments.index} now belongs to {embedder.name!r}.")
    print(f"Once every program has opened it again, free the old file: stm-train compact {arguments.index}")
    return 0
