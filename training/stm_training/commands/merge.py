"""``stm-train merge``: models and adapters on disk into one model, without loading them."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stm_retriever.errors import ConfigError, require
from stm_training.merge.checkpoints import checkpoint_folders, checkpoint_weights
from stm_training.merge.stream.request import (
    METHOD_HELP,
    Asked,
    MergeRequest,
    methods,
    parse_member,
    parse_size,
    parse_values,
    read_request,
)

if TYPE_CHECKING:
    from stm_training.merge.stream.stream import StreamedMerge

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Merge models that were trained from one base: LoRA adapters (PEFT), whole folders (sentence-transformers or
plain transformers, one safetensors file or shards), or a mix. Nothing needs to have been trained here.

The weights are read, merged in float32 and written block by block, in memory that does not grow with the
model. The folder appears when it is whole: configuration, tokenizer, pooling and prompts of the base, merged
weights in the base's type, and merge.json, which says what it was made of.
"""
_EXAMPLES = """\
methods:
{methods}

examples:
  stm-train merge --base minilm --member faq=run/expert-faq/adapter:0.5 --member law=law-model:0.3 \\
      --method task_arithmetic --out merged
  stm-train merge --base minilm --member a=A --member b=B --method ties --weights a=.5,b=.3 --density .5 \\
      --out merged --export
  stm-train merge --base minilm --checkpoints my-training/output --out averaged
  stm-train merge --recipe merged/merge.json --density .7 --out merged-again --dry-run

A recipe file holds base, members (NAME: FOLDER), method, weights and the other settings, also those that have
no option: curves and base_slerp by name. Options override it.
"""
_PER_MEMBER = "one number, or NAME=NUMBER,..."


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    lines = "\n".join(f"  {name:<16} {METHOD_HELP[name]}" for name in methods())
    parser = subparsers.add_parser(
        "merge",
        help="merge adapters and models into one model",
        description=_DESCRIPTION,
        epilog=_EXAMPLES.format(methods=lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="folder or hub name of what all members were trained from"
    )
    parser.add_argument(
        "--member",
        action="append",
        default=[],
        metavar="NAME=FOLDER[:WEIGHT]",
        help="adapter or model to merge; repeat it for each",
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="FOLDER",
        help="average the checkpoints of one run (checkpoint-<step>: adapters or models), by method linear",
    )
    parser.add_argument(
        "--decay",
        type=float,
        metavar="D",
        help="with --checkpoints: moving average that keeps this share at each step (default: all alike)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to make")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="YAML or JSON with any of these settings")
    _add_method(parser)
    _add_output(parser)


def _add_method(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to merge")
    group.add_argument("--method", choices=methods(), metavar="METHOD", help="see below")
    group.add_argument(
        "--weights",
        metavar="NAME=W,...",
        help="weight of each member (linear, slerp, ties, dare_ties, model_stock: default all alike)",
    )
    group.add_argument(
        "--base-weight", type=float, metavar="W", help="linear, slerp: weight of the base itself"
    )
    group.add_argument(
        "--density", metavar="D", help=f"share of changes that is kept: {_PER_MEMBER} (default: 1)"
    )
    group.add_argument(
        "--gamma", metavar="G", help=f"breadcrumbs: share of largest changes that goes: {_PER_MEMBER}"
    )
    group.add_argument("--scale", type=float, metavar="S", help="factor on the merged change (lambda)")
    group.add_argument("--seed", type=int, metavar="N", help="dare: seed of what is dropped (default: 0)")
    group.add_argument(
        "--base-slerp",
        metavar="P",
        help=f"first move each member along the arc from the base (0) to itself (1): {_PER_MEMBER}",
    )
    group.add_argument(
        "--curve", metavar="F,F,...", help="factors on the weights from the first layer to the last"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--prompts-from",
        metavar="NAME",
        help="where prompts differ: whose prompts and pooling files to keep, 'base' or a member",
    )
    group.add_argument(
        "--shard-size", default="2GB", metavar="SIZE", help="most bytes per file (default: 2GB)"
    )
    group.add_argument("--overwrite", action="store_true", help="replace a merged folder that is there")
    group.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, write nothing"
    )
    group.add_argument(
        "--export",
        action="store_true",
        help="make a retriever folder with ONNX file and manifest of it; this loads the merged model",
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help="parameters merged at once (default: all cores)"
    )
    group.add_argument("--download", action="store_true", help="fetch hub names that are not cached")


