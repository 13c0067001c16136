"""Backbones: padding, order and batch mates never change a vector; the attention mode is what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stm_retriever.errors import ConfigError, ModelFolderError
from stm_retriever.folder import Prompts
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from tests.tiny_models import DECODERS, ENCODERS, FAMILIES, SENTENCES, WINDOW, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    built: dict[str, Path] = {}

    def build(family: str) -> Path:
        if family not in built:
            built[family] = build_tiny_model(family, tmp_path_factory.mktemp(family))
        return built[family]

    return build


@pytest.fixture(scope="module")
def backbone_of(folder_of: Callable[[str], Path]) -> Callable[..., Backbone]:
    loaded: dict[tuple[str, str], Backbone] = {}

    def load(family: str, attention: str = "auto") -> Backbone:
        key = (family, attention)
        if key not in loaded:
            loaded[key] = load_backbone(BackboneSpec(str(folder_of(family)), attention=attention))  # type: ignore[arg-type]
        return loaded[key]

    return load


def ids_of(backbone: Backbone, texts: list[str]) -> list[np.ndarray]:
    return backbone.tokenizer.encode(texts, "document")


def run(backbone: Backbone, ids: list[np.ndarray], side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    input_ids, mask = backbone.tokenizer.pad(ids, side=side)  # type: ignore[arg-type]
    with torch.no_grad():
        return backbone(torch.from_numpy(input_ids), torch.from_numpy(mask))


@pytest.mark.parametrize(
    ("family", "attention"),
    [*((name, "auto") for name in FAMILIES), *((name, "bidirectional") for name in DECODERS)],
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 40), min_size=5, max_size=5),
    side=st.sampled_from(["left", "right"]),
    order=st.randoms(use_true_random=False),
)
def test_neither_batch_mates_nor_padding_side_nor_order_change_a_vector(
    backbone_of: Callable[..., Backbone],
    family: str,
    attention: str,
    texts: list[str],
    cuts: list[int],
    side: str,
    order: object,
) -> None:
    backbone = backbone_of(family, attention)
    texts = [text[:cut] for text, cut in zip(texts, cuts, strict=False)]
    order.shuffle(texts)  # type: ignore[attr-defined]
    ids = ids_of(backbone, texts)
    together = run(backbone, ids, side)[1]
    alone = torch.cat([run(backbone, [row])[1] for row in ids])
    assert torch.allclose(together, alone, atol=TOLERANCE, rtol=0), float((together - alone).abs().max())
    assert torch.allclose(together.norm(dim=1), torch.ones(len(ids)), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_our_mask_gives_the_states_of_the_native_mask(
    backbone_of: Callable[..., Backbone], family: str
) -> None:
    backbone = backbone_of(family)
    ids = ids_of(backbone, [*SENTENCES[:3], "fever"])
    assert max(len(row) for row in ids) > 2 * WINDOW  # else no sliding window would show
    input_ids, mask = (torch.from_numpy(part) for part in backbone.tokenizer.pad(ids))
    with torch.no_grad():
        ours = backbone(input_ids, mask)[0]
        native = backbone.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(ours[mask.bool()], native[mask.bool()], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral", "gpt_neox"])
def test_bidirectional_decoders_match_the_native_mask_of_is_causal_false(
    folder_of: Callable[[str], Path], family: str
) -> None:
    backbone = load_backbone(BackboneSpec(str(folder_of(family)), attention="bidirectional"))
    ids = ids_of(backbone, list(SENTENCES[:3]))
    input_ids, mask = (torch.from_numpy(part) for part in backbone.tokenizer.pad(ids))
    backbone.model.config.is_causal = False
    with torch.no_grad():
        ours = backbone(input_ids, mask)[0]
        native = backbone.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(ours[mask.bool()], native[mask.bool()], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_token_reaches_an_early_state_iff_attention_is_bidirectional(
    backbone_of: Callable[..., Backbone], family: str
) -> None:
    def early_state_moves(backbone: Backbone) -> float:
        first = torch.arange(10, 10 + WINDOW)[None]
        second = first.clone()
        second[0, -1] += 1  # within every window of position 1
        everything = torch.ones_like(first)
        with torch.no_grad():
            moved = backbone(first, everything)[0][0, 1] - backbone(second, everything)[0][0, 1]
        return float(moved.abs().max())

    assert early_state_moves(backbone_of(family, "bidirectional")) > 1e-3
    if family in DECODERS:
        assert early_state_moves(backbone_of(family, "causal")) == 0.0


@pytest.mark.parametrize("family", ["mistral", "gemma", "phi3", "modernbert"])
def test_sliding_layers_do_not_look_past_their_window(
    backbone_of: Callable[..., Backbone], family: str
) -> None:
    mask = backbone_of(family)._pattern.masks(torch.ones(1, 20, dtype=torch.int64), torch.float32)
    sliding = mask["sliding_attention"] if isinstance(mask, dict) else mask
    seen_back = int((sliding[0, 0, 15, :16] == 0).sum())
    assert seen_back == (WINDOW + 1 if family == "modernbert" else WINDOW)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_pool_the_last_token_and_encoders_the_mean(
    backbone_of: Callable[..., Backbone], family: str
) -> None:
    backbone = backbone_of(family)
    ids = ids_of(backbone, list(SENTENCES[:2]))
    for side in ("left", "right"):
        states, vectors = run(backbone, ids, side)
        for row, tokens in enumerate(ids):
            span = slice(0, len(tokens)) if side == "right" else slice(states.shape[1] - len(tokens), None)
            own = states[row, span]
            expected = own[-1] if family in DECODERS else own.mean(dim=0)
            assert torch.allclose(vectors[row], expected / expected.norm(), atol=1e-6)


def test_cls_pooling_reads_the_first_token_under_both_padding_sides(
    folder_of: Callable[[str], Path],
) -> None:
    backbone = load_backbone(BackboneSpec(str(folder_of("bert")), pooling="cls"))
    ids = ids_of(backbone, [SENTENCES[0], "fever"])
    right, left = run(backbone, ids, "right"), run(backbone, ids, "left")
    assert torch.allclose(right[1], torch.nn.functional.normalize(right[0][:, 0], dim=-1), atol=1e-6)
    assert torch.allclose(left[1], right[1], atol=TOLERANCE)


@pytest.mark.parametrize("family", DECODERS)
def test_the_saved_tokenizer_itself_ends_every_text_with_one_eos(
    backbone_of: Callable[..., Backbone], family: str
) -> None:
    from tokenizers import Tokenizer

    backbone = backbone_of(family)
    raw = Tokenizer.from_str(backbone.tokenizer_json)
    for text in SENTENCES[:3]:
        ids = raw.encode(text).ids
        assert ids[-1] == backbone.eos_token_id
        assert ids[-2] != backbone.eos_token_id
        assert backbone.tokenizer.encode([text], "document")[0].tolist() == ids
    assert raw.truncation is None
    assert raw.padding is None


@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_texts_keep_their_last_special_token(folder_of: Callable[[str], Path], family: str) -> None:
    backbone = load_backbone(BackboneSpec(str(folder_of(family)), max_length=8))
    full = load_backbone(BackboneSpec(str(folder_of(family)), max_length=128))
    cut = ids_of(backbone, [SENTENCES[0]])[0]
    assert len(cut) == 8
    assert cut[-1] == ids_of(full, [SENTENCES[0]])[0][-1]


def test_a_tokenizer_that_appends_its_own_end_token_keeps_that_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    folder = build_tiny_model("qwen3", tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = "<|endoftext|>"  # not the eos_token that tokenizer_config.json names
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    backbone = load_backbone(BackboneSpec(str(folder)))
    assert backbone.eos_token_id == tokenizer.token_to_id(end)
    assert ids_of(backbone, ["fever"])[0].tolist().count(backbone.eos_token_id) == 1


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_pooling_prompts_and_length_come_from_a_sentence_transformers_folder(
    tmp_path: Path, family: str
) -> None:
    prompts = {"query": "find: ", "passage": "text: "}
    backbone = load_backbone(BackboneSpec(str(build_tiny_model(family, tmp_path, prompts=prompts))))
    assert backbone.pooling == ("mean" if family in ENCODERS else "last")
    assert backbone.prompts == Prompts(query="find: ", document="text: ")
    assert backbone.max_length == 96
    query, document = (
        encode_texts(backbone, ["fever"], role, precision="fp32") for role in ("query", "document")
    )
    assert float(np.abs(query - document).max()) > 1e-3


def test_a_spec_overrides_what_the_folder_says(tmp_path: Path) -> None:
    folder = build_tiny_model("qwen3", tmp_path, prompts={"query": "find: "})
    spec = BackboneSpec(
        str(folder), pooling="mean", attention="bidirectional", max_length=40, prompts=Prompts(query="ask: ")
    )
    backbone = load_backbone(spec)
    assert (backbone.pooling, backbone.attention, backbone.max_length) == ("mean", "bidirectional", 40)
    assert backbone.prompts == Prompts(query="ask: ")
    assert backbone.eos_token_id is None


def test_a_decoder_saved_with_is_causal_false_is_loaded_bidirectional(tmp_path: Path) -> None:
    folder = build_tiny_model("llama", tmp_path, is_causal=False)
    assert load_backbone(BackboneSpec(str(folder))).attention == "bidirectional"


@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_keeps_the_order_of_the_texts_whatever_the_batches(
    backbone_of: Callable[..., Backbone], family: str
) -> None:
    backbone = backbone_of(family)
    texts = [*SENTENCES, "fever", "a b c"]
    small = encode_texts(backbone, texts, "query", token_budget=40, precision="fp32")
    alone = np.concatenate([encode_texts(backbone, [text], "query", precision="fp32") for text in texts])
    assert small.dtype == np.float32
    assert np.abs(small - alone).max() <= TOLERANCE
    assert encode_texts(backbone, [], "query").shape == (0, backbone.dimension)


def test_encoding_reports_its_progress(backbone_of: Callable[..., Backbone]) -> None:
    seen: list[tuple[int, int]] = []
    encode_texts(
        backbone_of("bert"),
        list(SENTENCES),
        "query",
        token_budget=60,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (len(SENTENCES), len(SENTENCES))
    assert seen == sorted(seen)
    assert len(seen) > 1


def test_bf16_vectors_stay_close_to_fp32_ones(backbone_of: Callable[..., Backbone]) -> None:
    backbone = backbone_of("bert")
    fast = encode_texts(backbone, list(SENTENCES), "query")
    exact = encode_texts(backbone, list(SENTENCES), "query", precision="fp32")
    assert (fast * exact).sum(axis=1).min() > 0.999


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="nowhere"):
        load_backbone(BackboneSpec(str(tmp_path / "nowhere")))


def test_a_hub_name_that_is_not_in_the_cache_is_an_error_that_says_how_to_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelFolderError, match=r"no-such-organisation/no-such-model.*download"):
        load_backbone(BackboneSpec("no-such-organisation/no-such-model"))


def test_missing_weights_are_an_error_and_never_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = build_tiny_model("bert", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.0.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match="lacks 1 weights"):
        load_backbone(BackboneSpec(str(folder)))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = build_tiny_model("bert", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match="safetensors"):
        load_backbone(BackboneSpec(str(folder)))


def test_a_length_beyond_the_positions_is_an_error(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="158"):  # XLM-R keeps two rows of its table out of use
        load_backbone(BackboneSpec(str(folder_of("xlm_roberta")), max_length=160))


def test_an_encoder_cannot_be_made_causal(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="encoder"):
        load_backbone(BackboneSpec(str(folder_of("bert")), attention="causal"))


def test_a_module_that_cannot_be_reproduced_is_an_error(tmp_path: Path) -> None:
    folder = build_tiny_model("bert", tmp_path, prompts={"query": ""})
    modules = (folder / "modules.json").read_text().replace("models.Normalize", "models.Dense")
    (folder / "modules.json").write_text(modules)
    with pytest.raises(ModelFolderError, match="Dense"):
        load_backbone(BackboneSpec(str(folder)))


def test_a_decoder_without_an_eos_token_is_an_error_that_offers_mean_pooling(tmp_path: Path) -> None:
    folder = build_tiny_model("qwen3", tmp_path, eos_token_id=None)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("eos_token", "other_token"))
    with pytest.raises(ModelFolderError, match="mean"):
        load_backbone(BackboneSpec(str(folder)))
