"""STMRetriever in LangChain: ids, scores and metadata, k per call, callbacks, an event loop that goes on."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from langchain_stm import STMRetriever
from stm_retriever import (
    ArtifactMismatchError,
    ConfigError,
    DataError,
    Embedder,
    Hit,
    IndexFolderError,
    ModelFolderError,
    Retriever,
)
from stm_retriever import Document as STMDocument
from tests.contract.fruit_index import DOCUMENTS, QUESTION, make_fruit_index
from tests.contract.waiting_embedder import WaitingEmbedder, finishes_beside_a_heartbeat
from tests.tiny_retriever import make_tiny_retriever


@pytest.fixture
def index(tmp_path: Path, tiny_embedder: Embedder) -> Path:
    return make_fruit_index(tmp_path / "fruit", tiny_embedder)


@pytest.fixture
def retriever(index: Path) -> STMRetriever:
    return STMRetriever(index=str(index))


def hits(index: Path, k: int, **options: Any) -> list[Hit]:
    with Retriever.open(index, read_only=True) as opened:
        return opened.search(QUESTION, k, **options)


def ids(documents: Sequence[Document]) -> list[str | None]:
    return [document.id for document in documents]


def test_hits_scores_and_texts_are_those_of_the_retriever(retriever: STMRetriever, index: Path) -> None:
    found = [(item.id, item.metadata["score"], item.page_content) for item in retriever.invoke(QUESTION)]
    assert found == [(hit.id, hit.score, hit.text) for hit in hits(index, 4)]


async def test_ainvoke_gives_what_invoke_gives(retriever: STMRetriever) -> None:
    assert await retriever.ainvoke(QUESTION) == retriever.invoke(QUESTION)
    assert await retriever.ainvoke(QUESTION, k=1) == retriever.invoke(QUESTION, k=1)


def test_scores_fall_and_are_python_floats(retriever: STMRetriever) -> None:
    scores = [document.metadata["score"] for document in retriever.invoke(QUESTION)]
    assert scores == sorted(scores, reverse=True)
    assert {type(score) for score in scores} == {float}


def test_metadata_of_the_document_comes_back(retriever: STMRetriever) -> None:
    (pear,) = [item for item in retriever.invoke(QUESTION, k=5) if item.id == "pear"]
    assert pear.metadata == {"year": 2021, "score": pear.metadata["score"]}


def test_a_score_of_the_documents_own_is_kept_under_another_name(retriever: STMRetriever) -> None:
    (apple,) = [item for item in retriever.invoke(QUESTION, k=5) if item.id == "apple"]
    assert isinstance(apple.metadata["score"], float)
    assert apple.metadata["document_score"] == "grade A"


def test_the_other_name_gives_way_to_one_that_is_taken(tmp_path: Path, tiny_embedder: Embedder) -> None:
    own = {"score": 1, "document_score": 2, "start": 3, "parent_id": "mine"}
    with Retriever.create(tmp_path / "index", embedder=tiny_embedder) as writer:
        writer.add([STMDocument(id="x", text="apple", metadata=own, parent_id="p")])
    (found,) = STMRetriever(index=tmp_path / "index").invoke(QUESTION)
    score = found.metadata.pop("score")
    assert score == pytest.approx(hits(tmp_path / "index", 1)[0].score)
    assert found.metadata == {
        "document_score": 2,
        "document_document_score": 1,
        "start": 3,
        "parent_id": "p",
        "document_parent_id": "mine",
    }


def test_a_part_names_its_parent_and_its_place(retriever: STMRetriever) -> None:
    (car,) = [item for item in retriever.invoke(QUESTION, k=5) if item.id == "car"]
    assert (car.metadata["parent_id"], car.metadata["start"], car.metadata["end"]) == ("travel", 18, 51)


def test_grouping_by_parent_works_in_constructor_and_per_call(retriever: STMRetriever, index: Path) -> None:
    expected = [hit.id for hit in hits(index, 5, group_by_parent=True)]
    assert len(expected) == len(DOCUMENTS) - 1
    assert ids(retriever.invoke(QUESTION, k=5, group_by_parent=True)) == expected
    assert ids(STMRetriever(index=index, k=5, group_by_parent=True).invoke(QUESTION)) == expected


def test_k_per_call_goes_before_k_of_the_constructor(index: Path) -> None:
    retriever = STMRetriever(index=index, k=2)
    assert len(retriever.invoke(QUESTION)) == 2
    assert len(retriever.invoke(QUESTION, k=3)) == 3
    assert len(retriever.bind(k=1).invoke(QUESTION)) == 1


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_an_error(retriever: STMRetriever, index: Path, k: int) -> None:
    with pytest.raises(ConfigError, match=f"k={k}"):
        retriever.invoke(QUESTION, k=k)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        STMRetriever(index=index, k=k)


def test_an_empty_question_is_an_error(retriever: STMRetriever) -> None:
    with pytest.raises(DataError, match="empty"):
        retriever.invoke("")


def test_k_may_be_a_configurable_field_without_opening_the_index_again(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configurable = STMRetriever(index=index).configurable_fields(k=ConfigurableField(id="k"))
    monkeypatch.setattr(Retriever, "open", lambda *args, **options: pytest.fail("opened again"))
    assert len(configurable.invoke(QUESTION, {"configurable": {"k": 2}})) == 2
    assert len(configurable.invoke(QUESTION)) == 4


def test_the_index_may_be_a_configurable_field(index: Path, tmp_path: Path, tiny_embedder: Embedder) -> None:
    with Retriever.create(tmp_path / "other", embedder=tiny_embedder) as writer:
        writer.add([STMDocument(id="only", text="snow")])
    configurable = STMRetriever(index=index).configurable_fields(index=ConfigurableField(id="tenant"))
    assert ids(configurable.invoke(QUESTION, {"configurable": {"tenant": str(tmp_path / "other")}})) == [
        "only"
    ]
    assert len(configurable.invoke(QUESTION)) == 4


class Listener(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tags: list[str] | None = None
        self.metadata: dict[str, Any] | None = None
        self.found: list[str | None] = []

    def on_retriever_start(
        self,
        serialized: dict[str, Any],
        query: str,
        *,
        run_id: UUID,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.tags, self.metadata = tags, metadata

    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any) -> None:
        self.found = ids(documents)


def test_callbacks_hear_of_tags_metadata_and_documents(index: Path) -> None:
    listener = Listener()
    retriever = STMRetriever(index=index, tags=["handbook"], metadata={"team": "care"})
    found = retriever.invoke(QUESTION, {"callbacks": [listener], "tags": ["call"]})
    assert listener.found == ids(found)
    assert set(listener.tags or []) == {"handbook", "call"}
    assert (listener.metadata or {})["team"] == "care"
    assert (listener.metadata or {})["ls_embedding_model"] == "tiny"


async def test_asynchronous_callbacks_hear_of_the_documents(retriever: STMRetriever) -> None:
    listener = Listener()
    found = await retriever.ainvoke(QUESTION, {"callbacks": [listener]})
    assert listener.found == ids(found) != []


async def test_the_event_loop_goes_on_during_a_search(index: Path, tiny_onnx_retriever: Path) -> None:
    embedder = WaitingEmbedder(tiny_onnx_retriever)
    retriever = STMRetriever(index=index, embedder=embedder)
    found = await finishes_beside_a_heartbeat(embedder, retriever.ainvoke(QUESTION))
    assert len(found) == 4


async def test_many_searches_at_once_all_come_back(retriever: STMRetriever) -> None:
    questions = [f"{document.text} {number}" for number in range(6) for document in DOCUMENTS]
    assert await retriever.abatch(questions) == retriever.batch(questions)


def test_an_open_retriever_is_taken_as_it_is(index: Path) -> None:
    with Retriever.open(index) as opened:
        retriever = STMRetriever(retriever=opened, k=1)
        assert retriever.retriever is opened
        assert retriever.index == str(index)
        assert len(retriever.invoke(QUESTION)) == 1


def test_another_process_may_write_while_a_retriever_is_open(retriever: STMRetriever, index: Path) -> None:
    with Retriever.open(index) as writer:
        writer.add([STMDocument(id="new", text=QUESTION)])
    assert retriever.invoke(QUESTION, k=1)[0].id == "new"


def test_arguments_that_contradict_each_other_are_named(index: Path, tiny_embedder: Embedder) -> None:
    with pytest.raises(ConfigError, match="neither index= nor retriever="):
        STMRetriever()
    with Retriever.open(index) as opened, pytest.raises(ConfigError, match="embedder, index"):
        STMRetriever(retriever=opened, index=index, embedder=tiny_embedder)
    with pytest.raises(ConfigError, match="variant="):
        STMRetriever(index=index, embedder=tiny_embedder, variant="int8")


def test_an_unknown_option_is_named(index: Path) -> None:
    with pytest.raises(ValidationError, match="top_k"):
        STMRetriever(index=index, top_k=3)
    with pytest.raises(TypeError, match="top_k"):
        STMRetriever(index=index).invoke(QUESTION, top_k=3)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match="no-such-index"):
        STMRetriever(index=tmp_path / "no-such-index")


def test_an_index_whose_model_is_gone_says_which(tmp_path: Path) -> None:
    model = make_tiny_retriever(tmp_path / "model", name="lost")
    index = make_fruit_index(tmp_path / "fruit", Embedder.load(model, threads=1))
    model.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelFolderError, match="lost"):
        STMRetriever(index=index)
    moved = Embedder.load(tmp_path / "elsewhere", threads=1)
    assert len(STMRetriever(index=index, embedder=moved).invoke(QUESTION)) == 4


def test_another_model_than_the_indexs_is_refused(index: Path, tmp_path: Path) -> None:
    stranger = Embedder.load(make_tiny_retriever(tmp_path / "stranger", seed=7, name="stranger"), threads=1)
    with pytest.raises(ArtifactMismatchError, match=r"'tiny'.*'stranger'"):
        STMRetriever(index=index, embedder=stranger)


def test_variant_and_threads_reach_the_model(tmp_path: Path) -> None:
    model = make_tiny_retriever(tmp_path / "two", variants=("fp32", "w8"))
    index = make_fruit_index(tmp_path / "fruit", Embedder.load(model, threads=1))
    retriever = STMRetriever(index=index, variant="w8", threads=1)
    assert retriever.retriever.embedder.variant == "w8"
    assert len(retriever.invoke(QUESTION)) == 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
def test_a_copy_opens_the_index_for_itself(retriever: STMRetriever, duplicate: Any) -> None:
    twin = duplicate(retriever)
    assert twin.invoke(QUESTION) == retriever.invoke(QUESTION)
