"""A transformers model in this process: nothing leaves it, and JSON is guaranteed by the decoding."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from stm_retriever.errors import ConfigError, ModelFolderError, ProviderError, require
from stm_retriever.folder import sha256_file
from stm_training.finetune.source import resolve_source
from stm_training.llm.base import Completion, LLMRequestError, Message, Request
from stm_training.llm.constrained import JsonGrammar
from stm_training.llm.telemetry import telemetry_off

_PURPOSE = "a language model in this process"


class LocalModel:
    """A causal language model from a folder or the hub's cache; one request at a time.

    The chat template is used where the tokenizer has one. Temperature 0 is greedy; above it, sampling is
    seeded by the request, so that the same request gets the same answer on the same machine. A JSON schema
    is kept by constrained decoding. Weights are loaded with the first request.

    Args:
        source: A folder, or a name in the cache.
        revision: Of a hub name.
        download: Allow a download where the cache has no copy.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: Of the weights; ``"auto"``: as they are stored.
        constrained: Keep to JSON schemas by llguidance; else they are only asked for in the prompt.

    Raises:
        ModelFolderError: If there is no such model, or it is not a language model.
        ProviderError: If the device is not there.
        MissingExtraError: If transformers or llguidance is not installed.
    """

    concurrency = 1

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        download: bool = False,
        device: str = "cpu",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        constrained: bool = True,
    ) -> None:
        telemetry_off()
        self._folder = resolve_source(source, revision=revision, local_files_only=not download)
        self._torch = require("torch", extra="train", purpose=_PURPOSE)
        self._transformers = require("transformers", extra="train", purpose=_PURPOSE)
        self._device = _device(self._torch, device)
        self._dtype = dtype
        self._constrained = constrained
        self._tokenizer = self._load_tokenizer()
        self._label = self._folder.name if self._folder.name == Path(source).name else source
        self._name = f"{self._label}@{_fingerprint(self._folder)}"
        self._lock = threading.Lock()
        self._model: Any = None
        self._grammar: JsonGrammar | None = None

    @property
    def name(self) -> str:
        """Label and a hash of the files: another model in the same folder never gets this one's answers."""
        return self._name

    def count_tokens(self, request: Request) -> int:
        """Tokens of the prompt, template included."""
        with self._lock:
            return len(self._prompt_ids(request.messages))

    def complete(self, request: Request) -> Completion:
        """Answer a request.

        Raises:
            LLMRequestError: If prompt and answer do not fit into the model.
        """
        with self._lock:
            if self._model is None:
                self._load_model()
            prompt = self._prompt_ids(request.messages)
            self._check_room(len(prompt), request.max_tokens)
            written = self._generate(prompt, request)
        finished = bool(written) and written[-1] in self._eos_ids()
        return Completion(
            text=self._tokenizer.decode(written, skip_special_tokens=True),
            model=self._label,
            prompt_tokens=len(prompt),
            completion_tokens=len(written),
            finish_reason="stop" if finished else "length",
        )

    def _generate(self, prompt: Sequence[int], request: Request) -> list[int]:
        torch = self._torch
        ids = torch.tensor([prompt], dtype=torch.long, device=self._device)
        sampling: dict[str, Any] = {"do_sample": request.temperature > 0}
        if request.temperature > 0:
            sampling["temperature"] = request.temperature
        else:  # a folder's own sampling settings would only bring a warning
            sampling.update(temperature=None, top_p=None, top_k=None)
        processors = self._transformers.LogitsProcessorList()
        if self._grammar is not None and request.json_schema is not None:
            processors.append(self._grammar.processor(request.json_schema.schema, request.max_tokens))
        with torch.inference_mode(), self._seeded(request.seed):
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.max_tokens,
                pad_token_id=self._pad_id(),
                logits_processor=processors,
                **sampling,
            )
        written: list[int] = output[0, len(prompt) :].tolist()
        return written

    @contextmanager
    def _seeded(self, seed: int | None) -> Iterator[None]:
        devices = [self._device] if self._device.type == "cuda" else []
        with self._torch.random.fork_rng(devices=devices):
            self._torch.manual_seed(0 if seed is None else seed)
            yield

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in messages],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,  # templates that know it: thoughts would only be paid for
            )
            ids = self._tokenizer(text, add_special_tokens=False, truncation=False, padding=False)
        else:
            turns = [f"{m.role.capitalize()}: {m.content}" for m in messages]
            text = "\n\n".join([*turns, "Assistant:"])
            ids = self._tokenizer(text, truncation=False, padding=False)
        found: list[int] = ids["input_ids"]
        return found

    def _check_room(self, prompt: int, answer: int) -> None:
        config = self._model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and prompt + answer > limit:
            reason = (
                f"the prompt has {prompt} tokens and the answer may have {answer}; the model takes {limit}"
            )
            message = f"{self._label}: {reason}. Split the documents into shorter passages."
            raise LLMRequestError(message, reason=reason)

    def _eos_ids(self) -> list[int]:
        stored = self._model.generation_config.eos_token_id
        found = stored if isinstance(stored, list) else [stored]
        return [one for one in (*found, self._tokenizer.eos_token_id) if one is not None]

    def _pad_id(self) -> int:
        pad = self._tokenizer.pad_token_id
        return int(self._eos_ids()[0] if pad is None else pad)

    def _load_tokenizer(self) -> Any:
        try:
            tokenizer = self._transformers.AutoTokenizer.from_pretrained(
                self._folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            message = (
                f"{self._folder} holds no tokenizer that transformers can load ({type(error).__name__}). "
                "Give a folder as transformers saves it, with tokenizer.json."
            )
            raise ModelFolderError(message) from error
        return tokenizer

    def _load_model(self) -> None:
        try:
            model, info = self._transformers.AutoModelForCausalLM.from_pretrained(
                self._folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=self._dtype,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError) as error:
            message = (
                f"{self._folder} holds no causal language model that transformers can load "
                f"({type(error).__name__}). Give a folder with config.json and model.safetensors of one."
            )
            raise ModelFolderError(message) from error
        if info["missing_keys"]:
            shown = ", ".join(sorted(info["missing_keys"])[:3])
            message = (
                f"{self._folder} lacks weights ({shown}), so it would write at random: an embedding model "
                "has no language-model head. Give the generating model's folder."
            )
            raise ModelFolderError(message)
        self._model = model.eval().to(self._device)
        if not self._eos_ids():
            message = f"{self._folder} names no end-of-sequence token, so no answer would end. Set eos_token."
            raise ModelFolderError(message)
        if self._constrained:
            width = int(self._model.get_output_embeddings().weight.shape[0])
            self._grammar = JsonGrammar(self._tokenizer, width, self._eos_ids())


def _device(torch: Any, name: str) -> Any:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        message = f"device={name!r} is none that torch knows. Use cpu, cuda or cuda:<number>."
        raise ConfigError(message) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        message = f"device={name!r} was asked for, and torch finds no CUDA device. Use cpu, or install CUDA."
        raise ProviderError(message)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _fingerprint(folder: Path) -> str:
    """Twelve digits of a hash over configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in (".json", ".jinja", ".safetensors"):
            digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()[:12]
