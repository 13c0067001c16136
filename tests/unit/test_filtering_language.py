"""Language: only what is surely in another language than its document is dropped."""

from __future__ import annotations

import sys
import types

import pytest

from stm_retriever.errors import ConfigError, MissingExtraError
from stm_training.filtering.language import LanguageCheck
from stm_training.filtering.settings import LanguageFilterSection

ENGLISH = (
    "Rocuronium acts on the adductor pollicis and the trapezius; acceleromyography shows when the conditions "
    "for intubation are good. Patients were watched for an hour after the operation, and none of them fell ill."
)
GERMAN = (
    "Heuschnupfen beginnt im Frühling, wenn die Birken blühen. Tabletten gegen Allergien helfen den meisten "
    "Menschen, und eine Impfung über drei Jahre kann die Beschwerden auf Dauer lindern."
)
JAPANESE = (
    "ダニは喘息の主な原因の一つです。寝具を毎週洗うとダニの数が減りますが、発作の数が必ず減るとは限りません。"
)


@pytest.fixture(scope="module")
def check() -> LanguageCheck:
    return LanguageCheck(LanguageFilterSection())


@pytest.mark.parametrize(
    ("query", "document", "problem"),
    [
        ("Welche Tabletten helfen den meisten Menschen gegen Heuschnupfen?", ENGLISH, ("de", "en")),
        ("Which tablets help most people who suffer from hay fever in spring?", GERMAN, ("en", "de")),
        ("Quels sont les médicaments les plus efficaces contre le rhume des foins ?", ENGLISH, ("fr", "en")),
        ("How often should the bedding be washed against house dust mites?", JAPANESE, ("en", "ja")),
        ("布団を毎週洗うと喘息の発作は減りますか。", ENGLISH, ("ja", "en")),
    ],
)
def test_a_query_in_another_language_is_found(
    check: LanguageCheck, query: str, document: str, problem: tuple[str, str]
) -> None:
    assert check.problem(query, document) == problem


@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("When are the conditions for intubation good?", ENGLISH),
        ("Was hilft auf Dauer gegen Heuschnupfen?", GERMAN),
        ("布団を毎週洗うと喘息の発作は減りますか。", JAPANESE),
        ("rocuronium acceleromyography trapezius adductor pollicis", ENGLISH),  # detected as Latin, 0.97
        ("Heuschnupfen", ENGLISH),  # too short to tell
        ("TNF IL-6 p53 MDM2 nutlin", ENGLISH),  # no language
    ],
)
def test_what_is_in_the_documents_language_or_undecided_is_kept(
    check: LanguageCheck, query: str, document: str
) -> None:
    assert check.problem(query, document) is None


def test_a_document_whose_language_is_unsure_drops_nothing(check: LanguageCheck) -> None:
    assert (
        check.problem("Welche Tabletten helfen den meisten Menschen gegen Heuschnupfen?", "BRCA1 BRCA2")
        is None
    )


def test_without_the_library_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(MissingExtraError, match=r"stm-retriever\[train\]"):
        LanguageCheck(LanguageFilterSection())


def test_an_old_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("py3langid.langid")
    old.LanguageIdentifier = type("LanguageIdentifier", (), {})  # type: ignore[attr-defined]
    old.MODEL_FILE = "model.plzma"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "py3langid.langid", old)
    with pytest.raises(ConfigError, match=r"py3langid>=0\.4"):
        LanguageCheck(LanguageFilterSection())
