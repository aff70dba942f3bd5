"""A store over every database: what it holds afterwards is what merging directly gives."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from merger_plugins import CalibratedMerger, CalibrationStatistics, MeanMerger
from merger_plugins.chunking import SentenceChunker
from merger_plugins.errors import (
    DimensionError,
    EmptyInputError,
    FingerprintError,
    InputError,
    StoreError,
    StoreVersionError,
)
from merger_plugins.stores import Document, FusionWeights, MergedStore
from merger_plugins.stores.backend import Where
from merger_plugins.stores.documents import words
from merger_plugins.stores.records import META_ID
from tests.stores.support import (
    DIMENSION,
    HashingEmbedder,
    assert_document,
    documents,
    informed,
    merged,
    stored,
    unit,
)
from tests.strategies import NarrowMean, chunk_vectors

GIVEN = documents(4, 3, 12, 25, 31)
QUERY = chunk_vectors(77, 1, DIMENSION)[0]
LEVELS = ["chunk", "section", "document", "fused"]
TEXT = " ".join(f"Sentence number {i} speaks of {w}." for i, w in enumerate(["pears", "figs", "plums"] * 5))
CHUNKER = SentenceChunker(size=6, count_tokens=words)


def fill(host, merger=None, *, contextual=False, names=GIVEN):
    store = host.store(merger=merger or informed(), contextual=contextual)
    store.ingest_many(
        Document(
            name,
            vectors=GIVEN[name],
            chunks=[f"{name}/{i}" for i in range(len(GIVEN[name]))],
            metadata={"n": len(GIVEN[name]), "tags": [name, "all"], "odd": len(GIVEN[name]) % 2 == 1},
        )
        for name in names
    )
    return store


def assert_all(store, merger, given=GIVEN):
    for name, vectors in given.items():
        assert_document(store._backend, merger, name, vectors)
    assert {document.id for document in store.documents()} == given.keys()
    assert len(stored(store._backend, "", "chunks")) == sum(map(len, given.values()))
    assert {key[0] for key in merged(store._backend)} == given.keys()


@pytest.mark.parametrize("contextual", [False, True])
class TestWriting:
    def test_ingesting_gives_the_merges_of_the_chunk_vectors(self, host, contextual):
        assert_all(fill(host, contextual=contextual), informed())

    def test_what_is_stored_already_is_not_written_again(self, host, contextual):
        fill(host, contextual=contextual)
        store = host.store(merger=informed(), contextual=contextual)
        options = {
            "chunks": [f"d1/{i}" for i in range(12)],
            "metadata": {"n": 12, "tags": ["d1", "all"], "odd": False},
        }
        assert store.ingest("d1", vectors=GIVEN["d1"], **options).unchanged
        assert not store.ingest("d1", vectors=GIVEN["d1"], **options | {"metadata": {"n": 12}}).unchanged
        assert_all(store, informed())
        chunks = stored(store._backend, "", "chunks").values()
        assert [p.payload["metadata"] for p in chunks if p.payload["document_id"] == "d1"] == [{"n": 12}] * 12

    @pytest.mark.parametrize(("before", "after"), [(31, 7), (7, 31), (25, 25)])
    def test_another_version_leaves_nothing_of_the_old_one(self, host, contextual, before, after):
        store = fill(host, contextual=contextual, names=["d1"])
        store.ingest("a", vectors=chunk_vectors(2, before, DIMENSION), metadata={"old": 1})
        vectors = chunk_vectors(3, after, DIMENSION)
        store.ingest("a", vectors=vectors, metadata={"new": 2})
        assert_all(store, informed(), {"d1": GIVEN["d1"], "a": vectors})
        root = (
            merged(store._backend)["a", "root", 2, 0]
            if after >= 10
            else merged(store._backend)["a", "root", 1, 0]
        )
        assert root.payload["metadata"] == {"new": 2}
        assert not store.search(QUERY, 5, filter={"old": 1})

    def test_turns_are_appended_to_conversations_and_documents(self, host, contextual):
        store = fill(host, contextual=contextual, names=["d1"])
        turns = chunk_vectors(5, 24, DIMENSION)
        when = datetime(2026, 1, 2, tzinfo=UTC)
        for index, vector in enumerate(turns):
            if index == 13:
                store = host.store(merger=informed(), contextual=contextual)
            done = store.append(
                "chat", vector, text=f"turn {index}", speaker="Ada", time=when, metadata={"s": 1}
            )
            assert done.chunks == index + 1
        store.append("d1", turns[0])
        assert_all(store, informed(), {"chat": turns, "d1": np.concatenate([GIVEN["d1"], turns[:1]])})
        hit = store.search(turns[7], 1)[0]
        assert (hit.document_id, hit.position, hit.text, hit.speaker) == ("chat", 7, "turn 7", "Ada")
        assert (hit.time, hit.metadata) == (when.isoformat(), {"s": 1})
        conversations = [document.id for document in store.documents() if document.conversation]
        assert conversations == ["chat"]

    def test_a_deleted_document_is_gone(self, host, contextual):
        store = fill(host, contextual=contextual)
        assert store.delete("d3")
        assert not store.delete("d3")
        assert not store.delete("never there")
        left = {name: vectors for name, vectors in GIVEN.items() if name != "d3"}
        assert_all(store, informed(), left)
        for level in LEVELS + ["contextual"] * contextual:
            assert all(hit.document_id != "d3" for hit in store.search(GIVEN["d3"][0], 50, level))
        store.ingest("d3", vectors=GIVEN["d3"])
        assert_all(store, informed())

    def test_calibrating_rebuilding_and_opening_again(self, host, contextual):
        base = CalibratedMerger(dimension=DIMENSION)
        store = fill(host, base, contextual=contextual)
        calibrated = store.calibrate()
        expected = CalibrationStatistics.of(list(GIVEN.values()))
        np.testing.assert_allclose(calibrated.statistics.covariance, expected.covariance, atol=1e-6)
        assert_all(store, calibrated)
        if contextual:
            own = [
                p for p in stored(store._backend, "", "chunks").values() if p.payload["document_id"] == "d2"
            ]
            own.sort(key=lambda p: p.payload["position"])
            found = np.stack([p.contextual for p in own])
            np.testing.assert_allclose(found, calibrated.contextualize(GIVEN["d2"]), atol=1e-4)
        again = host.store(merger=base)
        assert again.merger.fingerprint == calibrated.fingerprint
        assert again.inspect().calibration_vectors == sum(map(len, GIVEN.values()))
        again.rebuild(calibrated=False)
        assert_all(again, base)
        assert again.inspect().calibration_vectors == 0
        other = host.store(merger=NarrowMean())
        with pytest.raises(FingerprintError, match=r"rebuild\(\) or calibrate\(\)"):
            other.search(QUERY, 3, "document")
        other.rebuild()
        assert_all(other, NarrowMean())

    def test_inspecting_counts_what_is_there(self, host, contextual):
        store = fill(host, contextual=contextual)
        for vector in GIVEN["d2"][:11]:
            store.append("chat", vector)
        inspection = host.store(merger=informed()).inspect()
        assert (inspection.chunks, inspection.dimension) == (71 + 11, DIMENSION)
        assert inspection.sections == {1: 2 + 3 + 4 + 2}
        assert (inspection.documents, inspection.conversations, inspection.depth) == (4, 1, 2)
        assert (inspection.contextual, inspection.fingerprint) == (contextual, informed().fingerprint)
        assert inspection.payload_bytes > 82 * 100


class TestTexts:
    def test_texts_are_embedded_once_and_found_on_every_level(self, host):
        embedder = HashingEmbedder()
        options = {"merger": MeanMerger(), "embedder": embedder, "chunker": CHUNKER}
        store = host.store(**options)
        store.ingest("fruit", TEXT, metadata={"lang": "en"})
        store.ingest("else", "Something else entirely stands here, 世界.")
        embedder.seen.clear()
        store = host.store(**options)
        assert store.ingest("fruit", TEXT, metadata={"lang": "en"}).unchanged
        changed = TEXT.replace("number 4", "number four")
        assert store.ingest("fruit", changed, metadata={"lang": "en"}).embedded == 1
        assert embedder.seen == ["Sentence number four speaks of figs."]
        hit = store.search("Sentence number four speaks of figs.", 1)[0]
        assert hit.text == changed[hit.start : hit.end] == "Sentence number four speaks of figs."
        assert (hit.document_id, hit.position, hit.metadata) == ("fruit", 4, {"lang": "en"})
        section = store.search("Sentence speaks of", 1, "section")[0]
        assert section.text.replace("\n", " ") == changed[section.start : section.end]
        for level in LEVELS:
            assert (
                store.search("Something else entirely stands here, 世界.", 1, level)[0].document_id == "else"
            )


@pytest.fixture(scope="class", params=[False, True], ids=["plain", "contextual"])
def filled_store(request, shared_host):
    store = fill(shared_host, contextual=request.param)
    yield store, request.param
    store.close()
    shared_host.collection += "x"  # the next one begins with nothing


class TestSearching:
    def cosines(self, points, query, *, contextual=False):
        scored = [(p.id, float((p.contextual if contextual else p.vector) @ unit(query))) for p in points]
        return sorted(scored, key=lambda pair: -pair[1])

    def assert_ranked(self, hits, expected):
        assert [hit.id for hit in hits] == [point_id for point_id, _ in expected]
        np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-5)

    def test_every_level_is_ranked_by_cosine(self, filled_store):
        store, contextual = filled_store
        chunks = stored(store._backend, "", "chunks").values()
        tree = merged(store._backend)
        expected = {
            "chunk": chunks,
            "section": [p for key, p in tree.items() if key[2] == 1],
            "document": [p for key, p in tree.items() if key[1] == "root"],
        }
        for level, points in expected.items():
            self.assert_ranked(store.search(QUERY, 6, level), self.cosines(points, QUERY)[:6])
        if contextual:
            found = self.cosines(chunks, QUERY, contextual=True)
            self.assert_ranked(store.search(QUERY, 6, "contextual"), found[:6])
        else:
            with pytest.raises(InputError, match="contextual=True"):
                store.search(QUERY, 6, "contextual")

    @pytest.mark.parametrize("grouped", [False, True])
    def test_fused_scores_are_those_computed_over_everything(self, filled_store, grouped):
        store, contextual = filled_store
        tree, weights = merged(store._backend), FusionWeights(1.0, 0.5, 0.4)
        scored = []
        for point in stored(store._backend, "", "chunks").values():
            name, first = point.payload["document_id"], point.payload["position"] // 10 * 10
            section = next(p.vector for k, p in tree.items() if (k[0], *k[2:]) == (name, 1, first))
            root = next(p.vector for k, p in tree.items() if k[:2] == (name, "root"))
            own = point.contextual if contextual else point.vector
            parts = [float(vector @ unit(QUERY)) for vector in (own, section, root)]
            scored.append((point.id, np.dot(parts, [1.0, 0.5, 0.4]), name))
        scored.sort(key=lambda entry: -entry[1])
        if grouped:
            scored = list({name: (i, s, name) for i, s, name in reversed(scored)}.values())
            scored.sort(key=lambda entry: -entry[1])
        hits = store.search(QUERY, 4, "fused", weights=weights, group_by_document=grouped, oversampling=20)
        self.assert_ranked(hits, [entry[:2] for entry in scored[:4]])

    @pytest.mark.parametrize("level", ["chunk", "section", "document", "contextual"])
    def test_grouping_keeps_the_best_hit_of_each_document(self, filled_store, level):
        store, contextual = filled_store
        if level == "contextual" and not contextual:
            pytest.skip("the store has no contextual vectors")
        first = {}
        for hit in store.search(QUERY, 1000, level):
            first.setdefault(hit.document_id, hit.id)
        hits = store.search(QUERY, 3, level, group_by_document=True)
        assert [hit.id for hit in hits] == list(first.values())[:3]

    def test_filters_choose_by_metadata_on_every_level(self, shared_host, filled_store):
        store, contextual = filled_store
        cases = [
            ({"n": 12}, {"d1"}),
            ({"n": [3, 31]}, {"d0", "d3"}),
            ({"tags": "d2"}, {"d2"}),
            ({"n": 4}, set()),
        ]
        if not shared_host.takes_no_booleans:
            cases.append(({"odd": True, "tags": ["d0", "d1"]}, {"d0"}))
        for level in LEVELS + ["contextual"] * contextual:
            for filter, names in cases:
                found = store.search(QUERY, 200, level, filter=filter)
                assert {hit.document_id for hit in found} == names
                if level == "chunk":
                    assert len(found) == sum(len(GIVEN[name]) for name in names)


class TestErrors:
    def test_an_empty_store_finds_nothing(self, host):
        store = host.store(merger=MeanMerger())
        for level in LEVELS:
            assert store.search(np.ones(3), 3, level) == []
        assert list(store.documents()) == []
        assert not store.delete("a")
        assert store.inspect().dimension is None
        with pytest.raises(EmptyInputError, match="ingest"):
            store.calibrate()

    def test_vectors_of_two_mergers_do_not_mix(self, host):
        fill(host)
        other = host.store(merger=MeanMerger())
        for act in (
            lambda: other.search(QUERY, 3, "fused"),
            lambda: other.ingest("x", vectors=GIVEN["d0"]),
            lambda: other.append("d1", GIVEN["d0"][0]),
        ):
            with pytest.raises(FingerprintError, match=r"rebuild\(\) or calibrate\(\)"):
                act()
        assert len(other.search(QUERY, 3)) == 3
        assert_all(other, informed())

    @pytest.mark.parametrize(
        ("change", "error", "says"),
        [
            ({"schema": 99}, StoreVersionError, "pip install --upgrade"),
            ({"schema": "x"}, StoreError, "damaged"),
            ({"surprise": 1}, StoreError, "surprise"),
        ],
    )
    def test_settings_of_a_newer_version_or_damaged_ones_are_refused(self, host, change, error, says):
        backend = fill(host)._backend
        settings = backend.fetch("merged", [META_ID])[META_ID]
        backend.write("merged", [replace(settings, payload=settings.payload | change)])
        for act in (lambda s: s.search(QUERY, 1), lambda s: s.ingest("x", vectors=GIVEN["d0"])):
            with pytest.raises(error, match=says):
                act(MergedStore(backend, merger=informed()))

    def test_another_dimension_is_refused(self, host):
        store = fill(host)
        with pytest.raises(DimensionError, match="has 16"):
            store.search(np.ones(3))
        with pytest.raises(DimensionError, match="dimension 3"):
            store.ingest("x", vectors=np.eye(3))
        with pytest.raises(DimensionError, match="has dimension 16"):
            host.store(merger=CalibratedMerger(dimension=8)).search(QUERY)
        assert_all(host.store(merger=informed()), informed())

    def test_a_collection_keeps_what_it_was_made_with(self, host):
        fill(host)
        with pytest.raises(StoreError, match="without contextual vectors"):
            host.store(merger=informed(), contextual=True).search(QUERY)

    def test_a_missing_chunk_is_named(self, host):
        store = fill(host)
        backend = store._backend
        backend.delete("chunks", [p.id for p in backend.scan("chunks", Where({"position": 7}))])
        with pytest.raises(StoreError, match="hunk 7 of"):
            store.rebuild()
