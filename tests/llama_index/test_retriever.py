import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document
from llama_index.core.schema import MetadataMode, NodeRelationship, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from qdrant_client import AsyncQdrantClient

from merger_plugins import MeanMerger
from merger_plugins.chroma import ChromaStore
from merger_plugins.errors import DimensionError, EmptyInputError, InputError, StoreError
from merger_plugins.llama_index import MergerNodePostprocessor, MergerRetriever
from merger_plugins.qdrant import AsyncQdrantStore, QdrantStore
from merger_plugins.stores import MergedStore
from tests.llama_index.apps import (
    QUESTION,
    App,
    PlainModel,
    WordModel,
    app,
    assert_same,
    documents,
    nothing_blocks,
    ranking,
    word_vector,
)

STORES = ("qdrant", "chroma", "back-filled qdrant", "back-filled chroma")


def ingest(store: MergedStore) -> None:
    for document in documents():
        store.ingest(document.id_, document.text, metadata=document.metadata)
    store.calibrate()


@pytest.fixture(scope="module")
def stores(apps: dict[str, App]) -> Iterator[dict[str, MergedStore]]:
    """Two of our own with contextual vectors, and two that LlamaIndex wrote."""
    made: dict[str, MergedStore] = {
        "qdrant": QdrantStore(":memory:", embedder=WordModel(), contextual=True),
        "chroma": ChromaStore(":memory:", embedder=WordModel(), contextual=True),
    }
    for store in made.values():
        ingest(store)
    made |= {f"back-filled {kind}": apps[kind].hook() for kind in ("qdrant", "chroma")}
    yield made
    for store in made.values():
        store.close()


# What it finds


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("mode", ["fused", "contextual", "section"])
def test_ids_and_scores_are_those_of_the_store(stores: dict[str, MergedStore], name: str, mode: Any) -> None:
    store = stores[name]
    if mode == "contextual" and name.startswith("back-filled"):
        with pytest.raises(InputError, match="no contextual"):
            MergerRetriever(store, mode=mode).retrieve(QUESTION)
        return
    hits = store.search(word_vector(QUESTION), 7, mode)
    got = MergerRetriever(store, mode=mode, similarity_top_k=7).retrieve(QUESTION)
    assert len(got) == len(hits) > 2
    assert [node.node_id for node in got] == [hit.id for hit in hits]
    np.testing.assert_allclose([node.score for node in got], [hit.score for hit in hits], atol=1e-6)
    assert [node.text for node in got] == [hit.text for hit in hits]
    assert [node.node.ref_doc_id for node in got] == [hit.document_id for hit in hits]


@pytest.mark.parametrize("name", STORES)
def test_document_mode_gives_chunks_of_the_best_documents_in_reading_order(
    stores: dict[str, MergedStore], name: str
) -> None:
    store = stores[name]
    hits = store.passages(word_vector(QUESTION), 6, per_document=3)
    made = MergerRetriever(store, mode="document", similarity_top_k=6, chunks_per_document=3)
    got = made.retrieve(QUESTION)
    assert [(node.node_id, node.score) for node in got] == [(hit.id, hit.score) for hit in hits]
    best = store.search(word_vector(QUESTION), 2, "document")
    assert [node.node.ref_doc_id for node in got] == [hit.document_id for hit in best for _ in range(3)]


@pytest.mark.parametrize("name", ["back-filled qdrant", "back-filled chroma"])
def test_a_back_filled_index_gives_the_nodes_that_llamaindex_wrote(
    apps: dict[str, App], stores: dict[str, MergedStore], name: str
) -> None:
    one = apps[name.split()[1]]
    theirs = {node.node_id: node.node for node in one.retrieved(k=200)}
    found = [
        node
        for mode in ("fused", "document")
        for node in MergerRetriever(stores[name], mode=mode, similarity_top_k=10).retrieve(QUESTION)
    ]
    assert len(found) > 10
    for node in found:
        assert node.node.to_dict() == theirs[node.node_id].to_dict()
        assert {NodeRelationship.PREVIOUS, NodeRelationship.NEXT} & node.node.relationships.keys()
        assert isinstance(node.node.start_char_idx, int)


