"""What benchmarks/training_speed.py trains on: models, rows, batches, and the operations of a step."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm_training.data.reading import read_beir
from stm_training.data.records import Pair
from stm_training.demo.base_model import find_base
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.sampler import NoDuplicatesBatchSampler
from stm_training.recipe import expand_variables

SETS = ("disease_ontology", "medquad")
_POOL = 64  # batches of rows that the tuned peer's batches are grouped from

QWEN3_4L = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
QWEN3_06B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_POOLINGS = (
    "cls_token",
    "mean_tokens",
    "max_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)


@dataclass(frozen=True)
class Rows:
    """Training rows of one set, and a development problem.

    Attributes:
        rows: (query, positive) texts.
        tokens: (query, positive) token counts of each row, cut as in training.
        random: Batches as our sampler draws them, of row numbers.
        grouped: Batches of rows of like length, evenly over all lengths.
        dev: Queries, documents and judgements by id, of no training row.
    """

    rows: list[tuple[str, str]]
    tokens: list[tuple[int, int]]
    random: list[list[int]]
    grouped: list[list[int]]
    dev: dict[str, Any]

    @property
    def tokens_per_row(self) -> float:
        """Mean over all rows."""
        return sum(map(sum, self.tokens)) / len(self.tokens)

    def tokens_of(self, batch: Sequence[int]) -> int:
        """Tokens of a batch, without padding."""
        return sum(sum(self.tokens[row]) for row in batch)


def read_rows(
    name: str, backbone: Backbone, *, batch_size: int, steps: int, seed: int, dev: tuple[int, int]
) -> Rows:
    """Read a set's published train and cut rows, batches and a development problem from it.

    Args:
        name: Folder below STM_DATA.
        backbone: Counts tokens.
        batch_size: Rows per step.
        steps: Batches of each kind.
        seed: Of the draw.
        dev: Number of development queries, and of documents that they are ranked among.
    """
    train = read_beir(Path(expand_variables("${STM_DATA}")) / name, "train", "skip")
    queries = sorted(train.queries)
    random.Random(seed).shuffle(queries)
    held, rest = queries[: dev[0]], queries[dev[0] :]
    wanted = batch_size * max(_POOL, steps)
    rows = []
    for query in rest:
        positive = next((key for key, grade in train.qrels[query].items() if grade > 0), None)
        if positive is not None and train.corpus[positive].content.strip() and len(rows) < wanted:
            rows.append((train.queries[query], train.corpus[positive].content))
    counts = [backbone.tokenizer.encode([row[part] for row in rows], "document") for part in (0, 1)]
    tokens = [(len(query), len(positive)) for query, positive in zip(*counts, strict=True)]
    judged = {query: dict(train.qrels[query]) for query in held}
    needed = {key for grades in judged.values() for key in grades}
    others = [key for key in sorted(train.corpus) if key not in needed]
    sample = sorted(needed) + random.Random(seed).sample(
        others, min(len(others), max(0, dev[1] - len(needed)))
    )
    problem = {
        "queries": {query: train.queries[query] for query in held},
        "documents": {key: train.corpus[key].content for key in sample},
        "qrels": judged,
    }
    drawn = list(NoDuplicatesBatchSampler(as_pairs(rows), batch_size=batch_size, seed=seed, steps=steps))
    return Rows(rows, tokens, drawn, _grouped(tokens, batch_size, steps, seed), problem if dev[0] else {})


def as_pairs(rows: Sequence[tuple[str, str]]) -> list[Pair]:
    """Rows as our side is given them."""
    return [
        Pair(query, positive, query_id=f"q{row}", positive_id=f"d{row}")
        for row, (query, positive) in enumerate(rows)
    ]


def _grouped(tokens: Sequence[tuple[int, int]], size: int, steps: int, seed: int) -> list[list[int]]:
    """Batches by length of the positive, then of the query; of all that there are, every n-th."""
    order = sorted(range(len(tokens)), key=lambda row: (tokens[row][1], tokens[row][0]))
    batches = [order[first : first + size] for first in range(0, len(order) - size + 1, size)]
    places = [int((step + 0.5) * len(batches) / steps) for step in range(steps)]
    random.Random(seed).shuffle(places)
    return [batches[place] for place in places]


def write_qwen3(folder: Path, shape: Mapping[str, int], *, seed: int = 0) -> Path:
    """A random Qwen3 with MiniLM's tokenizer, last-token pooling, and 256 tokens per text."""
    import torch
    from transformers import AutoModel, Qwen3Config
    from transformers.utils import logging

    logging.disable_progress_bar()
    base = find_base()
    vocabulary = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = Qwen3Config(vocab_size=vocabulary, max_position_embeddings=512, pad_token_id=0, eos_token_id=102,
                         bos_token_id=None, use_cache=False, **shape)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "modules.json"):
        shutil.copyfile(base / name, folder / name)
    # [SEP] ends every text, so it is what last-token pooling reads.
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    pooling = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
    files = {
        "1_Pooling/config.json": {"word_embedding_dimension": shape["hidden_size"], **pooling},
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "similarity_fn_name": "cosine"},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


def models(scratch: Path) -> dict[str, Path]:
    """Folders of the models of the CPU's cells."""
    folder = scratch / "qwen3-4l"
    return {"minilm": find_base(), "qwen3-4l": write_qwen3(folder, QWEN3_4L)}


class StepCost:
    """Floating-point operations of a LoRA step on the tokens alone, a multiply-add counted as two.

    Frozen linear layers cost a forward product and the gradient of their input (the first layer's query, key
    and value have no input that learns); LoRA's factors cost both and the gradients of their weights. A
    GradCache's second forward pass, padding, norms and activations do not count: they are overhead.

    Args:
        folder: The model.
        rank: Of LoRA.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        import torch

        backbone = load_backbone(BackboneSpec(str(folder)))
        config = backbone.model.config
        layers = {
            name: module.weight.shape
            for name, module in backbone.model.named_modules()
            if type(module) is torch.nn.Linear and not name.startswith("pooler")
        }
        weights = sum(out * into for out, into in layers.values())
        first = [shape for name, shape in layers.items() if _is_first(name)]
        factors = sum(rank * (out + into) for out, into in layers.values())
        self.linear = 2 * (2 * weights - sum(out * into for out, into in first)) + 6 * factors
        """Per token."""
        width = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        causal = backbone.attention == "causal"
        # Two products of scores and values forward, four backward; half of them where tokens look back only.
        self.attention = config.num_hidden_layers * 12 * width * (0.5 if causal else 1.0)
        """Per token and token that it sees."""

    def of(self, lengths: Sequence[int]) -> float:
        """Operations of a step over texts of these many tokens."""
        return float(self.linear * sum(lengths) + self.attention * sum(length**2 for length in lengths))


def _is_first(name: str) -> bool:
    """Whether a layer reads the embeddings: query, key or value of layer 0."""
    parts = name.split(".")
    return "0" in parts and parts[-1] in {"query", "key", "value", "q_proj", "k_proj", "v_proj"}
