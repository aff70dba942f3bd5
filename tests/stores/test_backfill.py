"""Back-fill of collections that LangChain, LlamaIndex or somebody's own code wrote."""

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from merger_plugins import CalibratedMerger, CalibrationStatistics, MeanMerger, load_embedder, load_merger
from merger_plugins.errors import (
    FingerprintError,
    InputError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    StoreVersionError,
)
from merger_plugins.qdrant import QdrantStore
from merger_plugins.stores import FusionWeights, MergedStore
from tests.stores.foreign import (
    FORMS,
    OPTIONS,
    corpus,
    create,
    document_name,
    mass_of,
    point_id,
    put,
    text_of,
)
from tests.stores.support import DIMENSION, CountingBackend, FailingBackend, informed, unit
from tests.strategies import chunk_vectors

COMPANION = "app__merged"


@pytest.fixture(params=["local", "edge"])
def client(request, tmp_path):
    if request.param == "local":
        made = QdrantClient(":memory:")
    else:
        pytest.importorskip("qdrant_edge")
        from tests.stores.edge import EdgeClient

        made = EdgeClient(tmp_path / "edge")
    yield made
    made.close()


@pytest.fixture
def local():
    made = QdrantClient(":memory:")
    yield made
    made.close()


def everything(client, collection="app"):
    points, offset = [], None
    while True:
        page, offset = client.scroll(collection, limit=500, offset=offset, with_vectors=True)
        points += [(p.id, p.payload, p.vector) for p in page]
        if offset is None:
            return points


def merged(client):
    """Sections, roots and contextual points by (document, kind, position)."""
    points = [(payload, vector) for _, payload, vector in everything(client, COMPANION)]
    kept = [(p, v) for p, v in points if p["kind"] in ("section", "root", "contextual")]
    made = {(p["document_id"], p["kind"], p["position"]): (p, np.array(v)) for p, v in kept}
    assert len(made) == len(kept)
    return made


def assert_merged(client, texts, merger, form="langchain"):
    """The companion holds what the merger makes of these documents, and nothing more."""
    found = merged(client)
    expected = {}
    for name, vectors in texts.items():
        masses = [mass_of(name, place) for place in range(len(vectors))]
        rolling = merger.rolling()
        rolling.extend(unit(vectors), masses=masses)
        called = document_name(form, name)
        ids = [point_id(name, place) for place in range(len(vectors))]
        expected[called, "root", 0] = (rolling.vector, len(vectors), ids if len(vectors) < 10 else None)
        if len(vectors) >= 10:
            for index, vector in enumerate(rolling.sections(1)):
                part = ids[10 * index : 10 * index + 10]
                expected[called, "section", 10 * index] = (vector, 10 * index + len(part), part)
    assert {key for key in found if key[1] != "contextual"} == expected.keys()
    for key, (vector, stop, ids) in expected.items():
        payload, stored = found[key]
        np.testing.assert_allclose(stored, vector, atol=1e-5)
        assert payload["stop"] == stop
        assert payload.get("chunks") == ids
        assert payload["fingerprint"] == merger.fingerprint


@pytest.mark.parametrize("form", FORMS)
def test_every_document_gets_its_root_and_sections_and_no_point_changes(client, form):
    texts = corpus()
    create(client, form)
    put(client, texts, form)
    before = everything(client)
    store = QdrantStore(client, "app", merger=informed())
    done = store.backfill(**OPTIONS[form])
    assert everything(client) == before
    assert_merged(client, texts, informed(), form)
    assert (done.chunks, done.documents, done.merged) == (
        sum(map(len, texts.values())),
        len(texts),
        len(texts),
    )
    assert done.left_out == {}
    assert done.ties == 0
    expected = {
        "langchain": ("LangChain", "metadata.source", ("metadata.start_index",), ""),
        "llama_index": ("LlamaIndex", "ref_doc_id", ("_node_content.start_char_idx",), "text-dense"),
        "by_hand": ("flat", "book", ("at",), ""),
    }
    assert (done.layout, done.group_by, done.order_by, done.vector) == expected[form]


