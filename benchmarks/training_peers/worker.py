"""One side of the training benchmark in a process of its own: trains when it is let, and reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gate import Channel, Gate, memory


def main(path: str) -> None:
    """Do the task of a file."""
    channel = Channel()
    task: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(task["threads"])
    if task["side"] == "ours":
        from ours import train
    else:
        from sentence_transformers_side import train
    imports = memory("VmRSS")
    losses, load = train(task, Gate(channel))
    on_gpu = torch.cuda.is_available()
    channel.say(
        event="trained",
        losses=losses,
        imports=imports,
        peak=torch.cuda.max_memory_allocated() if on_gpu else memory("VmHWM"),
        ndcg=dev_score(load(), task["dev"]) if task["dev"] else None,
    )


def dev_score(encode: Any, dev: dict[str, Any]) -> float:
    """Mean nDCG@10 over the development queries, among all of the problem's documents."""
    from stm_training.evaluate.metrics import mean, ndcg_at_k
    from stm_training.evaluate.ranking import rank

    queries, documents = dev["queries"], dev["documents"]
    run = rank(
        encode(list(queries.values())),
        encode(list(documents.values())),
        query_ids=list(queries),
        doc_ids=list(documents),
        k=10,
    )
    return mean(ndcg_at_k(run, dev["qrels"]))


if __name__ == "__main__":
    main(sys.argv[1])
