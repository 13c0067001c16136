"""The snippets of the model card. Each is run by the tests, those of other programs in their environments."""

from __future__ import annotations

import json

from stm_retriever.folder import Manifest

_OURS = """\
from stm_retriever import Embedder

embedder = Embedder.load("{path}")
query = embedder.encode_query(["your question"])
documents = embedder.encode_document(["your passage"])
scores = query @ documents.T
"""
_SENTENCE_TRANSFORMERS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{path}")
query = model.encode_query(["your question"])
documents = model.encode_document(["your passage"])
scores = model.similarity(query, documents)
"""
_LANGCHAIN = """\
from langchain_stm import STMEmbeddings

embeddings = STMEmbeddings(model="{path}")
query = embeddings.embed_query("your question")
documents = embeddings.embed_documents(["your passage"])
"""
_LLAMA_INDEX = """\
from llama_index.embeddings.stm import STMEmbedding

embedding = STMEmbedding(model_name="{path}")
query = embedding.get_query_embedding("your question")
document = embedding.get_text_embedding("your passage")
"""
_OLDER_SENTENCE_TRANSFORMERS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{path}")
query = model.encode(["your question"], prompt_name="query")
documents = model.encode(["your passage"], prompt_name="document")
"""
_STOCK_LANGCHAIN = """\
from langchain_huggingface import HuggingFaceEmbeddings

embeddings = HuggingFaceEmbeddings(
    model_name="{path}",
    query_encode_kwargs={{"prompt_name": "query"}},
    encode_kwargs={{"prompt_name": "document"}},
)
query = embeddings.embed_query("your question")
documents = embeddings.embed_documents(["your passage"])
"""
_STOCK_LLAMA_INDEX = """\
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

embedding = HuggingFaceEmbedding(
    model_name="{path}", query_instruction={query}, text_instruction={document}
)
query = embedding.get_query_embedding("your question")
document = embedding.get_text_embedding("your passage")
"""
_FASTEMBED = """\
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

TextEmbedding.add_custom_model(
    model="{name}",
    pooling=PoolingType.{pooling},
    normalization=True,
    sources=ModelSource(hf="{path}"),
    dim={dimension},
    model_file="onnx/model.onnx",
)
model = TextEmbedding("{name}", specific_model_path="{path}")
query = next(model.embed([{query} + "your question"]))
documents = list(model.embed([{document} + "your passage"]))
"""
_PLAIN = """\
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = "{path}"
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.enable_truncation({max_length})
session = onnxruntime.InferenceSession(folder + "/onnx/model.onnx", providers=["CPUExecutionProvider"])


def encode(text):
    ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
    inputs = {{"input_ids": ids, "attention_mask": np.ones_like(ids)}}
    return session.run(["sentence_embedding"], inputs)[0][0]


query = encode({query} + "your question")
document = encode({document} + "your passage")
"""
_OPTIMUM = """\
import torch
from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import AutoTokenizer

model = ORTModelForFeatureExtraction.from_pretrained("{path}", subfolder="onnx", file_name="model.onnx")
tokenizer = AutoTokenizer.from_pretrained("{path}")


def encode(text):
    inputs = tokenizer([text], truncation=True, return_tensors="pt")
    states = model(**inputs).last_hidden_state
    pooled = {torch_pooling}
    return torch.nn.functional.normalize(pooled, dim=1)[0].detach().numpy()


query = encode({query} + "your question")
document = encode({document} + "your passage")
"""
# One text, so without padding.
_TORCH_POOLING = {"cls": "states[:, 0]", "mean": "states.mean(dim=1)", "last": "states[:, -1]"}
_FASTEMBED_POOLING = {"cls": "CLS", "mean": "MEAN", "last": "LAST_TOKEN"}

OURS = ("stm-retriever (no torch needed)", "sentence-transformers", "LangChain", "LlamaIndex")
OTHERS = (
    "sentence-transformers before 5",
    "LangChain's own class",
    "LlamaIndex's own class",
    "fastembed",
    "onnxruntime and tokenizers alone",
    "optimum-onnx",
)
_TEMPLATES = dict(
    zip(
        (*OURS, *OTHERS),
        (
            _OURS,
            _SENTENCE_TRANSFORMERS,
            _LANGCHAIN,
            _LLAMA_INDEX,
            _OLDER_SENTENCE_TRANSFORMERS,
            _STOCK_LANGCHAIN,
            _STOCK_LLAMA_INDEX,
            _FASTEMBED,
            _PLAIN,
            _OPTIMUM,
        ),
        strict=True,
    )
)


def snippet(title: str, manifest: Manifest, path: str) -> str:
    """Returns the Python lines that load a model in one program and encode a query and a document."""
    return _TEMPLATES[title].format(
        path=path,
        name=manifest.name,
        dimension=manifest.dimension,
        max_length=manifest.max_length,
        # JSON's quoting is Python's too
        query=json.dumps(manifest.prompts.query, ensure_ascii=False),
        document=json.dumps(manifest.prompts.document, ensure_ascii=False),
        torch_pooling=_TORCH_POOLING[manifest.pooling],
        pooling=_FASTEMBED_POOLING[manifest.pooling],
    )


def section(titles: tuple[str, ...], manifest: Manifest, path: str, *, heading: str = "###") -> str:
    """Returns the snippets of some programs as Markdown, each under its title."""
    return "\n".join(
        f"{heading} {title}\n\n```python\n{snippet(title, manifest, path)}```\n" for title in titles
    )