def run(arguments: argparse.Namespace) -> int:
    """Merge.

    Raises:
        ConfigError: If the options do not fit together or the target is taken.
        MergeError: If the members do not fit the base, or hold NaN or infinite numbers.
        ModelFolderError: If a folder is missing or damaged.
    """
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads {arguments.threads}: at least one is needed.")
    shard_size = parse_size(arguments.shard_size)
    asked = _options(arguments)
    if arguments.recipe is not None:
        asked = asked.over(read_request(arguments.recipe))
    if arguments.checkpoints is not None:
        asked = _checkpoints(arguments, asked)
    request = asked.request()
    for package in ("torch", "safetensors"):
        require(package, extra="train", purpose="stm-train merge")
    from stm_training.merge.stream.stream import StreamedMerge

    started = time.perf_counter()
    with StreamedMerge(
        local_source(request.base, arguments.download),
        {name: local_source(source, arguments.download) for name, source in request.members.items()},
        request.recipe,
        prompts_from=request.prompts_from,
        shard_size=shard_size,
        threads=arguments.threads,
    ) as merge:
        _print_plan(request, merge)
        _check_target(merge, arguments)
        if arguments.dry_run:
            print("Nothing was written (--dry-run).")
            return 0
        if arguments.export:
            return _export(merge, request, arguments)
        peak = _write(merge, arguments.out, overwrite=arguments.overwrite)
    seconds = time.perf_counter() - started
    print(f"Wrote {arguments.out} in {seconds:.1f} s{_peak(peak)}.")
    print(f"Use it: stm-train export {arguments.out} --out RETRIEVER")
    return 0


def _options(arguments: argparse.Namespace) -> Asked:
    asked = Asked(base=arguments.base, prompts_from=arguments.prompts_from)
    for text in arguments.member:
        name, folder, weight = parse_member(text)
        if name in asked.members:
            raise ConfigError(f"--member {name!r} is given twice; give each member a name of its own.")
        asked.members[name] = folder
        if weight is not None:
            asked.weights[name] = weight
    asked.weights |= _weights(arguments.weights)
    for name in ("method", "base_weight", "scale", "seed"):
        if getattr(arguments, name) is not None:
            asked.fields[name] = getattr(arguments, name)
    for name in ("density", "gamma", "base_slerp"):
        if getattr(arguments, name) is not None:
            asked.fields[name] = parse_values(f"--{name.replace('_', '-')}", getattr(arguments, name))
    if arguments.curve is not None:
        asked.fields["curve"] = _curve(arguments.curve)
    return asked


def _checkpoints(arguments: argparse.Namespace, asked: Asked) -> Asked:
    """Checkpoints as members, with the weights of their mean."""
    if asked.members or asked.weights or asked.fields.get("method", "linear") != "linear":
        raise ConfigError("--checkpoints chooses members, weights and method linear itself; leave these out.")
    folders = {path.name: path for path in checkpoint_folders(arguments.checkpoints)}
    weights = checkpoint_weights(len(folders), decay=arguments.decay)
    return Asked(
        base=asked.base,
        members={name: str(path) for name, path in folders.items()},
        weights=dict(zip(folders, weights, strict=True)),
        fields=asked.fields | {"method": "linear"},
        prompts_from=asked.prompts_from,
    )


def _weights(text: str | None) -> dict[str, float]:
    if text is None:
        return {}
    weights = parse_values("--weights", text)
    if isinstance(weights, float):
        raise ConfigError(f"--weights {text}: say whose weight it is: NAME={text},...")
    return weights


