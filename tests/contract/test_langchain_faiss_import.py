"""Taking over folders of LangChain's FAISS store, and refusing pickles that do anything."""

from __future__ import annotations

import datetime
import io
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from langchain_stm import STMEmbeddings, import_faiss
from langchain_stm.faiss_pickle import read_docstore
from stm_retriever import ArtifactMismatchError, DataError, Embedder, IndexFolderError
from tests.contract.fruit_index import DOCUMENTS, QUESTION

TEXTS = [document.text for document in DOCUMENTS]
IDS = [document.id for document in DOCUMENTS]
METADATAS: list[dict[str, Any]] = [{"number": number, "tags": ["a", None, 1.5]} for number in range(5)]
_MODULE = "langchain_community.docstore.in_memory"


@pytest.fixture
def embeddings(tiny_embedder: Embedder) -> STMEmbeddings:
    return STMEmbeddings(embedder=tiny_embedder)


class InMemoryDocstore:
    """Pickles under the name of langchain-community's class, which need not be installed for that."""

    def __init__(self, documents: dict[str, Any]) -> None:
        self._dict = documents


class Named(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Python's own pickler, which can be told other names for classes."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is InMemoryDocstore:
            self.save(_MODULE)
            self.save("InMemoryDocstore")
            self.write(pickle.STACK_GLOBAL)
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch: ClassVar[dict[Any, Any]] = {**pickle._Pickler.dispatch, type: save_global}  # type: ignore[attr-defined]


def write_folder(
    folder: Path,
    vectors: Any,
    *,
    documents: Any = None,
    rows: Any = None,
    content: Any = None,
) -> Path:
    folder.mkdir(exist_ok=True)
    vectors = np.asarray(vectors, dtype=np.float32)
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(folder / "index.faiss"))
    if documents is None:
        documents = {
            name: Document(id=name, page_content=text, metadata=metadata)
            for name, text, metadata in zip(IDS, TEXTS, METADATAS, strict=True)
        }
    if rows is None:
        rows = dict(enumerate(documents))
    buffer = io.BytesIO()
    Named(buffer, protocol=4).dump((InMemoryDocstore(documents), rows) if content is None else content)
    (folder / "index.pkl").write_bytes(buffer.getvalue())
    return folder


def test_what_langchain_community_saved_is_taken_over(
    tmp_path: Path, embeddings: STMEmbeddings, recwarn: pytest.WarningsRecorder
) -> None:
    community = pytest.importorskip(
        "langchain_community.vectorstores", reason="langchain-community is not installed"
    )
    saved = community.FAISS.from_texts(TEXTS, embeddings, METADATAS, ids=IDS)
    saved.save_local(str(tmp_path / "faiss"), index_name="fruit")
    with import_faiss(tmp_path / "faiss", embeddings, tmp_path / "index", index_name="fruit") as store:
        assert store.similarity_search(QUESTION, k=5) == saved.similarity_search(QUESTION, k=5)
        assert len(store.retriever) == 5


