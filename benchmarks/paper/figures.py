"""The figures that the papers print, for the tables: nDCG@10, from 0 to 1.

STM: arXiv 2602.04731, version 1. BMRetriever: arXiv 2404.18443.
"""

from __future__ import annotations

BACKBONES = {"qwen3-0.6b": "Qwen3-0.6B", "gemma-2b": "Gemma-2B", "phi-4-mini": "Phi4-3.8B"}
TASKS = (
    "FeedbackQARetrieval",
    "MedicalQARetrieval",
    "CUREv1",
    "PublicHealthQA",
    "NFCorpus",
    "TRECCOVID",
    "SciFact",
    "SCIDOCS",
    "NanoFEVERRetrieval",
    "ArguAna",
    "NanoQuoraRetrieval",
    "FiQA2018",
)
SHORT = tuple("FeedbQA MedQA CURE PubHQA NFC COVID SciFact SCIDOCS nFEVER ArguAna nQuora FiQA".split())

# Table 11: the tasks in the order above, then the means of the medical, the general, and all tasks.
_TABLE_11 = """
BM25: .563 .458 .355 .718 .321 .623 .686 .158 .809 .492 .863 .251 .532 .515 .525
Contriever 150M: .505 .592 .351 .694 .313 .448 .655 .171 .794 .484 .944 .274 .508 .533 .519
E5-large-v2 335M: .704 .699 .562 .856 .372 .666 .722 .205 .889 .464 .912 .411 .654 .576 .622
GTR-T5-XL 1.2B: .577 .692 .507 .713 .333 .601 .642 .157 .846 .528 .957 .442 .581 .586 .583
BMRetriever-2B: .587 .727 .471 .812 .347 .839 .729 .186 .940 .356 .960 .357 .645 .560 .609
LLM2Vec 3B: .708 .731 .490 .814 .385 .572 .746 .190 .864 .553 .953 .423 .635 .597 .619
STM Qwen3-0.6B: .681 .697 .487 .819 .340 .761 .681 .190 .865 .548 .967 .354 .638 .585 .616
STM Gemma-2B: .621 .717 .503 .864 .368 .793 .715 .201 .898 .479 .969 .338 .654 .577 .622
STM Phi4-3.8B: .697 .732 .531 .860 .382 .791 .744 .214 .853 .562 .969 .414 .677 .603 .646
"""
PER_TASK: dict[str, tuple[float, ...]] = {
    name: tuple(map(float, values.split()))
    for name, _, values in (line.partition(":") for line in _TABLE_11.strip().splitlines())
}

# Table 4: experts by slice, mean of the 12 tasks; SHN: synthetic hard negatives, PO: the best prompts.
SLICES = ("medical_synthetic", "medical_real", "search", "nlu")
EXPERTS: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "FT": {
        "qwen3-0.6b": (0.583, 0.568, 0.506, 0.546),
        "gemma-2b": (0.581, 0.591, 0.503, 0.520),
        "phi-4-mini": (0.611, 0.611, 0.497, 0.585),
    },
    "FT+SHN": {
        "qwen3-0.6b": (0.592, 0.583, 0.557, 0.563),
        "gemma-2b": (0.598, 0.575, 0.508, 0.559),
        "phi-4-mini": (0.605, 0.600, 0.591, 0.566),
    },
    "FT+PO": {
        "qwen3-0.6b": (0.594, 0.568, 0.566, 0.583),
        "gemma-2b": (0.599, 0.569, 0.567, 0.613),
        "phi-4-mini": (0.622, 0.574, 0.614, 0.619),
    },
    "FT+SHN+PO": {
        "qwen3-0.6b": (0.586, 0.587, 0.571, 0.555),
        "gemma-2b": (0.588, 0.549, 0.511, 0.569),
        "phi-4-mini": (0.607, 0.608, 0.599, 0.575),
    },
}

# All data at once, the best expert, and merges: means of medical / general / all tasks. The names of the rows
# are those of the files that hold our figures.
Means = tuple[float, float, float]
SYSTEMS: dict[str, tuple[str, dict[str, Means]]] = {
    "all-data": (
        "FT-all (1.4 M pairs)",
        {
            "qwen3-0.6b": (0.633, 0.551, 0.599),
            "gemma-2b": (0.638, 0.548, 0.600),
            "phi-4-mini": (0.655, 0.573, 0.621),
        },
    ),
    "all-data-shn": (
        "FT-all, synthetic hard negatives",
        {
            "qwen3-0.6b": (0.632, 0.555, 0.600),
            "gemma-2b": (0.637, 0.561, 0.605),
            "phi-4-mini": (0.661, 0.585, 0.629),
        },
    ),
    "best-expert": (
        "best single expert",
        {
            "qwen3-0.6b": (0.623, 0.553, 0.594),
            "gemma-2b": (0.647, 0.566, 0.613),
            "phi-4-mini": (0.654, 0.577, 0.622),
        },
    ),
    "ties": (
        "STM, TIES",
        {
            "qwen3-0.6b": (0.637, 0.585, 0.615),
            "gemma-2b": (0.651, 0.576, 0.619),
            "phi-4-mini": (0.669, 0.606, 0.643),
        },
    ),
    "linear": (
        "STM, linear",
        {
            "qwen3-0.6b": (0.638, 0.585, 0.616),
            "gemma-2b": (0.654, 0.577, 0.622),
            "phi-4-mini": (0.677, 0.603, 0.646),
        },
    ),
}

# BMRetriever, table 2, the four sets that its abstract's claims rest on.
BMRETRIEVER_TASKS = ("NFCorpus", "SciFact", "SCIDOCS", "TRECCOVID")
BMRETRIEVER: dict[str, tuple[float, float, float, float]] = {
    "410M": (0.321, 0.711, 0.167, 0.831),
    "2B": (0.351, 0.760, 0.199, 0.863),
    "7B": (0.364, 0.778, 0.201, 0.861),
}
