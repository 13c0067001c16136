"""Tiny random models with tokenizers, one per family that we promise, saved as transformers saves them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

SENTENCES = (
    "Asthma narrows the airways and makes breathing hard during an attack.",
    "An inhaler with a short acting drug opens the airways within minutes.",
    "Migraine is a headache on one side, often with nausea and fear of light.",
    "Iron tablets are taken for months when blood is short of iron.",
    "What helps against a runny nose in spring when pollen flies?",
    "Type 2 diabetes: the body no longer answers well to insulin.",
    "Fever, cough and chest pain may be signs of pneumonia.",
    "Gout attacks begin at night in the big toe; uric acid crystals cause them.",
    "How long should a broken wrist stay in a cast before it is moved again?",
    "High blood pressure is silent, yet it harms heart, kidneys and eyes.",
)
FAMILIES = (
    "qwen3",
    "llama",
    "mistral",
    "gemma",
    "phi3",
    "gpt_neox",
    "bert",
    "modernbert",
    "xlm_roberta",
)
DECODERS = FAMILIES[:6]
ENCODERS = FAMILIES[6:]

WINDOW = 6
"""Sliding window of mistral, gemma (Gemma 3), phi3 and modernbert (each side): it bites in most texts."""

_VOCABULARY = 400


class _Names(NamedTuple):
    """Special tokens of a family, in the order of their ids; ``None`` where it has none."""

    specials: tuple[str, ...]
    first: str | None
    last: str | None
    eos: str | None
    pad: str | None


_TOKENS = {
    "qwen3": _Names(("<|endoftext|>", "<|im_end|>"), None, None, "<|im_end|>", "<|endoftext|>"),
    "llama": _Names(("<|begin|>", "<|end|>"), "<|begin|>", None, "<|end|>", None),
    "mistral": _Names(("<unk>", "<s>", "</s>"), "<s>", None, "</s>", None),
    "gemma": _Names(("<pad>", "<eos>", "<bos>", "<unk>"), "<bos>", None, "<eos>", "<pad>"),
    "phi3": _Names(("<|endoftext|>", "<|end|>"), None, None, "<|endoftext|>", "<|endoftext|>"),
    "gpt_neox": _Names(("<|endoftext|>",), None, None, "<|endoftext|>", None),
    "bert": _Names(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS]", "[SEP]", None, "[PAD]"),
    "modernbert": _Names(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS]", "[SEP]", None, "[PAD]"),
    "xlm_roberta": _Names(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s>", "</s>", "</s>", "<pad>"),
}


def build_tiny_model(
    family: str, folder: Path, *, seed: int = 0, prompts: dict[str, str] | None = None, **config: Any
) -> Path:
    """Save a tiny random model and its tokenizer.

    Args:
        family: One of ``FAMILIES``.
        folder: Where to save; made if it is not there.
        seed: Seeds the weights.
        prompts: If given, the folder also gets the sentence-transformers files that store these prompts
            (mean pooling for encoders, last-token pooling for decoders).
        **config: Overrides of the model's configuration.

    Returns:
        The folder.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(family)
    names = _TOKENS[family]
    ids = {role: tokenizer.token_to_id(name) for role, name in _roles(names).items()}
    special_ids = {f"{role}_token_id": value for role, value in ids.items()}
    settings = _config(family, {**_sizes(), **special_ids, **config})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(settings)
    model.save_pretrained(folder)
    tokenizer.enable_truncation(24)  # as real files carry by accident; readers must reset both
    tokenizer.enable_padding(length=24, pad_id=ids.get("pad", 0), pad_token=names.pad or names.specials[0])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {f"{role}_token": name for role, name in _roles(names).items()}
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **tokens},
    )
    if prompts is not None:
        _write_sentence_transformers_files(folder, family, prompts, settings.hidden_size)
    return folder