@pytest.mark.parametrize("form", FORMS)
def test_such_a_collection_is_searched_on_every_level(client, form):
    texts = corpus()
    create(client, form)
    put(client, texts, form)
    QdrantStore(client, "app", merger=informed()).backfill(**OPTIONS[form])
    store = QdrantStore(client, "app", merger=informed())
    tree = merged(client)
    places = {point_id(name, i): (name, i) for name, vectors in texts.items() for i in range(len(vectors))}
    for seed in range(3):
        query = chunk_vectors(900 + seed, 1, DIMENSION)[0]
        direction = unit(query)
        own = {
            point_id(n, i): float(unit(v) @ direction) for n, vs in texts.items() for i, v in enumerate(vs)
        }
        best = sorted(own, key=lambda point: -own[point])
        hits = store.search(query, 7)
        assert [hit.id for hit in hits] == best[:7]
        for hit in hits:
            name, place = places[hit.id]
            assert (hit.document_id, hit.text) == (document_name(form, name), text_of(name, place))
            assert "page_content" not in hit.metadata
            assert "_node_content" not in hit.metadata

        roots = {key[0]: float(v @ direction) for key, (_, v) in tree.items() if key[1] == "root"}
        hits = store.search(query, 20, "document")
        assert [hit.document_id for hit in hits] == sorted(roots, key=lambda name: -roots[name])

        sections = {key: float(v @ direction) for key, (p, v) in tree.items() if p["level"] == 1}
        hits = store.search(query, 5, "section")
        ranked = sorted(sections, key=lambda key: -sections[key])
        assert [(hit.document_id, hit.position) for hit in hits] == [(key[0], key[2]) for key in ranked[:5]]
        for hit in hits:
            name = next(n for n in texts if document_name(form, n) == hit.document_id)
            assert hit.text == "\n".join(text_of(name, place) for place in range(hit.position, hit.stop))

        weights = FusionWeights()
        scores = {}
        for point, (name, place) in places.items():
            called = document_name(form, name)
            inside = sections.get((called, "section", place // 10 * 10), roots[called])
            scores[point] = own[point] + weights.section * inside + weights.root * roots[called]
        hits = store.search(query, 8, "fused")
        assert [hit.id for hit in hits] == sorted(scores, key=lambda point: -scores[point])[:8]
        for hit in hits:
            assert hit.score == pytest.approx(scores[hit.id], abs=1e-5)
            assert hit.position == places[hit.id][1]

        grouped = store.search(query, 4, group_by_document=True)
        first = {}
        for point in best:
            first.setdefault(places[point][0], point)
        assert [hit.id for hit in grouped] == list(first.values())[:4]


@pytest.mark.parametrize(
    ("form", "mapping", "key"),
    [("langchain", {"even": True}, "metadata.even"), ("llama_index", {"even": "True"}, "even")],
)
def test_filters_are_the_applications_own(local, form, mapping, key):
    create(local, form)
    put(local, corpus(), form)
    store = QdrantStore(local, "app", merger=informed())
    store.backfill()
    own = models.Filter(must=[models.FieldCondition(key=key, match=models.MatchValue(value=mapping["even"]))])
    negated = models.Filter(must_not=[own])
    query = chunk_vectors(900, 1, DIMENSION)[0]
    for level in ("chunk", "section", "document", "fused"):
        for chosen, even in ((mapping, True), (own, True), (negated, False)):
            hits = store.search(query, 300, level, filter=chosen)
            names = {hit.document_id for hit in hits}
            assert names == {name for name in corpus() if (int(name[1:]) % 2 == 0) == even}, level


@pytest.mark.parametrize("place", ["companion", "named"])
def test_contextual_vectors_go_where_they_are_wanted(local, place):
    texts = corpus()
    extra = {"contextual": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)}
    create(local, **(extra if place == "named" else {}))
    put(local, texts)
    before = everything(local)
    QdrantStore(local, "app", merger=informed()).backfill(contextual=place)
    expected = {}
    for name, vectors in texts.items():
        masses = [mass_of(name, i) for i in range(len(vectors))]
        made = informed().contextualize(unit(vectors), masses=masses)
        expected |= {point_id(name, i): vector for i, vector in enumerate(made)}
    if place == "named":
        after = everything(local)
        found = {point: vector["contextual"] for point, _, vector in after}
        raw = {point: vector if isinstance(vector, list) else vector[""] for point, _, vector in before}
        assert [(p, payload) for p, payload, _ in after] == [(p, payload) for p, payload, _ in before]
        assert {point: vector[""] for point, _, vector in after} == raw
    else:
        assert everything(local) == before
        found = {p["chunk"]: v for key, (p, v) in merged(local).items() if key[1] == "contextual"}
    assert found.keys() == expected.keys()
    for point, vector in expected.items():
        np.testing.assert_allclose(found[point], vector, atol=1e-5)
    store = QdrantStore(local, "app", merger=informed())
    query = chunk_vectors(901, 1, DIMENSION)[0]
    cosines = {point: float(vector @ unit(query)) for point, vector in expected.items()}
    hits = store.search(query, 6, "contextual")
    assert [hit.id for hit in hits] == sorted(cosines, key=lambda point: -cosines[point])[:6]
    assert all(hit.text for hit in hits)
    for hit in store.search(query, 6, "fused"):
        assert hit.parts.chunk == pytest.approx(cosines[hit.id], abs=1e-5)
    some = store.search(query, 300, "contextual", filter={"source": "d3"}, group_by_document=True)
    assert [hit.document_id for hit in some] == ["d3"]


def test_it_calibrates_on_the_collection_and_needs_no_merger_afterwards(local):
    texts = corpus()
    create(local)
    put(local, texts)
    done = QdrantStore(local, "app").backfill()
    statistics = CalibrationStatistics.of([unit(texts[name]) for name in sorted(texts)])
    expected = CalibratedMerger(statistics=statistics, dimension=DIMENSION)
    assert done.calibration_vectors == statistics.vectors
    reopened = QdrantStore(local, "app")
    assert reopened.merger.fingerprint == done.fingerprint
    assert_merged(local, texts, reopened.merger)
    query = chunk_vectors(902, 1, DIMENSION)[0]
    np.testing.assert_allclose(reopened.merger.merge(texts["d5"]), expected.merge(texts["d5"]), atol=1e-4)
    assert reopened.search(query, 3, "document")


class TestAgain:
    def test_nothing_is_written_where_nothing_changed(self, local):
        create(local)
        put(local, corpus())
        QdrantStore(local, "app").backfill()
        before = everything(local, COMPANION)
        backend = CountingBackend(local, "app")
        done = MergedStore(backend).backfill()
        assert done.merged == done.removed == 0
        assert backend.written == {}
        assert everything(local, COMPANION) == before

    def test_only_what_changed_is_merged(self, local):
        texts = corpus()
        create(local)
        put(local, texts)
        store = QdrantStore(local, "app", merger=informed())
        store.backfill()
        longer = np.concatenate([texts["d6"], chunk_vectors(5, 9, DIMENSION)])
        changed = texts["d3"].copy()
        changed[4] = chunk_vectors(6, 1, DIMENSION)[0]
        now = {
            **texts,
            "d6": longer,
            "d3": changed,
            "d5": texts["d5"][:8],
            "d90": chunk_vectors(7, 3, DIMENSION),
        }
        del now["d1"]
        put(local, {name: now[name] for name in ("d6", "d3", "d90")})
        local.delete("app", [point_id("d1", i) for i in range(len(texts["d1"]))])
        local.delete("app", [point_id("d5", i) for i in range(8, len(texts["d5"]))])
        done = store.backfill()
        assert (done.merged, done.removed) == (4, 1)
        assert_merged(local, now, informed())

    def test_changed_metadata_reaches_the_roots(self, local):
        create(local)
        put(local, corpus())
        store = QdrantStore(local, "app", merger=informed())
        store.backfill()
        local.set_payload("app", {"tag": "new"}, [point_id("d2", i) for i in range(9)], key="metadata")
        assert store.backfill().merged == 1
        assert merged(local)["d2", "root", 0][0]["metadata"]["tag"] == "new"

    def test_a_collection_that_grew_by_half_is_calibrated_again(self, local):
        texts = corpus()
        create(local)
        put(local, texts)
        first = QdrantStore(local, "app").backfill()
        more = {f"d{100 + i}": chunk_vectors(i, 12, DIMENSION) for i in range(6)}
        put(local, more)
        kept = QdrantStore(local, "app").backfill()
        assert (kept.fingerprint, kept.merged) == (first.fingerprint, 6)
        put(local, {f"d{200 + i}": chunk_vectors(50 + i, 12, DIMENSION) for i in range(6)})
        grown = QdrantStore(local, "app").backfill()
        assert grown.fingerprint != first.fingerprint
        assert grown.calibration_vectors == grown.chunks
        assert grown.merged == grown.documents
        assert {payload["edition"] for payload, _ in merged(local).values()} == {
            QdrantStore(local, "app")._state.open().foreign.current.name
        }

    @pytest.mark.parametrize("calibrate", [True, False])
    def test_calibration_is_made_or_left_out_on_demand(self, local, calibrate):
        create(local)
        put(local, corpus())
        first = QdrantStore(local, "app").backfill(calibrate=calibrate)
        assert bool(first.calibration_vectors) == calibrate
        put(local, {"d99": chunk_vectors(1, 5, DIMENSION)})
        again = QdrantStore(local, "app").backfill(calibrate=calibrate)
        assert (again.fingerprint != first.fingerprint) == calibrate
        other = QdrantStore(local, "app").backfill(calibrate=not calibrate)
        assert bool(other.calibration_vectors) != calibrate

    @pytest.mark.parametrize("first", ["none", "embedder"])
    def test_a_store_with_the_embedder_and_one_without_go_on_with_what_the_other_made(self, local, first):
        embedder = load_embedder()
        texts = [f"The keeper of light number {i} wrote down the weather of day {i}." for i in range(24)]
        params = models.VectorParams(size=embedder.dimension, distance=models.Distance.COSINE)
        local.create_collection("app", vectors_config={"": params})

        def write(name, own):
            local.upsert(
                "app",
                [
                    models.PointStruct(
                        id=point_id(name, i),
                        vector={"": vector.tolist()},
                        payload={
                            "page_content": text,
                            "metadata": {"source": name, "start_index": 100 * i},
                        },
                    )
                    for i, (text, vector) in enumerate(zip(own, embedder.embed_documents(own), strict=True))
                ],
            )

        write("d0", texts)
        stores = [QdrantStore(local, "app"), QdrantStore(local, "app", embedder=embedder)]
        one, other = stores if first == "none" else stores[::-1]
        made = one.backfill()
        write("d1", texts[:3])
        done = other.backfill()
        assert (done.fingerprint, done.merged) == (made.fingerprint, 1)
        for store in stores:
            hits = store.search(embedder.embed_query(texts[1]), 2, "document")
            assert sorted(hit.document_id for hit in hits) == ["d0", "d1"]

    def test_a_store_that_is_open_answers_from_what_took_over(self, local):
        create(local)
        put(local, corpus())
        QdrantStore(local, "app").backfill()
        reader = QdrantStore(local, "app")
        query = chunk_vectors(900, 1, DIMENSION)[0]
        before = {level: len(reader.search(query, 5, level)) for level in ("section", "document", "fused")}
        put(local, {"d99": chunk_vectors(1, 5, DIMENSION)})
        QdrantStore(local, "app").backfill(calibrate=True)
        for level, count in before.items():
            fresh = QdrantStore(local, "app").search(query, 5, level)
            assert len(fresh) == count
            assert reader.search(query, 5, level) == fresh

    def test_other_fields_take_over_only_when_told(self, local):
        texts = corpus()
        create(local)
        put(local, texts)
        store = QdrantStore(local, "app", merger=informed())
        store.backfill()
        with pytest.raises(StoreError, match="anew=True"):
            store.backfill(group_by="metadata.even")
        done = store.backfill(group_by="page_content", order_by="none", anew=True)
        assert done.documents == len({text_of(n, i) for n, v in texts.items() for i in range(len(v))})
        assert {payload["stop"] for payload, _ in merged(local).values()} == {1}
        assert store.backfill().merged == 0

    def test_another_merger_takes_over_only_when_told(self, local):
        create(local)
        put(local, corpus())
        QdrantStore(local, "app", merger=informed()).backfill()
        other = QdrantStore(local, "app", merger=MeanMerger())
        with pytest.raises(FingerprintError, match="anew=True"):
            other.backfill()
        with pytest.raises(FingerprintError):
            other.search(np.ones(DIMENSION), 1, "document")
        other.backfill(anew=True)
        assert_merged(local, corpus(), MeanMerger())
        with pytest.raises(FingerprintError, match="none was passed in"):
            QdrantStore(local, "app").backfill()


@pytest.mark.parametrize("calibrate", [None, False])
def test_wherever_it_is_interrupted_a_repeat_completes_it(local, calibrate):
    lengths = (1, 9, 10, 23, 41)
    texts = corpus(4, lengths)
    create(local)
    put(local, texts)
    before = everything(local)
    whole = QdrantStore(local, "app").backfill(calibrate=calibrate)
    expected = {key: vector for key, (_, vector) in merged(local).items()}
    local.delete_collection(COMPANION)
    for changes in range(100):
        backend = FailingBackend(local, "app")
        backend.changes_left = changes
        try:
            MergedStore(backend).backfill(calibrate=calibrate)
        except StoreUnavailableError:
            if local.collection_exists(COMPANION) and any(merged(local)):
                half = QdrantStore(local, "app")
                assert half.search(np.ones(DIMENSION), 3)
                if half._state.foreign.current is None:
                    with pytest.raises(StoreError, match=r"Run backfill\(\) again"):
                        half.search(np.ones(DIMENSION), 9, "document")
                else:
                    assert len(merged(local)) == len(expected)
                    assert len(half.search(np.ones(DIMENSION), 9, "document")) == len(texts)
        else:
            break
        done = QdrantStore(local, "app").backfill(calibrate=calibrate)
        assert done.calibration_vectors == whole.calibration_vectors
        found = {key: vector for key, (_, vector) in merged(local).items()}
        assert found.keys() == expected.keys()
        for key, vector in found.items():
            np.testing.assert_allclose(vector, expected[key], atol=1e-5)
        local.delete_collection(COMPANION)
    assert changes > 10
    for (point, payload, vector), (was, held, had) in zip(everything(local), before, strict=True):
        assert (point, payload) == (was, held)
        np.testing.assert_allclose(vector, had, atol=1e-6)  # embedded Qdrant rounds anew at every search


def test_a_repeat_goes_on_where_the_connection_dropped(local):
    texts = corpus(4, (12,) * 30)
    create(local)
    put(local, texts)
    backend = FailingBackend(local, "app")
    backend.changes_left = 50
    with pytest.raises(StoreUnavailableError):
        MergedStore(backend, merger=informed()).backfill()
    done = QdrantStore(local, "app", merger=informed()).backfill()
    assert 0 < done.merged <= done.documents
    assert_merged(local, texts, informed())


def test_what_an_interrupted_change_left_is_swept(local):
    texts = corpus(4, (25, 12))
    create(local)
    put(local, texts)
    QdrantStore(local, "app", merger=informed()).backfill()
    put(local, {"d0": np.concatenate([texts["d0"], chunk_vectors(8, 30, DIMENSION)])})
    backend = FailingBackend(local, "app")
    backend.changes_left = 6  # a note in the settings and some sections, but no root
    with pytest.raises(StoreUnavailableError):
        MergedStore(backend, merger=informed()).backfill()
    assert len(merged(local)) > len(texts) + 3 + 2
    local.delete("app", [point_id("d0", i) for i in range(25, 55)])
    QdrantStore(local, "app", merger=informed()).backfill()
    assert_merged(local, texts, informed())


def test_searches_answer_from_the_old_edition_until_a_new_one_is_complete(local):
    texts = corpus()
    create(local)
    put(local, texts)
    QdrantStore(local, "app").backfill()
    query = chunk_vectors(900, 1, DIMENSION)[0]

    def found(level):
        return [(hit.id, round(hit.score, 5)) for hit in QdrantStore(local, "app").search(query, 9, level)]

    before = {level: found(level) for level in ("document", "section", "fused")}
    for changes in (3, 10, 20):
        backend = FailingBackend(local, "app")
        backend.changes_left = changes
        with pytest.raises(StoreUnavailableError):
            MergedStore(backend).backfill(calibrate=False)
        for level, hits in before.items():
            assert found(level) == hits
    QdrantStore(local, "app").backfill(calibrate=False)
    assert_merged(local, texts, CalibratedMerger(dimension=DIMENSION))


class TestOrder:
    def test_a_page_comes_before_the_offset_in_it(self, local):
        texts = {"d0": chunk_vectors(1, 30, DIMENSION)}

        def paged(payload, name, place):
            payload["metadata"] |= {"page": place // 4, "start_index": 100 * (place % 4)}
            return payload

        create(local)
        put(local, texts, change=paged)
        done = QdrantStore(local, "app", merger=informed()).backfill()
        assert done.order_by == ("metadata.page", "metadata.start_index")
        assert_merged(local, texts, informed())

    def test_numbers_in_text_are_numbers(self, local):
        texts = {"d0": chunk_vectors(1, 30, DIMENSION)}
        create(local, "by_hand")
        put(local, texts, "by_hand")
        QdrantStore(local, "app", merger=informed()).backfill(group_by="book", order_by="at")
        assert_merged(local, texts, informed(), "by_hand")

    def test_dates_are_text(self, local):
        texts = {"d0": chunk_vectors(1, 30, DIMENSION)}

        def dated(payload, name, place):
            return payload | {"at": f"2026-{place // 28 + 1:02}-{place % 28 + 1:02}"}

        create(local, "by_hand")
        put(local, texts, "by_hand", change=dated)
        QdrantStore(local, "app", merger=informed()).backfill(group_by="book", order_by="at")
        assert_merged(local, texts, informed(), "by_hand")

    def test_none_is_the_order_of_ids_numbers_by_value(self, local):
        vectors = chunk_vectors(1, 30, DIMENSION)
        create(local, "by_hand")
        local.upsert(
            "app",
            [
                models.PointStruct(id=i, vector=v.tolist(), payload={"doc_id": "d0"})
                for i, v in enumerate(vectors)
            ],
        )
        store = QdrantStore(local, "app", merger=informed())
        done = store.backfill(order_by="none")
        assert done.order_by == ()
        rolling = informed().rolling()
        rolling.extend(unit(vectors))
        sections = [vector for key, (_, vector) in sorted(merged(local).items()) if key[1] == "section"]
        np.testing.assert_allclose(np.stack(sections), rolling.sections(1), atol=1e-5)
        hit = store.search(vectors[17], 1, "fused")[0]
        assert (hit.id, hit.position, hit.document_id, hit.text) == ("17", 17, "d0", None)

    def test_ties_are_counted_and_stable(self, local):
        create(local)
        put(local, corpus(), change=lambda p, _, i: p | {"metadata": p["metadata"] | {"start_index": i // 2}})
        store = QdrantStore(local, "app", merger=informed())
        assert store.backfill().ties == sum(2 * (len(v) // 2) for v in corpus().values())
        assert store.backfill().merged == 0

    def test_a_mixture_of_numbers_and_text_is_refused(self, local):
        create(local, "by_hand")
        put(local, corpus(), "by_hand", change=lambda p, _, i: p | {"at": i if i % 2 else f"part {i}"})
        with pytest.raises(InputError, match="'at' holds numbers on some points and text"):
            QdrantStore(local, "app").backfill(group_by="book", order_by="at")


class TestRefused:
    def test_a_collection_that_is_not_there(self, local):
        with pytest.raises(StoreError, match="no collection 'app'"):
            QdrantStore(local, "app").backfill()

    def test_an_empty_collection(self, local):
        create(local)
        with pytest.raises(StoreError, match="no points"):
            QdrantStore(local, "app").backfill()

    def test_a_merger_of_another_dimension(self, local):
        create(local)
        put(local, corpus())
        with pytest.raises(InputError, match=r"dimension 16.*dimension 384"):
            QdrantStore(local, "app", merger=load_merger()).backfill()
        assert QdrantStore(local, "app").backfill().documents == len(corpus())

    def test_several_vectors_of_which_none_is_chosen(self, local):
        params = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
        local.create_collection("app", vectors_config={"title": params, "body": params})
        vectors = chunk_vectors(1, 12, DIMENSION)
        local.upsert(
            "app",
            [
                models.PointStruct(
                    id=i,
                    vector={"title": (-v).tolist(), "body": v.tolist()},
                    payload={"source": "a", "seq": i},
                )
                for i, v in enumerate(vectors)
            ],
        )
        store = QdrantStore(local, "app", merger=informed())
        with pytest.raises(InputError, match=r"several vectors: \['body', 'title'\]"):
            store.backfill()
        with pytest.raises(InputError, match="vector is 'head'"):
            store.backfill(vector="head")
        store.backfill(vector="body")
        root = merged(local)["a", "root", 0][1]
        np.testing.assert_allclose(root, informed().merge(vectors), atol=1e-5)
        assert store.search(vectors[3], 1)[0].id == "3"

    def test_points_that_lack_a_field_are_counted_and_left_out_when_told(self, local):
        texts = corpus()

        def lacking(payload, name, place):
            if name == "d7" and place < 5:
                del payload["metadata"]["source"]
            if name == "d6" and place in (3, 4):
                payload["metadata"]["start_index"] = None
            return payload

        create(local)
        put(local, texts, change=lacking)
        store = QdrantStore(local, "app", merger=informed())
        options = {"group_by": "metadata.source", "order_by": "metadata.start_index"}
        with pytest.raises(StoreError, match=r"skip_missing=True") as caught:
            store.backfill(**options)
        assert "5 without a text or whole number in the field 'metadata.source'" in str(caught.value)
        assert "2 without a text or number in the field 'metadata.start_index'" in str(caught.value)
        done = store.backfill(**options, skip_missing=True)
        assert sorted(done.left_out.values()) == [2, 5]
        assert done.chunks == sum(map(len, texts.values())) - 7
        assert store.search(np.ones(DIMENSION), 200)  # those that were left out are found too
        for hit in store.search(np.ones(DIMENSION), 200, "fused"):
            assert hit.document_id is not None or hit.parts.section is None

    def test_fields_that_are_not_there(self, local):
        create(local)
        put(local, corpus())
        store = QdrantStore(local, "app")
        for options in ({"group_by": "metadata.author"}, {"order_by": "metadata.chapter"}):
            (field,) = options.values()
            with pytest.raises(
                InputError, match=f"{field}.*metadata.source, metadata.start_index, page_content"
            ):
                store.backfill(**options)
        assert not local.collection_exists(COMPANION)

    def test_nothing_that_tells_the_order(self, local):
        create(local)
        put(local, corpus(), change=lambda p, n, _: p | {"metadata": {"source": n, "author": "x"}})
        with pytest.raises(InputError, match=r"order_by='none'.*metadata.author, metadata.source"):
            QdrantStore(local, "app").backfill()

    def test_nothing_that_tells_the_document(self, local):
        create(local, "by_hand")
        put(local, corpus(), "by_hand")
        with pytest.raises(InputError, match=r"group_by=.*at, book, even, text"):
            QdrantStore(local, "app").backfill()

    def test_contextual_vectors_without_room(self, local):
        create(local)
        put(local, corpus())
        with pytest.raises(InputError, match="contextual='companion'"):
            QdrantStore(local, "app").backfill(contextual="named")

    def test_a_collection_of_our_own(self, local):
        store = QdrantStore(local, "app", merger=informed())
        store.ingest("a", vectors=chunk_vectors(1, 12, DIMENSION))
        with pytest.raises(StoreError, match="written by this package"):
            store.backfill()
        local.delete_collection(COMPANION)
        with pytest.raises(StoreError, match="companion collection is gone"):
            QdrantStore(local, "app").backfill()

    def test_settings_from_the_future(self, local):
        create(local)
        put(local, corpus())
        QdrantStore(local, "app").backfill()
        (settings,) = [p for p, payload, _ in everything(local, COMPANION) if payload["kind"] == "settings"]
        local.set_payload(COMPANION, {"schema": 99}, [settings])
        for call in (QdrantStore(local, "app").backfill, QdrantStore(local, "app").inspect):
            with pytest.raises(StoreVersionError, match="99"):
                call()

    def test_no_room_for_the_temporary_file(self, local, monkeypatch, tmp_path):
        create(local)
        put(local, corpus())
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        with pytest.raises(StoreFullError, match="scratch="):
            QdrantStore(local, "app").backfill(scratch=tmp_path)
        monkeypatch.undo()
        with pytest.raises(InputError, match="does not exist"):
            QdrantStore(local, "app").backfill(scratch=tmp_path / "nowhere")
        QdrantStore(local, "app").backfill(scratch=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_writing_into_it_through_this_package(self, local):
        create(local)
        put(local, corpus())
        store = QdrantStore(local, "app", merger=informed())
        store.backfill()
        before = everything(local)
        calls = [
            lambda: store.ingest("new", vectors=np.ones((2, DIMENSION))),
            lambda: store.append("d1", np.ones(DIMENSION)),
            lambda: store.delete("d1"),
            store.calibrate,
            store.rebuild,
        ]
        for call in calls:
            with pytest.raises(StoreError, match=r"run backfill\(\) again"):
                call()
        assert everything(local) == before


def test_a_document_longer_than_a_block_is_merged_part_by_part(local, monkeypatch):
    monkeypatch.setattr("merger_plugins.stores.gathering._FLOATS_AT_ONCE", 64 * DIMENSION)
    texts = corpus(4, (5, 333, 64, 2))
    create(local)
    put(local, texts)
    QdrantStore(local, "app", merger=informed()).backfill(contextual="companion")
    assert_merged(local, texts, informed())
    masses = [mass_of("d1", i) for i in range(333)]
    expected = informed().contextualize(unit(texts["d1"]), masses=masses)
    found = [v for key, (_, v) in sorted(merged(local).items()) if key[:2] == ("d1", "contextual")]
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-5)


def test_progress_reaches_every_chunk_of_every_stage(local):
    create(local)
    put(local, corpus())
    seen = []
    QdrantStore(local, "app").backfill(progress=seen.append)
    total = sum(map(len, corpus().values()))
    assert [step.stage for step in seen if step.done == step.total == total] == [
        "reading",
        "calibrating",
        "merging",
    ]


def test_inspection_counts_what_was_made(local):
    create(local)
    put(local, corpus())
    store = QdrantStore(local, "app", merger=informed())
    store.backfill()
    inspection = store.inspect()
    assert (inspection.documents, inspection.chunks) == (len(corpus()), sum(map(len, corpus().values())))
    assert inspection.sections == {1: sum(-(-len(v) // 10) for v in corpus().values() if len(v) >= 10)}
    assert {document.id: document.chunks for document in store.documents()} == {
        name: len(vectors) for name, vectors in corpus().items()
    }
