"""Ids of a text: prompts, EOS, truncation, padding, batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stm_retriever import ConfigError, DataError, ModelFolderError
from stm_retriever.folder import Prompts
from stm_retriever.tokenization import TextTokenizer, check_texts, token_budget_batches
from stm_retriever.types import Role
from tests.tiny_retriever import CLS, EOS, PAD, PROMPTS, tiny_tokenizer


def tokenizer(
    *,
    inner: Tokenizer | None = None,
    max_length: int = 64,
    eos: int | None = EOS,
    prompts: Prompts = PROMPTS,
) -> TextTokenizer:
    return TextTokenizer(
        inner or tiny_tokenizer(), max_length=max_length, eos_token_id=eos, pad_token_id=PAD, prompts=prompts
    )


def ids_of(made: TextTokenizer, text: str, role: Role = "document") -> list[int]:
    return [int(number) for number in made.encode([text], role)[0]]


def test_each_role_gets_its_own_prompt_verbatim() -> None:
    plain = tokenizer(prompts=Prompts())
    made = tokenizer()
    assert ids_of(made, "red apple", "query") == ids_of(plain, "find: red apple")
    assert ids_of(made, "red apple", "document") == ids_of(plain, "passage: red apple")
    assert ids_of(made, "red apple", "query") != ids_of(made, "red apple", "document")


@pytest.mark.parametrize("appends_eos", [False, True])
def test_eos_is_there_exactly_once_whether_or_not_the_tokenizer_appends_it(appends_eos: bool) -> None:
    ids = ids_of(tokenizer(inner=tiny_tokenizer(appends_eos=appends_eos)), "red apple")
    assert ids[-1] == EOS
    assert ids.count(EOS) == 1
    assert ids[0] == CLS


def test_a_text_that_ends_with_the_eos_token_gets_no_second_one() -> None:
    assert ids_of(tokenizer(), "red apple </s>") == ids_of(tokenizer(), "red apple")


def test_a_model_without_eos_gets_none() -> None:
    assert EOS not in ids_of(tokenizer(eos=None), "red apple")


@pytest.mark.parametrize("appends_eos", [False, True])
def test_truncation_counts_prompt_specials_and_eos(appends_eos: bool) -> None:
    made = tokenizer(inner=tiny_tokenizer(appends_eos=appends_eos), max_length=8)
    long = "red green blue apple pear cherry fruit tree house"
    ids = ids_of(made, long)
    assert len(ids) == 8
    assert (ids[0], ids[-1]) == (CLS, EOS)
    whole = ids_of(tokenizer(), long)
    assert ids[1:-1] == whole[1:7]
    assert made.count([long, "red"], "document") == [len(whole), 5]


def test_a_text_of_exactly_the_maximum_is_not_cut() -> None:
    whole = ids_of(tokenizer(), "red green blue")
    assert ids_of(tokenizer(max_length=len(whole)), "red green blue") == whole


def test_truncation_and_padding_that_the_file_asks_for_are_switched_off() -> None:
    inner = tiny_tokenizer()
    inner.enable_truncation(5)
    inner.enable_padding(length=16, pad_id=PAD)
    ids = ids_of(tokenizer(inner=Tokenizer.from_str(inner.to_str())), "red green blue apple pear")
    assert ids == ids_of(tokenizer(), "red green blue apple pear")


def test_a_prompt_that_leaves_no_room_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"max_length=5 leaves no room for a document.*5 ids"):
        tokenizer(max_length=5, prompts=Prompts(document="find passage query"))


def test_padding_goes_to_either_side_and_is_masked() -> None:
    made = tokenizer()
    rows = made.encode(["red", "red green blue"], "query")
    right, right_mask = made.pad(rows, "right")
    left, left_mask = made.pad(rows, "left")
    assert right.dtype == right_mask.dtype == np.int64
    assert right[0].tolist() == [*rows[0].tolist(), PAD, PAD]
    assert left[0].tolist() == [PAD, PAD, *rows[0].tolist()]
    assert right_mask[0].tolist() == [1] * len(rows[0]) + [0, 0]
    assert left_mask[0].tolist() == [0, 0] + [1] * len(rows[0])
    assert right_mask[1].all() and left_mask[1].all()


@pytest.mark.parametrize("text", ["\ud800", "fine until \udfff here"])
def test_a_lone_surrogate_is_named_with_its_place(text: str) -> None:
    with pytest.raises(DataError, match=r"text number 1 holds a lone surrogate, U\+D[8F][0F][0F]"):
        tokenizer().encode(["fine", text], "document")


def test_what_is_no_list_of_texts_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Pass \[text\]"):
        check_texts("red", "query")
    with pytest.raises(DataError, match="query text number 1 is a int"):
        check_texts(["red", 7], "query")  # type: ignore[list-item]
    with pytest.raises(DataError, match="document text number 0 is empty"):
        check_texts([" \n"], "document")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    settings = {"max_length": 8, "eos_token_id": None, "pad_token_id": 0, "prompts": Prompts()}
    with pytest.raises(ModelFolderError, match="cannot be read"):
        TextTokenizer.from_file(path, **settings)  # type: ignore[arg-type]
    path.write_text("{}")
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json.*no tokenizer"):
        TextTokenizer.from_file(path, **settings)  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_batches_hold_every_index_once_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= budget or len(batch) == 1


def test_batches_are_sorted_by_length_and_a_budget_of_zero_is_an_error() -> None:
    assert token_budget_batches([3, 9, 3, 4], 9) == [[1], [3, 0], [2]]
    with pytest.raises(ConfigError, match="budget=0"):
        token_budget_batches([1], 0)
