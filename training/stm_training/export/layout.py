"""The small JSON files that make a folder readable by sentence-transformers 3 to 6 and their readers.

The legacy schema is written on purpose: sentence-transformers 5.4 and later read both, while older releases,
text-embeddings-inference, vLLM and llama.cpp know only this one. The two must not be mixed: 3.x rejects
the union of the keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from stm_retriever.folder import Prompts

# The first release with every key written here. A higher number would make older readers warn.
_SCHEMA_OF = "3.0.0"
_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt": "pooling_mode_mean_sqrt_len_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented UTF-8 JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_layout(
    folder: Path,
    *,
    prompts: Prompts,
    pooling: Literal["cls", "mean", "last"],
    dimension: int,
    max_length: int,
) -> None:
    """Writes modules.json, the pooling and normalising modules, the maximum length and the prompts.

    Args:
        folder: An existing folder.
        prompts: Written verbatim under the keys ``query`` and ``document``.
        pooling: Which tokens make the vector.
        dimension: Length of a vector.
        max_length: Longest input in tokens, special tokens included.
    """
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    # git and the hub drop empty folders, and some readers want to list this one
    write_json(folder / "2_Normalize" / "config.json", {})
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": dimension,
            **{key: name == pooling for name, key in _POOLING_KEYS.items()},
            "include_prompt": True,
        },
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": _SCHEMA_OF},
            "prompts": {"query": prompts.query, "document": prompts.document},
            # None, since a default would put the query's prompt before documents in a plain encode()
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