def _curve(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--curve {text!r}: write numbers separated by commas, as 0,0.5,1.") from None


def local_source(source: str, download: bool) -> Path:
    """The folder of a member or base; the adapter inside where a run's expert folder is given."""
    from stm_training.finetune.source import resolve_source

    path = resolve_source(source, revision=None, local_files_only=not download)
    inner = path / "adapter"  # where a run keeps an expert's adapter
    return inner if (inner / "adapter_config.json").is_file() else path


def _print_plan(request: MergeRequest, merge: StreamedMerge) -> None:
    plan, recipe = merge.plan, request.recipe
    settings = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"method", "weights"})
    said = "".join(f", {name} {value}" for name, value in settings.items())
    print(f"{recipe.method}{said}")
    print(f"  base  {request.base}")
    for name, weight in recipe.weights.items():
        print(f"  {weight:<5g} {name}: {request.members[name]} ({merge.kind(name)})")
    numbers = sum(item.stored.numbers for item in plan.parameters)
    print(
        f"  {len(plan.parameters)} tensors with {numbers / 1e6:.1f} M numbers, {len(plan.merged)} merged, "
        f"the others copied; reads {_size(plan.read_bytes)}, writes {_size(plan.write_bytes)} in "
        f"{len(plan.files)} file{'s' if len(plan.files) > 1 else ''}"
    )
    print(
        f"  memory below {_size(plan.memory_limit)} above the imports (largest tensor "
        f"{_size(plan.largest_bytes)}; blocks of {plan.block:,} numbers, {plan.threads} threads)"
    )
    for note in plan.notes:
        print(f"  note: {note}")


def _check_target(merge: StreamedMerge, arguments: argparse.Namespace) -> None:
    if not arguments.export:
        merge.check_target(arguments.out, overwrite=arguments.overwrite)
        return
    require("onnx", extra="train", purpose="stm-train merge --export")
    from stm_training.export.folder_writer import check_target

    check_target(arguments.out, overwrite=arguments.overwrite)


def _write(merge: StreamedMerge, out: Path, *, overwrite: bool) -> int | None:
    from stm_training.merge.stream.memory import PeakMemory

    with _progress(merge.plan.write_bytes) as progress, PeakMemory() as memory:
        merge.write(out, overwrite=overwrite, progress=progress)
    return memory.peak


def _export(merge: StreamedMerge, request: MergeRequest, arguments: argparse.Namespace) -> int:
    """Merge into a folder that goes away again, and export that one."""
    from stm_training.export.folder_writer import write_retriever_folder
    from stm_training.finetune.backbone import BackboneSpec, load_backbone

    out: Path = arguments.out
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as scratch:
        folder = Path(scratch) / "merged"
        peak = _write(merge, folder, overwrite=False)
        print(f"Merged{_peak(peak)}.")
        manifest = write_retriever_folder(
            load_backbone(BackboneSpec(source=str(folder))),
            out,
            name=out.absolute().name,
            base=_base_record(request.base),
            experts=[{"name": name} for name in request.recipe.weights],
            merge=request.recipe.model_dump(mode="json"),
            overwrite=arguments.overwrite,
            progress=lambda step: print(f"{step} ...", file=sys.stderr),
        )
    print(f"Wrote {out}: {manifest.name}, {manifest.dimension} dimensions.")
    print(f"Use it: stm-train index DOCUMENTS --model {out} --out INDEX")
    return 0


def _base_record(source: str) -> dict[str, Any]:
    path = Path(source).expanduser()
    return {"name": path.resolve().name} if path.is_dir() else {"name": source, "hub_name": source}


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    from tqdm import tqdm  # comes with tokenizers, through huggingface-hub

    with tqdm(total=total, unit="B", unit_scale=True, desc="merging", disable=None, leave=False) as bar:
        yield bar.update


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"


def _peak(peak: int | None) -> str:
    return "" if peak is None else f", at most {_size(peak)} of memory above the imports"
