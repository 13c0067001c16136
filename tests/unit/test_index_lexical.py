"""The lexical side ranks as a well-kept BM25 library does, on a collection that is published."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from stm_retriever import Document
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.lexical import match_expression
from stm_retriever.index.manifest import EmbedderRef
from stm_training.data.reading import read_beir
from stm_training.evaluate import metrics
from stm_training.evaluate.systems import judged_queries, run_bm25

DATA = Path(os.environ.get("STM_DATA", Path(__file__).parents[3] / "shared/data")) / "scifact"
EMBEDDER = EmbedderRef(name="none", fingerprint="sha256:0", dimension=1, variant="fp32")


@pytest.mark.parametrize(
    ("query", "expression"),
    [
        ("What is the Heart?", '"what" OR "heart"'),
        ("the of", '"the" OR "of"'),
        ("heart heart HEART", '"heart"'),
        ('sea" OR text:"x', '"sea" OR "text" OR "x"'),
        (" ?!", ""),
    ],
)
def test_a_query_is_any_of_its_words_and_nothing_else(query: str, expression: str) -> None:
    assert match_expression(query) == expression


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs SciFact: set STM_DATA to its parent folder")
def test_on_scifact_it_ranks_as_well_as_bm25s(tmp_path: Path) -> None:
    collection = read_beir(DATA, "test", allow_title_only=True)
    queries = judged_queries(collection)
    folder = IndexFolder.create(tmp_path / "index", embedder=EMBEDDER)
    documents = [Document(id=name, text=passage.content) for name, passage in collection.corpus.items()]
    folder.put(documents, np.ones((len(documents), 1), np.float32))
    ranked = folder.lexical(list(queries.values()), 10)
    folder.close()
    run = {
        name: [(document.id, score) for document, score in row]
        for name, row in zip(queries, ranked, strict=True)
    }
    ours = metrics.mean(metrics.ndcg_at_k(run, collection.qrels))
    theirs = metrics.mean(metrics.ndcg_at_k(run_bm25(collection, k=10), collection.qrels))
    assert ours == pytest.approx(theirs, abs=0.005)
    assert ours == pytest.approx(0.687, abs=0.005)  # published for BM25
