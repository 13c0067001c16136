"""What is printed of a batch before training: the model's own tokens, prompts, cuts and counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stm_retriever.folder import Prompts
from stm_training.data.records import Pair
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.preview import preview_batch, shortened
from stm_training.finetune.settings import TrainSettings
from tests.tiny_models import SENTENCES, build_tiny_model

PROMPTS = Prompts(query="find: ", document="one: ")
SETTINGS = TrainSettings(batch_size=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: build_tiny_model(family, root / family) for family in ("bert", "qwen3")}


def backbone(folders: dict[str, Path], family: str, max_length: int = 64) -> Backbone:
    return load_backbone(BackboneSpec(str(folders[family]), max_length=max_length, prompts=PROMPTS))


ROWS = [
    Pair(query="Asthma attack", positive=SENTENCES[0], negatives=(SENTENCES[1], SENTENCES[2])),
    Pair(query="Gout", positive=SENTENCES[7], prompt="own: "),
]


def texts(lines: list[str], label: str) -> list[str]:
    return [line for line in lines if line.strip().startswith(label)]


def test_texts_are_read_back_from_the_tokens_with_prompts_and_special_tokens(
    folders: dict[str, Path],
) -> None:
    lines = preview_batch(backbone(folders, "bert"), ROWS, SETTINGS)
    first, second = texts(lines, "query")[:2]
    assert "[CLS] find : asthma attack [SEP]" in first
    assert "[CLS] own : gout [SEP]" in second
    assert "[CLS] one : asthma narrows the airways" in texts(lines, "positive")[0]


def test_a_decoders_texts_end_with_its_eos_and_the_lines_say_so(folders: dict[str, Path]) -> None:
    lines = preview_batch(backbone(folders, "qwen3"), ROWS, SETTINGS)
    seen = [line for line in lines if " tokens" in line and line.startswith("    ")]
    assert len(seen) == 5
    assert all(line.endswith("<|im_end|>") for line in seen)
    assert any("every text ends with <|im_end|>" in line for line in lines)
    assert not any(
        "every text ends" in line for line in preview_batch(backbone(folders, "bert"), ROWS, SETTINGS)
    )


def test_token_counts_are_those_of_the_models_input(folders: dict[str, Path]) -> None:
    model = backbone(folders, "bert")
    lines = preview_batch(model, ROWS, SETTINGS)
    [expected] = model.tokenizer.encode([ROWS[0].positive], "document")
    found = re.search(r"positive +(\d+) tokens", "\n".join(lines))
    assert found is not None
    assert int(found.group(1)) == len(expected)


def test_a_cut_text_is_told_with_both_lengths(folders: dict[str, Path]) -> None:
    lines = preview_batch(backbone(folders, "bert", max_length=12), ROWS, SETTINGS)
    assert re.search(r"positive +12 tokens, cut from \d\d", texts(lines, "positive")[0])
    assert re.search(r"documents: 12 to 12 tokens, median 12; 3 of 3 cut at 12", "\n".join(lines))
    assert "none cut" in "\n".join(preview_batch(backbone(folders, "bert"), ROWS, SETTINGS))


@pytest.mark.parametrize(("most", "used"), [(0, 0), (1, 1), (5, 2)])
def test_only_the_negatives_that_training_uses_are_shown_and_counted(
    folders: dict[str, Path], most: int, used: int
) -> None:
    settings = SETTINGS.model_copy(update={"hard_negatives": most})
    lines = preview_batch(backbone(folders, "bert"), ROWS, settings)
    assert len(texts(lines, "negative")) == used
    assert f"{used} hard negatives in {min(used, 1)} of 2 rows" in lines[-1]


def test_a_negative_that_answers_the_query_elsewhere_in_the_batch_is_not_used(
    folders: dict[str, Path],
) -> None:
    rows = [
        Pair(query="fever", positive="high temperature", negatives=("hot skin",)),
        Pair(query="fever", positive="hot skin"),
    ]
    assert not texts(preview_batch(backbone(folders, "bert"), rows, SETTINGS), "negative")


def test_rows_that_are_not_shown_are_counted(folders: dict[str, Path]) -> None:
    lines = preview_batch(backbone(folders, "bert"), ROWS, SETTINGS, rows=1)
    assert len(texts(lines, "query ")) == 1
    assert "2 rows, the first 1 shown" in lines[0]
    assert "of 2 rows" in lines[-1]


def test_a_long_text_keeps_its_start_and_its_end_on_one_line(folders: dict[str, Path]) -> None:
    assert shortened("a\nb\tc") == "a b c"
    short = shortened("start " + "x" * 500 + " end")
    assert len(short) < 180
    assert short.startswith("start xxx")
    assert short.endswith("xxx end")
    long = Pair(query="Gout", positive=" ".join(SENTENCES))
    lines = preview_batch(backbone(folders, "bert", max_length=128), [long], SETTINGS)
    assert max(map(len, lines)) < 220
    assert texts(lines, "positive")[0].endswith("[SEP]")