def test_texts_metadata_ids_and_vectors_are_taken_over_and_one_text_is_embedded(
    tmp_path: Path, embeddings: STMEmbeddings, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = tiny_embedder.encode_document(TEXTS)
    folder = write_folder(tmp_path / "faiss", 3.0 * vectors)
    encode = Embedder.encode_document
    embedded: list[str] = []

    def counted(self: Embedder, texts: Any, **options: Any) -> Any:
        embedded.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(Embedder, "encode_document", counted)
    with import_faiss(folder, embeddings, tmp_path / "index") as store:
        assert embedded == TEXTS[:1]
        assert store.retriever.vectors_of(IDS) == pytest.approx(vectors, abs=1e-6)
        assert store.get_by_ids(IDS) == [
            Document(id=name, page_content=text, metadata=metadata)
            for name, text, metadata in zip(IDS, TEXTS, METADATAS, strict=True)
        ]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_the_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    buffer = io.BytesIO()
    community = pytest.importorskip(
        "langchain_community.docstore.in_memory", reason="langchain-community is not installed"
    )
    stored = community.InMemoryDocstore({"a": Document(page_content="text", metadata={"x": 1})})
    pickle.dump((stored, {0: "a"}), buffer, protocol=protocol)
    (tmp_path / "index.pkl").write_bytes(buffer.getvalue())
    assert read_docstore(tmp_path / "index.pkl") == ({"a": ("text", {"x": 1})}, {0: "a"})


class Touch:
    """What an attacker would pickle: unpickled as usual, it runs a command."""

    def __init__(self, target: Path, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("place", ["whole", "document", "metadata", "rows"])
@pytest.mark.parametrize("function", ["os.system", "builtins.eval", "builtins.getattr", "pathlib.Path.touch"])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(
    tmp_path: Path, embeddings: STMEmbeddings, place: str, function: str
) -> None:
    target = tmp_path / "touched"
    calls: dict[str, Touch] = {
        "os.system": Touch(target, os.system, f"touch {target}"),
        "builtins.eval": Touch(target, eval, f"open({str(target)!r}, 'w')"),
        "builtins.getattr": Touch(target, getattr, "x", "upper"),
        "pathlib.Path.touch": Touch(target, Path.touch, target),
    }
    evil = calls[function]
    contents: dict[str, dict[str, Any]] = {
        "whole": {"content": evil},
        "document": {"documents": {"a": evil}},
        "metadata": {"documents": {"a": Document(page_content="a", metadata={"x": evil})}},
        "rows": {"rows": {0: evil}},
    }
    folder = write_folder(tmp_path / "faiss", np.ones((1, 32)), **contents[place])
    with pytest.raises(DataError, match="not imported, and nothing was run"):
        import_faiss(folder, embeddings, tmp_path / "index")
    assert not target.exists()
    assert not (tmp_path / "index").exists()


def test_the_test_above_would_notice(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    pickle.loads(pickle.dumps(Touch(target, os.system, f"touch {target}")))
    assert target.exists()


def test_only_a_docstores_names_are_in_a_pickle_that_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "faiss", np.ones((5, 4)))
    opcodes = pickletools.genops((tmp_path / "faiss" / "index.pkl").read_bytes())
    assert {code.name for code, _, _ in opcodes} >= {"STACK_GLOBAL"}
    documents, rows = read_docstore(tmp_path / "faiss" / "index.pkl")
    assert type(documents) is dict and type(rows) is dict
    assert {type(value) for pair in documents.values() for value in pair} == {str, dict}


def test_metadata_of_other_classes_is_named(tmp_path: Path, embeddings: STMEmbeddings) -> None:
    dated = {"a": Document(page_content="a", metadata={"on": datetime.date(2024, 1, 1)})}
    folder = write_folder(tmp_path / "faiss", np.ones((1, 32)), documents=dated)
    with pytest.raises(DataError, match=r"datetime\.date"):
        import_faiss(folder, embeddings, tmp_path / "index")


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", b"\x80\x04K\x01.", b"\x80\x04]\x94(K\x01K\x02e.", b"\x80\x04"]
)
def test_what_is_no_docstore_is_a_typed_error(
    tmp_path: Path, embeddings: STMEmbeddings, content: bytes
) -> None:
    folder = write_folder(tmp_path / "faiss", np.ones((5, 32)))
    (folder / "index.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"index\.pkl"):
        import_faiss(folder, embeddings, tmp_path / "index")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"documents": {"a": "no document"}, "rows": {0: "a"}}, "no document under 'a'"),
        ({"rows": {"0": "apple"}}, "no numbers"),
        ({"rows": {0: "apple", 2: "pear", 3: "train", 4: "car", 5: "fever"}}, "0 to 4"),
        ({"rows": {0: "apple", 1: "gone", 2: "train", 3: "car", 4: "fever"}}, "'gone'"),
        ({"rows": {0: "apple"}}, "5 vectors"),
        ({"rows": [1, 2]}, "without documents or rows"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    tmp_path: Path, embeddings: STMEmbeddings, options: dict[str, Any], words: str
) -> None:
    folder = write_folder(tmp_path / "faiss", np.ones((5, 32)), **options)
    with pytest.raises(DataError, match=words):
        import_faiss(folder, embeddings, tmp_path / "index")


def test_missing_and_damaged_files_are_named(tmp_path: Path, embeddings: STMEmbeddings) -> None:
    with pytest.raises(DataError, match="nowhere"):
        import_faiss(tmp_path / "nowhere", embeddings, tmp_path / "index")
    folder = write_folder(tmp_path / "faiss", np.ones((5, 32)))
    (folder / "index.faiss").write_bytes(b"nothing of FAISS")
    with pytest.raises(DataError, match=r"index\.faiss"):
        import_faiss(folder, embeddings, tmp_path / "index")
    (folder / "index.faiss").unlink()
    with pytest.raises(DataError, match=r"no .*index\.faiss"):
        import_faiss(folder, embeddings, tmp_path / "index")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_pickle_gives_a_typed_error_or_a_docstore(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    whole = bytearray((write_folder(folder / "faiss", np.ones((5, 4))) / "index.pkl").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    (folder / "damaged.pkl").write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    try:
        documents, rows = read_docstore(folder / "damaged.pkl")
    except DataError:
        return
    assert {type(value) for pair in documents.values() for value in pair} <= {str, dict}
    assert {type(value) for pair in rows.items() for value in pair} <= {int, str}


def test_vectors_of_other_embeddings_are_refused(
    tmp_path: Path, embeddings: STMEmbeddings, tiny_embedder: Embedder
) -> None:
    folder = write_folder(tmp_path / "faiss", tiny_embedder.encode_document(TEXTS))
    with pytest.raises(ArtifactMismatchError, match="cosine"):
        import_faiss(folder, DeterministicFakeEmbedding(size=32), tmp_path / "index")
    with pytest.raises(ArtifactMismatchError, match="32 dimensions"):
        import_faiss(folder, DeterministicFakeEmbedding(size=8), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_index_that_is_there_is_not_written_over(
    tmp_path: Path, embeddings: STMEmbeddings, tiny_embedder: Embedder
) -> None:
    folder = write_folder(tmp_path / "faiss", tiny_embedder.encode_document(TEXTS))
    import_faiss(folder, embeddings, tmp_path / "index").close()
    with pytest.raises(IndexFolderError, match="already"):
        import_faiss(folder, embeddings, tmp_path / "index")
