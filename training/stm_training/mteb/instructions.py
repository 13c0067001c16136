"""The task instructions of the STM paper (arXiv 2602.04731, appendix) and its templates."""

from __future__ import annotations

QUERY_TEMPLATE = "{task}\nQuery: "
DOCUMENT_PROMPT = "Represent this passage\npassage: "

_CLAIM = "Given a claim, retrieve documents that support or refute the claim"
_QUESTION = "Given a question, retrieve relevant documents that best answer the question"
_PROFESSIONAL = (
    "Given a question by a medical professional, retrieve relevant passages that best answer the question"
)

PAPER_INSTRUCTIONS: dict[str, str] = {
    "FeedbackQARetrieval": _PROFESSIONAL,
    "MedicalQARetrieval": _PROFESSIONAL,
    "PublicHealthQA": _PROFESSIONAL,
    "CUREv1": _QUESTION,
    "NFCorpus": _QUESTION,
    "FiQA2018": _QUESTION,
    "TRECCOVID": "Given a query on COVID-19, retrieve documents that answer the query",
    "SciFact": "Given a scientific claim, retrieve documents that support or refute the claim",
    "SCIDOCS": "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper",
    "NanoFEVERRetrieval": _CLAIM,
    "ArguAna": "Given a claim, retrieve arguments that support or refute the claim",
    "NanoQuoraRetrieval": "Given a question, retrieve semantically similar questions",
}


def paper_query_prompts() -> dict[str, str]:
    """What the paper puts before the queries of each of its 12 tasks."""
    return {task: QUERY_TEMPLATE.format(task=said) for task, said in PAPER_INSTRUCTIONS.items()}