def build_tokenizer(family: str) -> Any:
    """The family's kind of tokenizer, with a vocabulary learnt from a few sentences; always the same one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    names = _TOKENS[family]
    specials = list(names.specials)
    if family == "bert":
        normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        texts = [normalizer.normalize_str(sentence) for sentence in SENTENCES]
        vocabulary, _ = _learn_pieces(_words(splitter, texts), specials, inside="##")
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.decoder = normalizer, decoders.WordPiece()
    elif family in {"mistral", "gemma", "xlm_roberta"}:
        splitter = pre_tokenizers.Metaspace()
        vocabulary, merges = _learn_pieces(_words(splitter, SENTENCES), specials)
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
        tokenizer.decoder = decoders.Metaspace()
    else:
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(splitter.alphabet())
        vocabulary, merges = _learn_pieces(_words(splitter, SENTENCES), specials + alphabet)
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    if names.first is None and names.last is None:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # adds no token, as Qwen's
    else:
        wrapped = [name for name in (names.first, names.last) if name is not None]
        single = " ".join(part for part in (names.first, "$A", names.last) if part)
        pair = " ".join(part for part in (names.first, "$A", names.last, "$B", names.last) if part)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(name, tokenizer.token_to_id(name)) for name in wrapped]
        )
    return tokenizer


def _words(splitter: Any, texts: Iterable[str]) -> Counter[str]:
    return Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))


def _learn_pieces(
    words: Counter[str], first: list[str], inside: str = ""
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair encoding, with ties broken by the alphabet: the library's trainer breaks them by chance.

    Args:
        words: How often each word occurs.
        first: Tokens that get the first ids.
        inside: Put before a piece that does not begin its word (WordPiece's ``##``).

    Returns:
        The vocabulary of at most ``_VOCABULARY`` pieces, and the merges in their order.
    """
    split = {word: [word[0], *(inside + letter for letter in word[1:])] for word in words}
    pieces = list(dict.fromkeys([*first, *sorted({piece for parts in split.values() for piece in parts})]))
    merges: list[tuple[str, str]] = []
    while len(pieces) < _VOCABULARY:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        whole = left + right.removeprefix(inside)
        merges.append((left, right))
        pieces.append(whole)
        for word, parts in split.items():
            split[word] = _merged(parts, left, right, whole)
    return {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}, merges


def _merged(parts: list[str], left: str, right: str, whole: str) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and merged[-1] == left and part == right:
            merged[-1] = whole
        else:
            merged.append(part)
    return merged


def _sizes() -> dict[str, Any]:
    return {
        "vocab_size": _VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 160,
        "initializer_range": 0.3,  # large enough that attention matters
    }


def _config(family: str, values: dict[str, Any]) -> Any:
    import transformers

    grouped = {"num_key_value_heads": 2, "head_dim": 8}
    mixed = {"layer_types": ["sliding_attention", "full_attention"]}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "qwen3": ("Qwen3Config", grouped),
        "llama": ("LlamaConfig", grouped),
        "mistral": ("MistralConfig", {**grouped, "sliding_window": WINDOW}),
        "gemma": (
            "Gemma3TextConfig",
            {**grouped, **mixed, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
        ),
        "phi3": ("Phi3Config", {"num_key_value_heads": 2, "sliding_window": WINDOW}),
        "gpt_neox": ("GPTNeoXConfig", {}),
        "bert": ("BertConfig", {}),
        "modernbert": (
            "ModernBertConfig",
            {**mixed, "local_attention": 2 * WINDOW, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
        ),
        "xlm_roberta": ("XLMRobertaConfig", {"type_vocab_size": 1}),
    }
    name, extra = kinds[family]
    make: Callable[..., Any] = getattr(transformers, name)
    return make(**{**extra, **values})


def _roles(names: _Names) -> dict[str, str]:
    roles = {"bos": names.first, "eos": names.eos, "pad": names.pad}
    return {role: name for role, name in roles.items() if name is not None}


def _write_sentence_transformers_files(
    folder: Path, family: str, prompts: dict[str, str], dimension: int
) -> None:
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds)
    ]
    _write_json(folder / "modules.json", modules)
    flag = "pooling_mode_mean_tokens" if family in ENCODERS else "pooling_mode_lasttoken"
    flags = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    pooling = {f"pooling_mode_{name}": f"pooling_mode_{name}" == flag for name in flags}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": dimension, **pooling})
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 96, "do_lower_case": False})
    stored = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(folder / "config_sentence_transformers.json", stored)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
