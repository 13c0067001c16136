"""The two sides of merge_speed.py, each run as a process of its own, and the models that they merge.

python benchmarks/merge_sides.py SIDE METHOD MODELS OUT REPORT.json DTYPE
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS, PEER = "stm-retriever", "mergekit"
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.4}
BASE_WEIGHT, DENSITY = 0.3, 0.5


@dataclass(frozen=True)
class Size:
    """Shape of a Qwen3 model, whose embedding is tied to its head."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    head: int = 128


SIZES = {
    "tiny": Size(vocabulary=4096, hidden=128, intermediate=384, layers=2, heads=2, key_heads=1),
    "0.1B": Size(vocabulary=65536, hidden=640, intermediate=1920, layers=12, heads=8, key_heads=4),
    "0.6B": Size(vocabulary=151936, hidden=1024, intermediate=3072, layers=28, heads=16, key_heads=8),
}


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Shape by name of all tensors."""
    queries, keys = size.heads * size.head, size.key_heads * size.head
    layer = {
        "input_layernorm": (size.hidden,),
        "post_attention_layernorm": (size.hidden,),
        "self_attn.q_norm": (size.head,),
        "self_attn.k_norm": (size.head,),
        "self_attn.q_proj": (queries, size.hidden),
        "self_attn.k_proj": (keys, size.hidden),
        "self_attn.v_proj": (keys, size.hidden),
        "self_attn.o_proj": (size.hidden, queries),
        "mlp.gate_proj": (size.intermediate, size.hidden),
        "mlp.up_proj": (size.intermediate, size.hidden),
        "mlp.down_proj": (size.hidden, size.intermediate),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size.vocabulary, size.hidden)}
    for number in range(size.layers):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (size.hidden,)}


def write_models(size: Size, folder: Path) -> int:
    """Write the base and three models near it; returns the count of parameters."""
    import torch
    from safetensors.torch import save_file

    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.key_heads,
        "head_dim": size.head,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    for place, name in enumerate(("base", *WEIGHTS)):
        tensors = {}
        for number, (key, shape) in enumerate(shapes(size).items()):
            numbers = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(number))
            if place:
                moves = torch.Generator().manual_seed(100_000 * place + number)
                numbers += 0.002 * torch.randn(shape, generator=moves)
            tensors[key] = numbers.to(torch.bfloat16)
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return sum(value.numel() for value in tensors.values())


def run_ours(method: str, folder: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Our side; always float32 inside, ``dtype`` is the peer's."""
    from stm_training.merge.recipe import MergeRecipe
    from stm_training.merge.stream.stream import merge_folders

    fields = {"base_weight": BASE_WEIGHT} if method == "linear" else {"density": DENSITY}
    recipe = MergeRecipe.model_validate({"method": method, "weights": WEIGHTS, **fields})
    imported = anonymous_bytes("self")
    started = time.perf_counter()
    merge_folders(folder / "base", {name: folder / name for name in WEIGHTS}, recipe, out)
    return {"seconds": time.perf_counter() - started, "after_imports": imported}


def run_peer(method: str, folder: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Their side, through mergekit's documented functions."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    density = {} if method == "linear" else {"density": DENSITY}
    models = [
        {"model": str(folder / name), "parameters": {"weight": weight, **density}}
        for name, weight in WEIGHTS.items()
    ]
    config: dict[str, Any] = {
        "merge_method": method,
        "dtype": dtype,
        "out_dtype": "bfloat16",
        "parameters": {"normalize": True},
    }
    if method == "linear":
        models.insert(0, {"model": str(folder / "base"), "parameters": {"weight": BASE_WEIGHT}})
    else:
        config["base_model"] = str(folder / "base")
    settings = MergeConfiguration.model_validate(config | {"models": models})
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=0)
    imported = anonymous_bytes("self")
    started = time.perf_counter()
    run_merge(settings, out_path=str(out), options=options)
    return {"seconds": time.perf_counter() - started, "after_imports": imported}


def anonymous_bytes(process: str) -> int:
    """Anonymous resident memory of a process by Linux's count; 0 once it is gone."""
    try:
        for line in Path(f"/proc/{process}/status").read_text("ascii", "replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    side, method, folder, out, report, dtype = sys.argv[1:]
    run = run_ours if side == OURS else run_peer
    Path(report).write_text(json.dumps(run(method, Path(folder), Path(out), dtype)), encoding="utf-8")