@pytest.mark.parametrize("kind", ["qdrant", "chroma"])
def test_what_the_application_keeps_from_the_language_model_stays_kept(kind: str) -> None:
    one = app(kind)
    secret = Document(text="The lamp of the reef.", id_="new", metadata={"path": "/srv/notes", "year": 1})
    secret.excluded_llm_metadata_keys = ["path"]
    one.index.insert(secret)
    with one.hook() as hook:
        hook.backfill()
        (node,) = MergerRetriever(hook, similarity_top_k=1, doc_ids=["new"]).retrieve(QUESTION)
    assert node.node.metadata["path"] == "/srv/notes"
    assert "/srv/notes" not in node.get_content(MetadataMode.LLM)


async def test_a_node_that_the_host_cannot_read_is_named() -> None:
    one = app("qdrant")
    with one.hook() as hook:
        hook.backfill()
        (found,) = MergerRetriever(hook, similarity_top_k=1).retrieve(QUESTION)
        one.client.set_payload(one.collection, {"_node_content": "{not JSON"}, [found.node_id])
        with pytest.raises(StoreError, match=f"{found.node_id}.*_node_content.*cannot read"):
            MergerRetriever(hook, similarity_top_k=1).retrieve(QUESTION)


@pytest.mark.parametrize("kind", ["qdrant", "chroma"])
def test_merged_afterwards_the_text_is_in_reading_order(apps: dict[str, App], kind: str) -> None:
    one = apps[kind]
    (whole,) = [document.text for document in documents() if document.id_ == "tower"]
    with one.hook() as hook:
        found = MergerRetriever(hook, similarity_top_k=8, doc_ids=["tower"]).retrieve(QUESTION)
        made = MergerNodePostprocessor.from_index(one.index, mode="merge", hook=hook)
        (got,) = made.postprocess_nodes(found, query_str=QUESTION)
    starts = [node.node.start_char_idx for node in found]
    assert starts != sorted(starts)
    places = [whole.index(part) for part in got.text.split("\n\n")]
    assert places == sorted(places)


def test_metadata_and_offsets_of_our_own_chunks(stores: dict[str, MergedStore]) -> None:
    (node,) = MergerRetriever(stores["qdrant"], similarity_top_k=1).retrieve(QUESTION)
    (source,) = [one for one in documents() if one.id_ == node.node.ref_doc_id]
    assert node.node.metadata == source.metadata
    assert source.text[node.node.start_char_idx : node.node.end_char_idx] == node.text


# Filters


