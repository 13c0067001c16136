"""``stm-train encode``: documents or queries into Parquet shards of vectors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from stm_training.commands.options import add_on_error

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_SHARD_SIZE = 10_000


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "encode",
        help="encode documents into Parquet shards of vectors",
        description="Read documents (.txt, .md, .html in a folder, a JSONL file, or a BEIR folder), encode "
        "each with a retriever folder, and write Parquet shards with the columns id and vector, in the order "
        "of the input. A shard is whole or not there: after a kill the same command goes on with the next "
        "one. Documents longer than the model reads are cut and counted; split them first if that matters "
        "(stm-train index splits by itself).",
    )
    parser.add_argument("input", help="folder of .txt/.md/.html files, JSONL file, or BEIR folder")
    parser.add_argument("--model", required=True, help="retriever folder (made by stm-train run or export)")
    parser.add_argument("--out", required=True, help="folder for the shards; made if it is not there")
    parser.add_argument(
        "--role",
        choices=("document", "query"),
        default="document",
        help="whose prompt the texts get; query reads a BEIR folder's queries.jsonl (default: document)",
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: this machine; ray: Ray Data, also on a cluster that shares the folders (default: local)",
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="processes, or Ray actors, that encode (default: 1)"
    )
    parser.add_argument("--variant", default="fp32", help="which ONNX file of the model (default: fp32)")
    parser.add_argument(
        "--runtime",
        choices=("onnxruntime", "openvino", "openvino-bf16"),
        default="onnxruntime",
        help="what runs the ONNX file (default: onnxruntime)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of each process (default: all, divided)")
    parser.add_argument("--dimension", type=int, help="cut vectors (Matryoshka models; default: whole)")
    parser.add_argument(
        "--precision",
        choices=("float32", "int8", "binary"),
        default="float32",
        help="how vectors are stored (default: float32)",
    )
    parser.add_argument(
        "--shard-size", type=int, default=_SHARD_SIZE, help=f"texts per shard (default: {_SHARD_SIZE})"
    )
    add_on_error(parser)


def run(arguments: argparse.Namespace) -> int:
    """Encode the documents."""
    from stm_retriever import ConfigError, Embedder
    from stm_training.data.reading import read_corpus
    from stm_training.data.records import SkippedRow
    from stm_training.encoding.shards import begin, describe

    if arguments.processes < 1:
        raise ConfigError(f"--processes {arguments.processes}: at least one is needed. Pass 1 or more.")
    embedder = Embedder.load(
        arguments.model,
        variant=arguments.variant,
        engine=arguments.runtime,
        device=arguments.device,
        threads=arguments.threads,
        dimension=arguments.dimension,
        precision=arguments.precision,
    )
    skipped: list[SkippedRow] = []
    passages = read_corpus(_source(arguments), arguments.on_error, skipped=skipped)
    for row in skipped:
        print(f"skipped {row}")
    folder = Path(arguments.out)
    encoding = describe(embedder, passages, arguments.role, arguments.shard_size)
    pending = begin(folder, encoding)
    if len(pending) < encoding.shards:
        print(f"{encoding.shards - len(pending)} of {encoding.shards} shards are there already.")
    if arguments.engine == "ray":
        from stm_retriever.onnx_session import usable_cpus
        from stm_training.encoding.on_ray import encode_on_ray

        encode_on_ray(
            folder,
            encoding,
            pending,
            passages,
            embedder,
            role=arguments.role,
            actors=arguments.processes,
            threads=arguments.threads or max(1, usable_cpus() // arguments.processes),
        )
    else:
        from stm_training.encoding.local import encode_locally

        encode_locally(
            folder,
            encoding,
            pending,
            passages,
            embedder,
            role=arguments.role,
            processes=arguments.processes,
            threads=arguments.threads,
        )
    print(
        f"{encoding.documents} texts in {encoding.shards} shards in {folder} "
        f"({encoding.precision}, {encoding.dimension} components)."
    )
    return 0


def _source(arguments: argparse.Namespace) -> Path:
    path = Path(arguments.input)
    queries = path / "queries.jsonl"
    return queries if arguments.role == "query" and queries.is_file() else path
