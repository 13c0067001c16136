"""The linter refuses prompts that know more than what is searched for, and says why."""

from __future__ import annotations

import pytest

from stm_training.prompting.candidates import make_prompt
from stm_training.prompting.generic import shipped_prompts
from stm_training.prompting.lint import PromptLinter

QUERIES = (
    "does vitamin c shorten a cold in adults",
    "asthma",
    "what helps against a runny nose in spring when pollen flies",
)


def rules(prompt: str, **settings: object) -> set[str]:
    linter = PromptLinter(queries=QUERIES, dataset_names=("my-clinic_qa",), **settings)  # type: ignore[arg-type]
    return {finding.rule for finding in linter.check(prompt)}


@pytest.mark.parametrize(
    ("prompt", "rule"),
    [
        ("Retrieve documents to maximise nDCG@10.", "metric"),
        ("Improve recall by finding passages.", "metric"),
        ("Find passages with high precision.", "metric"),
        ("Optimise the Mean Reciprocal Rank.", "metric"),
        ("Rank so that MAP is high.", "metric"),
        ("Get the MRR up.", "metric"),
        ("Put the answer in the top-10.", "metric"),
        ("Raise the hit rate.", "metric"),
        ("Find what the benchmark wants.", "test_data"),
        ("Answer queries of the test set.", "test_data"),
        ("Given a SciFact claim, find abstracts.", "test_data"),
        ("Find the FEVER evidence.", "test_data"),
        ("Search NFCorpus for answers.", "test_data"),
        ("Search My Clinic QA for answers.", "test_data"),
        ("Search myclinicqa for answers.", "test_data"),
        ("For example: Does vitamin C shorten a cold in adults?", "test_data"),
        ("Find help against a runny nose in spring when it rains.", "test_data"),
        ("Search https://example.org/docs for it.", "url"),
        ("Search www.example.com for it.", "url"),
        ("Search example.org for it.", "url"),
        ("Ask someone@example.net for it.", "url"),
        ("Find documents of 2019.", "date"),
        ("Find papers from the 1990s.", "date"),
        ("Find papers before March 3.", "date"),
        ("Find papers of 2021-05-04.", "date"),
        ("Find papers of 4 May.", "date"),
        ("Find trial NCT01234567.", "identifier"),
        ("Find what answers q17.", "identifier"),
        ("Find PMC 42.", "identifier"),
        ("Find 3f2504e0-4f89-11d3-9a0c.", "identifier"),
        ("Find documents for {query}.", "placeholder"),
        ("Find documents for <query>.", "placeholder"),
        ("Sure! Here is a better instruction.", "reply"),
        ("I'm sorry, I cannot do that.", "reply"),
        ("Find\n\ndocuments.", "form"),
        ("Find\na\nb\nc.", "form"),
        ("\nFind documents.", "form"),
        ("Find\tdocuments.", "form"),
        ("Find docu\u200bments.", "form"),
        ("```Find documents.```", "form"),
        ("Find documents. " * 30, "length"),
    ],
)
def test_a_prompt_that_says_too_much_is_refused_with_the_rule_that_it_breaks(prompt: str, rule: str) -> None:
    assert rules(prompt) == {rule}


@pytest.mark.parametrize(
    "prompt",
    [
        "query: ",
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ",
        "task: search result | query: ",
        "Given a scientific claim, retrieve documents that support or refute the claim",
        "Map the lay words to the expert text.",
        "Find passages about precision medicine and type 2 diabetes.",
        "Find what a patient with fever or asthma may take.",
        "Find the text that may answer precisely.",
        "Find passages on COVID-19.",
        "Finde den Abschnitt, der die Frage beantwortet.",
        "質問に答える文書を探してください。",
        "",
    ],
)
def test_a_prompt_that_says_what_is_searched_for_passes(prompt: str) -> None:
    assert rules(prompt) == set()


def test_every_shipped_instruction_passes_alone_and_in_its_template_and_none_is_there_twice() -> None:
    known = shipped_prompts()
    assert len(known) == len({text.casefold() for text in known}) >= 40
    for text in known:
        assert rules(text) == rules(make_prompt(text, "{instruction}\nQuery: ")) == set(), text


def test_the_reason_quotes_what_was_found() -> None:
    findings = PromptLinter(queries=QUERIES).check("Raise Recall: does vitamin C shorten a cold in adults")
    assert [str(finding) for finding in findings] == [
        "it names a measure of quality ('Recall')",
        "it copies words of a held-out query ('does vitamin c shorten a cold in adults')",
    ]


def test_copied_runs_are_found_in_scripts_without_spaces() -> None:
    linter = PromptLinter(queries=["花粉が飛ぶ春の鼻水には何が効きますか"])
    assert linter.check("花粉が飛ぶ春の鼻水には何がよいかを探す")
    assert not linter.check("春の鼻水について探す")


def test_a_prompt_that_would_cut_queries_off_is_refused_by_its_tokens() -> None:
    def words(texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    linter = PromptLinter(count_tokens=words, max_tokens=4)
    assert not linter.check("Find the right text.")
    assert [finding.rule for finding in linter.check("Find the one right text.")] == ["length"]
