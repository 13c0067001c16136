"""How many tokens fit: activations are measured on a few texts, and set against the memory that is free."""

from __future__ import annotations

import heapq
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stm_retriever.tokenization import Ids
from stm_training.data.records import Pair
from stm_training.data.whole_files import write_whole_text
from stm_training.finetune.collate import Collator
from stm_training.finetune.forward_pass import SHORT
from stm_training.finetune.free_memory import free_memory
from stm_training.finetune.gather import Ranks
from stm_training.finetune.gradcache import Encode
from stm_training.finetune.micro_batches import MicroBatch
from stm_training.finetune.random_state import RandomState
from stm_training.finetune.settings import TOKEN_BUDGET, TrainSettings

PROBE = "memory_probe.json"

# Of what is free. On a CPU the backward pass's own buffers come on top of what the graph holds, and the rest
# of the machine lives in the same memory; a device's peak already holds the former.
_SHARES = {"cuda": 0.8}
_SHARE = 0.5
_CANDIDATES = 16  # texts that are long in characters, among which the longest in tokens is looked for
_TOKENS = 512  # of the smaller of the two sizes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryPlan:
    """What a step may take at once.

    Attributes:
        token_budget: Padded tokens of a micro-batch.
        graph_tokens: Padded tokens whose activations may be held together; a batch of more is cached.
    """

    token_budget: int
    graph_tokens: int


@dataclass(frozen=True)
class Sample:
    """Activations of one forward pass with a graph.

    Attributes:
        rows: Texts.
        length: Tokens of each.
        bytes: What the graph holds beside the weights (CPU), or the device's peak over the whole pass and its
            backward.
    """

    rows: int
    length: int
    bytes: int


def plan_memory(
    settings: TrainSettings,
    *,
    model: nn.Module,
    encode: Encode,
    longest: Callable[[], Ids],
    device: torch.device,
    ranks: Ranks,
    file: Path,
    key: str,
) -> MemoryPlan:
    """Decide how much goes through the model at once.

    A ``token_budget`` in the settings is taken as it is and nothing is measured: one graph then holds at most
    one micro-batch. Otherwise the plan of an earlier call with the same inputs is read from the file, so that
    a resumed training cuts its batches as before; without one, memory is probed and the file written.

    Args:
        settings: ``token_budget``.
        model: The model in training mode.
        encode: Encodes a micro-batch with a graph.
        longest: Gives the longest text's ids.
        device: Where the model lies.
        ranks: All processes get the same plan: the least of any.
        file: Where the measurement is kept.
        key: Names the inputs of the training.

    Returns:
        The plan.
    """
    if settings.token_budget is not None:
        return MemoryPlan(settings.token_budget, settings.token_budget)
    kept = _read(file, key) if ranks.rank == 0 else None
    budget = ranks.largest(0 if kept is None else kept.token_budget)
    if budget:
        return MemoryPlan(budget, ranks.largest(0 if kept is None else kept.graph_tokens))
    ids = longest()
    samples = measure(model, encode, ids, device)
    record = _evaluate(
        samples, free_memory(device) // _sharers(device, ranks), _SHARES.get(device.type, _SHARE)
    )
    plan = MemoryPlan(ranks.smallest(record["token_budget"]), ranks.smallest(record["graph_tokens"]))
    if ranks.rank == 0:
        details = {"inputs": key, "device": str(device), "processes": ranks.size, "longest_text": len(ids)}
        write_whole_text(file, json.dumps({**details, **record, **asdict(plan)}, indent=1) + "\n")
    ranks.wait()
    if plan.token_budget < len(ids):
        logger.warning(
            "Memory for %d padded tokens is free, but the longest text has %d: it will be tried alone. Lower "
            "max_length, or free memory.",
            plan.token_budget,
            len(ids),
        )
    return plan


def measure(model: nn.Module, encode: Encode, ids: Ids, device: torch.device) -> list[Sample]:
    """Measure activations at two sizes, for the longest text and - on a CPU - the longest of the short ones.

    On a CPU short texts run another attention code, which keeps more per token. Weights, random numbers and
    gradients are left as they were.

    Args:
        model: Its parameters and buffers do not count.
        encode: Encodes a micro-batch with a graph.
        ids: Token ids of the longest text.
        device: Where the model lies.

    Returns:
        Two samples per length, the smaller first.
    """
    lengths = {len(ids), min(len(ids), SHORT)} if device.type == "cpu" else {len(ids)}
    measured = _device_peak if device.type == "cuda" else _saved_bytes
    before = RandomState.capture(device)
    samples: list[Sample] = []
    for length in sorted(lengths):
        few = max(1, _TOKENS // length)
        for rows in (few, 2 * few):
            part = _repeated(ids[:length], rows)
            samples.append(Sample(rows, length, measured(model, encode, part)))
    before.restore()
    return samples


def bytes_per_token(samples: Sequence[Sample]) -> float:
    """What a further padded token costs at the length where it costs most.

    The difference of two sizes leaves out what does not grow with them, such as bf16 copies of weights.
    """
    slopes = [
        (large.bytes - small.bytes) / ((large.rows - small.rows) * large.length)
        for small, large in zip(samples[::2], samples[1::2], strict=True)
    ]
    return max(1.0, *slopes)


def longest_ids(collator: Collator, pairs: Sequence[Pair]) -> Ids:
    """Token ids of the longest text among the pairs, looked for among those with most characters."""
    queries = heapq.nlargest(_CANDIDATES, pairs, key=lambda pair: len(pair.query) + len(pair.prompt or ""))
    documents = heapq.nlargest(
        _CANDIDATES, (text for pair in pairs for text in (pair.positive, *pair.negatives)), key=len
    )
    return max(collator.token_ids(collator.queries(queries) + collator.documents(documents)), key=len)


def _evaluate(samples: Sequence[Sample], free: int, share: float) -> dict[str, Any]:
    cost = bytes_per_token(samples)
    fits = max(1, int(free * share / cost))
    return {
        "token_budget": min(fits, TOKEN_BUDGET),
        "graph_tokens": fits,
        "token_budget_cap": TOKEN_BUDGET,
        "bytes_per_token": round(cost, 1),
        "free_bytes": free,
        "share": share,
        "samples": [asdict(sample) for sample in samples],
    }


def _sharers(device: torch.device, ranks: Ranks) -> int:
    """Processes that share a device's memory; launchers tell how many run on this machine."""
    if device.type != "cpu" or ranks.size == 1:
        return 1
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks.size)))


def _read(file: Path, key: str) -> MemoryPlan | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["inputs"] != key:
            return None
        return MemoryPlan(int(found["token_budget"]), int(found["graph_tokens"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or of another version: measured anew


def _repeated(ids: Ids, rows: int) -> MicroBatch:
    input_ids = torch.from_numpy(ids).repeat(rows, 1)
    return MicroBatch(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), rows=torch.arange(rows))


def _saved_bytes(model: nn.Module, encode: Encode, part: MicroBatch) -> int:
    """Bytes that the graph keeps for the backward pass, each storage once, without parameters and buffers."""
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vectors = encode(part)
    total = sum(found.values())
    del vectors
    return total


def _device_peak(model: nn.Module, encode: Encode, part: MicroBatch) -> int:
    device = next(model.parameters()).device
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    weights = [value for value in model.parameters() if value.requires_grad]
    torch.autograd.grad(encode(part).sum(), weights, allow_unused=True)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