def where(key: str, value: Any, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilter:
    return MetadataFilter(key=key, value=value, operator=operator)


FILTERS: list[tuple[str, MetadataFilters, set[str]]] = [
    ("==", MetadataFilters(filters=[where("topic", "bees")]), {"bees"}),
    ("== number", MetadataFilters(filters=[where("year", 1871)]), {"bees"}),
    (
        "in",
        MetadataFilters(filters=[where("topic", ["bees", "lease"], FilterOperator.IN)]),
        {"bees", "lease"},
    ),
    (
        "in, as text",
        MetadataFilters(filters=[where("topic", "bees,lease", FilterOperator.IN)]),
        {"bees", "lease"},
    ),
    ("!=", MetadataFilters(filters=[where("topic", "bees", FilterOperator.NE)]), {"tower", "bread", "lease"}),
    (
        "nin",
        MetadataFilters(filters=[where("topic", ["bees", "tower"], FilterOperator.NIN)]),
        {"bread", "lease"},
    ),
    (">", MetadataFilters(filters=[where("year", 1871, FilterOperator.GT)]), {"bread", "lease"}),
    ("<=", MetadataFilters(filters=[where("year", 1871, FilterOperator.LTE)]), {"tower", "bees"}),
    (
        "or",
        MetadataFilters(filters=[where("topic", "bees"), where("year", 1873)], condition=FilterCondition.OR),
        {"bees", "lease"},
    ),
    (
        "nested",
        MetadataFilters(
            filters=[
                where("year", 1870, FilterOperator.GTE),
                MetadataFilters(
                    filters=[where("topic", "bees"), where("topic", "tower")], condition=FilterCondition.OR
                ),
                MetadataFilters(filters=[]),
            ]
        ),
        {"bees", "tower"},
    ),
    (
        "one key twice",
        MetadataFilters(
            filters=[where("year", 1870, FilterOperator.GT), where("year", 1873, FilterOperator.LT)]
        ),
        {"bees", "bread"},
    ),
    ("none", MetadataFilters(filters=[]), {"tower", "bees", "bread", "lease"}),
]


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("mode", ["fused", "section", "document"])
@pytest.mark.parametrize(("filters", "expected"), [case[1:] for case in FILTERS], ids=[c[0] for c in FILTERS])
def test_filters_choose_documents(
    stores: dict[str, MergedStore], name: str, mode: Any, filters: MetadataFilters, expected: set[str]
) -> None:
    made = MergerRetriever(stores[name], mode=mode, similarity_top_k=200, filters=filters)
    assert {node.node.ref_doc_id for node in made.retrieve(QUESTION)} == expected


@pytest.mark.parametrize("name", ["qdrant", "back-filled qdrant"])
def test_conditions_that_qdrant_alone_has(stores: dict[str, MergedStore], name: str) -> None:
    def found(*filters: Any, condition: FilterCondition = FilterCondition.AND) -> set[str | None]:
        chosen = MetadataFilters(filters=list(filters), condition=condition)
        made = MergerRetriever(stores[name], similarity_top_k=200, filters=chosen)
        return {node.node.ref_doc_id for node in made.retrieve(QUESTION)}

    everything = {"tower", "bees", "bread", "lease"}
    assert found(where("nothing", None, FilterOperator.IS_EMPTY)) == everything
    assert found(where("topic", None, FilterOperator.IS_EMPTY)) == set()
    assert found(where("topic", "bees"), where("year", 1870), condition=FilterCondition.NOT) == {
        "bread",
        "lease",
    }
    assert found(where("topic", ["bees", "lease"], FilterOperator.ANY)) == {"bees", "lease"}
    assert found(where("topic", ["bees", "lease"], FilterOperator.ALL)) == set()
    assert found(where("topic", "bees", FilterOperator.CONTAINS)) == {"bees"}
    assert found(where("topic", "bees", FilterOperator.TEXT_MATCH)) == {"bees"}


@pytest.mark.parametrize("operator", [FilterOperator.IS_EMPTY, FilterOperator.TEXT_MATCH, FilterOperator.ANY])
def test_an_operator_that_the_database_lacks_is_refused(
    stores: dict[str, MergedStore], operator: FilterOperator
) -> None:
    value = None if operator == FilterOperator.IS_EMPTY else "bees"
    made = MergerRetriever(
        stores["chroma"], filters=MetadataFilters(filters=[where("topic", value, operator)])
    )
    with pytest.raises(InputError, match=r"'topic'.*no form in Chroma, which knows ==, !="):
        made.retrieve(QUESTION)


def test_chroma_cannot_negate_a_whole_condition(stores: dict[str, MergedStore]) -> None:
    negated = MetadataFilters(filters=[where("year", 1, FilterOperator.GT)], condition=FilterCondition.NOT)
    with pytest.raises(InputError, match="Negate each one"):
        MergerRetriever(stores["chroma"], filters=negated).retrieve(QUESTION)


def test_one_equality_that_must_not_hold_is_not_taken_for_one_that_must(
    stores: dict[str, MergedStore],
) -> None:
    negated = MetadataFilters(filters=[where("topic", "bees")], condition=FilterCondition.NOT)
    got = MergerRetriever(stores["qdrant"], similarity_top_k=200, filters=negated).retrieve(QUESTION)
    assert {node.node.ref_doc_id for node in got} == {"tower", "bread", "lease"}
    with pytest.raises(InputError):
        MergerRetriever(stores["chroma"], filters=negated).retrieve(QUESTION)


@pytest.mark.parametrize("name", STORES)
def test_mappings_and_document_ids(stores: dict[str, MergedStore], name: str) -> None:
    for settings in ({"filters": {"topic": "bees"}}, {"doc_ids": ["bees"]}):
        got = MergerRetriever(stores[name], similarity_top_k=5, **settings).retrieve(QUESTION)
        assert [node.node.ref_doc_id for node in got] == ["bees"] * 5


# How often the query is embedded


@pytest.mark.parametrize("mode", ["fused", "document", "section"])
async def test_one_embedding_call_a_query(stores: dict[str, MergedStore], mode: Any) -> None:
    model = WordModel()
    made = MergerRetriever(stores["qdrant"], mode=mode, embed_model=model)
    one = made.retrieve(QUESTION)
    assert model.asked == {"query": 1}
    assert_same(one, await made.aretrieve(QUESTION))
    assert model.asked == {"query": 1, "query awaited": 1}
    bundle = QueryBundle(QUESTION, embedding=word_vector(QUESTION).tolist())
    assert_same(one, made.retrieve(bundle))
    assert model.asked == {"query": 1, "query awaited": 1}
    own = stores["qdrant"].embedder.source
    own.asked.clear()
    assert_same(one, MergerRetriever(stores["qdrant"], mode=mode).retrieve(QUESTION))
    assert own.asked == {"query": 1}
    assert_same(one, await MergerRetriever(stores["qdrant"], mode=mode).aretrieve(QUESTION))
    assert own.asked == {"query": 1, "query awaited": 1}


async def test_several_strings_to_embed_are_one_query(stores: dict[str, MergedStore]) -> None:
    strings = ["the lamp of the tower", "honey"]
    merged = MeanMerger().merge([word_vector(text) for text in strings])
    hits = stores["qdrant"].search(merged, 5, "fused")
    made = MergerRetriever(stores["qdrant"], similarity_top_k=5)
    for got in (
        made.retrieve(QueryBundle("?", custom_embedding_strs=strings)),
        await made.aretrieve(QueryBundle("?", custom_embedding_strs=strings)),
    ):
        assert [name for name, _ in ranking(got)] == [hit.id for hit in hits]


# Asynchronous


@pytest.fixture
async def in_the_loop() -> AsyncIterator[AsyncQdrantStore]:
    async with AsyncQdrantStore(
        AsyncQdrantClient(":memory:"), embedder=WordModel(), contextual=True
    ) as store:
        for document in documents():
            await store.ingest(document.id_, document.text, metadata=document.metadata)
        await store.calibrate()
        yield store


@pytest.mark.parametrize("mode", ["fused", "contextual", "document", "section"])
async def test_an_asynchronous_store_finds_the_same(
    stores: dict[str, MergedStore], in_the_loop: AsyncQdrantStore, mode: Any
) -> None:
    settings: dict[str, Any] = {
        "mode": mode,
        "similarity_top_k": 6,
        "filters": MetadataFilters(filters=[where("year", 1870, FilterOperator.GT)]),
    }
    got = await MergerRetriever(in_the_loop, **settings).aretrieve(QUESTION)
    assert_same(got, MergerRetriever(stores["qdrant"], **settings).retrieve(QUESTION))
    with pytest.raises(InputError, match="aretrieve"):
        MergerRetriever(in_the_loop, **settings).retrieve(QUESTION)


async def test_an_asynchronous_hook_serves_the_postprocessor(in_the_loop: AsyncQdrantStore) -> None:
    found = await MergerRetriever(in_the_loop, similarity_top_k=6).aretrieve(QUESTION)
    model = WordModel()
    made = MergerNodePostprocessor(hook=in_the_loop, embed_model=model)
    got = await made.apostprocess_nodes(found, query_str=QUESTION)
    assert len(got) == 6
    with pytest.raises(InputError, match="event loop"):
        made.postprocess_nodes(found, query_str=QUESTION)


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("mode", ["fused", "document", "section"])
async def test_nothing_blocks_the_event_loop(
    stores: dict[str, MergedStore], name: str, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MergerRetriever(stores[name], mode=mode, embed_model=PlainModel())
    backend = type(stores[name]._backend)
    watched = [(backend, "nearest"), (backend, "fetch"), (PlainModel, "_get_query_embedding")]
    with nothing_blocks(monkeypatch, *watched) as seen:
        await made.aretrieve(QUESTION)
    assert seen["PlainModel._get_query_embedding"] == 1
    assert seen[f"{backend.__name__}.nearest"] > 0


@pytest.mark.parametrize("name", [*STORES, "asynchronous"])
async def test_many_at_once_give_what_one_after_the_other_gives(
    stores: dict[str, MergedStore], in_the_loop: AsyncQdrantStore, name: str
) -> None:
    made = MergerRetriever(in_the_loop if name == "asynchronous" else stores[name], similarity_top_k=5)
    questions = [f"{QUESTION} {word}" for word in ["honey", "rent", "oven", "lamp"] for _ in range(8)]
    one_by_one: list[list[NodeWithScore]] = [await made.aretrieve(question) for question in questions]
    at_once = await asyncio.gather(*(made.aretrieve(question) for question in questions))
    assert len(at_once) == 32
    for one, other in zip(one_by_one, at_once, strict=True):
        assert_same(one, other)


# Bad input


@pytest.mark.parametrize("kind", ["qdrant", "chroma"])
@pytest.mark.parametrize("mode", ["fused", "document", "section"])
async def test_a_store_without_its_companion_names_the_call_that_makes_it(kind: str, mode: Any) -> None:
    made = MergerRetriever(app(kind).hook(), mode=mode)
    with pytest.raises(StoreError, match=r"no merged vectors.*backfill\(\)"):
        made.retrieve(QUESTION)
    with pytest.raises(StoreError, match=r"no merged vectors.*backfill\(\)"):
        await made.aretrieve(QUESTION)


def test_an_empty_store_finds_nothing() -> None:
    assert MergerRetriever(QdrantStore(":memory:", embedder=WordModel())).retrieve(QUESTION) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "chunks"}, "contextual, fused|fused, contextual"),
        ({"similarity_top_k": 0}, "similarity_top_k is 0"),
        ({"chunks_per_document": 0}, "chunks_per_document is 0"),
        ({"mode": "document", "doc_ids": ["bees"]}, "doc_ids"),
    ],
)
def test_settings_out_of_range_are_refused(
    stores: dict[str, MergedStore], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        MergerRetriever(stores["qdrant"], **settings)


def test_what_is_no_store_is_refused(apps: dict[str, App]) -> None:
    with pytest.raises(InputError, match=r"QdrantVectorStore arrived.*backfill\(\)"):
        MergerRetriever(apps["qdrant"].store)  # type: ignore[arg-type]


def test_a_query_of_another_model_is_refused(stores: dict[str, MergedStore]) -> None:
    with pytest.raises(DimensionError, match="dimension 7"):
        MergerRetriever(stores["qdrant"], embed_model=WordModel(dimension=7)).retrieve(QUESTION)


def test_an_empty_query_is_refused(stores: dict[str, MergedStore]) -> None:
    with pytest.raises(EmptyInputError):
        MergerRetriever(stores["qdrant"]).retrieve("  ")
