"""A model in this process: JSON that always keeps to the schema, seeded answers, typed refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from stm_retriever.errors import ConfigError, LLMError, ModelFolderError, ProviderError
from stm_training.data.records import Passage
from stm_training.llm.base import JsonSchema, LLMRequestError, Message, Request
from stm_training.llm.local_model import LocalModel
from stm_training.synthesize.estimate import estimate
from stm_training.synthesize.run import synthesize
from tests.tiny_models import build_tiny_model

STRINGS = {"type": "array", "items": {"type": "string"}}
QUERIES = {
    "type": "object",
    "properties": {"queries": STRINGS},
    "required": ["queries"],
    "additionalProperties": False,
}
PAIR = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("query", "positive", "hard_negative")},
    "required": ["query", "positive", "hard_negative"],
    "additionalProperties": False,
}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"


def build_writer(family: str, folder: Path) -> Path:
    """A tiny random causal language model; random weights write anything that they are allowed to."""
    build_tiny_model(family, folder, max_position_embeddings=2048)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_writer("qwen3", tmp_path_factory.mktemp("models") / "writer")


@pytest.fixture(scope="module")
def model(writer: Path) -> LocalModel:
    return LocalModel(str(writer))


def request(
    text: str = "What helps?", schema: dict[str, Any] | None = None, *, seed: int = 0, **fields: Any
) -> Request:
    wanted = None if schema is None else JsonSchema("wanted", schema)
    return Request((Message("user", text),), seed=seed, json_schema=wanted, **{"max_tokens": 48, **fields})


def keeps_to(schema: dict[str, Any], value: Any) -> bool:
    names = list(schema["properties"])
    if not isinstance(value, dict) or list(value) != names:
        return False
    if schema is QUERIES:
        return isinstance(value["queries"], list) and all(isinstance(one, str) for one in value["queries"])
    return all(isinstance(value[name], str) for name in names)


@pytest.mark.parametrize("schema", [QUERIES, PAIR], ids=["queries", "pair"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_answer_keeps_to_the_schema_even_where_it_would_be_cut_off(
    model: LocalModel, schema: dict[str, Any], temperature: float
) -> None:
    for seed in range(6):
        for max_tokens in (60, 110):
            done = model.complete(
                request(schema=schema, seed=seed, temperature=temperature, max_tokens=max_tokens)
            )
            assert keeps_to(schema, json.loads(done.text)), done.text
            assert done.finish_reason == "stop"
            assert done.completion_tokens <= max_tokens


def test_the_schema_is_what_keeps_it_so(writer: Path, model: LocalModel) -> None:
    free = LocalModel(str(writer), constrained=False).complete(request(schema=QUERIES))
    with pytest.raises(json.JSONDecodeError):
        json.loads(free.text)
    assert json.loads(model.complete(request(schema=QUERIES)).text)
    with pytest.raises(json.JSONDecodeError):
        json.loads(model.complete(request()).text)  # no schema, no JSON


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_other_families_keep_to_it_too(family: str, tmp_path: Path) -> None:
    llm = LocalModel(str(build_writer(family, tmp_path / family)))
    for seed in range(3):
        assert keeps_to(QUERIES, json.loads(llm.complete(request(schema=QUERIES, seed=seed)).text))


def test_a_tokenizer_that_cannot_be_constrained_is_told_with_the_way_out(tmp_path: Path) -> None:
    folder = build_writer("mistral", tmp_path / "mistral")
    with pytest.raises(LLMError, match="constrained to false"):
        LocalModel(str(folder)).complete(request(schema=QUERIES))
    assert LocalModel(str(folder), constrained=False).complete(request()).text


def test_the_same_request_gets_the_same_answer_and_leaves_the_callers_randomness_alone(
    writer: Path, model: LocalModel
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = model.complete(request(seed=1, temperature=1.0))
    assert torch.equal(torch.rand(3), expected)
    assert model.complete(request(seed=1, temperature=1.0)) == first
    assert LocalModel(str(writer)).complete(request(seed=1, temperature=1.0)) == first
    assert model.complete(request(seed=2, temperature=1.0)).text != first.text
    greedy = {model.complete(request(seed=seed, temperature=0.0)).text for seed in (1, 2)}
    assert len(greedy) == 1


def test_the_chat_template_is_used_where_there_is_one(writer: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(writer, tmp_path / "chatty")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    talk = (Message("user", "Asthma?"), Message("assistant", "No."), Message("user", "Gout?"))

    def shown(llm: LocalModel) -> str:
        return str(tokenizer.decode(llm._prompt_ids(talk)))

    assert shown(LocalModel(str(folder))) == "<user>Asthma?<assistant>No.<user>Gout?<answer>"
    assert shown(LocalModel(str(writer))) == "User: Asthma?\n\nAssistant: No.\n\nUser: Gout?\n\nAssistant:"


def test_long_prompts_are_neither_cut_nor_padded_and_counted_as_they_are(model: LocalModel) -> None:
    long = request("asthma " * 200)  # the tokenizer's file says: truncate and pad to 24
    assert model.count_tokens(long) > 200
    assert model.complete(long).prompt_tokens == model.count_tokens(long)
    assert model.count_tokens(request("a")) < 24


def test_a_prompt_that_does_not_fit_is_one_failed_request_and_says_both_numbers(model: LocalModel) -> None:
    with pytest.raises(LLMRequestError, match=r"the answer may have 48; the model takes 2048"):
        model.complete(request("asthma " * 3000))


def test_another_model_in_the_same_folder_has_another_name(writer: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(writer, tmp_path / "writer")
    before = LocalModel(str(folder)).name
    assert before == LocalModel(str(writer)).name  # a copy is the same model
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace("128", "96")
    )
    assert LocalModel(str(folder)).name != before


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no language-model head"):
        LocalModel(str(build_tiny_model("qwen3", tmp_path / "embedder"))).complete(request())
    with pytest.raises(ModelFolderError, match="There is no model folder"):
        LocalModel(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFolderError, match="no tokenizer"):
        LocalModel(str(tmp_path / "empty"))


def test_a_device_that_is_not_there_is_an_error(writer: Path) -> None:
    with pytest.raises(ConfigError, match="none that torch knows"):
        LocalModel(str(writer), device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(ProviderError, match="no CUDA device"):
            LocalModel(str(writer), device="cuda")


def test_a_synthesis_in_this_process_gives_pairs_resumes_and_is_estimated_by_its_tokenizer(
    writer: Path, tmp_path: Path
) -> None:
    documents = [Passage(f"d{n}", f"Gout attack {n} begins at night in the big toe.") for n in range(3)]
    llm = LocalModel(str(writer))
    options: dict[str, Any] = {"kinds": ["question", "claim"], "negatives": False, "max_reasks": 0}
    foreseen = estimate(documents, llm, **options)
    result = synthesize(documents, llm, journal=tmp_path / "j", **options)
    assert foreseen.total.prompt_tokens == result.counts["prompt_tokens"] > 0
    assert result.counts["asked"] == foreseen.total.requests == 6
    assert result.counts["queries"] + len(result.failures) >= 6
    assert all(failure.reason.endswith("it holds no query") for failure in result.failures)
    again = synthesize(documents, LocalModel(str(writer)), journal=tmp_path / "j", **options)
    assert (again.counts["asked"], again.pairs) == (0, result.pairs)
