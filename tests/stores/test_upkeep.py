"""Calibrating, rebuilding and counting a store."""

import numpy as np
import pytest
from qdrant_client import QdrantClient

from merger_plugins import CalibratedMerger, CalibrationStatistics, MeanMerger
from merger_plugins.errors import (
    DimensionError,
    EmptyInputError,
    FingerprintError,
    StoreError,
    StoreUnavailableError,
    StoreVersionError,
)
from merger_plugins.qdrant import QdrantStore
from merger_plugins.stores import Document, MergedStore
from merger_plugins.stores.records import META_ID
from tests.stores.support import (
    DIMENSION,
    CountingBackend,
    FailingBackend,
    HashingEmbedder,
    assert_document,
    documents,
    informed,
    merged,
    stored,
)
from tests.strategies import NarrowMean, chunk_vectors

GIVEN = documents(4, 3, 12, 25, 60, 104)
QUERY = np.ones(DIMENSION)


@pytest.fixture
def client():
    client = QdrantClient(":memory:")
    yield client
    client.close()


def fill(client, merger, *, contextual=False, backend=CountingBackend):
    store = MergedStore(backend(client), merger=merger, contextual=contextual)
    for document_id, vectors in GIVEN.items():
        store.ingest(document_id, vectors=vectors)
    for vector in GIVEN["d2"]:
        store.append("chat", vector)
    return store


def assert_all(client, merger):
    for document_id, vectors in GIVEN.items():
        assert_document(client, merger, document_id, vectors)
    assert_document(client, merger, "chat", GIVEN["d2"])


@pytest.mark.parametrize("contextual", [False, True])
@pytest.mark.parametrize("base", [MeanMerger(), CalibratedMerger(dimension=DIMENSION), informed()])
def test_calibrate_uses_the_stored_chunk_vectors_document_by_document(client, base, contextual):
    store = fill(client, base, contextual=contextual)
    before = base.fingerprint
    calibrated = store.calibrate()
    assert calibrated.fingerprint != before
    expected = CalibrationStatistics.of([*GIVEN.values(), GIVEN["d2"]])
    np.testing.assert_allclose(calibrated.statistics.covariance, expected.covariance, atol=1e-6)
    np.testing.assert_allclose(calibrated.statistics.mean, expected.mean, atol=1e-6)
    assert calibrated.statistics.sequences == 6
    assert store.merger is calibrated
    assert_all(client, calibrated)
    if contextual:
        points = [
            p for p in stored(client, "documents", "chunks").values() if p.payload["document_id"] == "d3"
        ]
        points.sort(key=lambda p: p.payload["position"])
        np.testing.assert_allclose(
            np.stack([p.contextual for p in points]), calibrated.contextualize(GIVEN["d3"]), atol=1e-4
        )


def test_a_calibrated_store_opens_with_the_merger_from_before(client):
    calibrated = fill(client, CalibratedMerger(dimension=DIMENSION)).calibrate()
    reopened = MergedStore(CountingBackend(client), merger=CalibratedMerger(dimension=DIMENSION))
    assert reopened.merger.fingerprint == calibrated.fingerprint
    vectors = chunk_vectors(99, 33, DIMENSION)
    reopened.ingest("new", vectors=vectors[:30])
    for vector in vectors[30:]:
        reopened.append("new", vector)
    assert_document(client, calibrated, "new", vectors)
    directly = MergedStore(CountingBackend(client), merger=calibrated)
    assert [hit.id for hit in directly.search(QUERY, 5, "fused")] == [
        hit.id for hit in reopened.search(QUERY, 5, "fused")
    ]


def test_calibrating_twice_keeps_one_calibration(client):
    store = fill(client, informed())
    store.calibrate()
    pieces = store.inspect().calibration_bytes
    for document_id, vectors in documents(5, 40, 50).items():
        store.ingest(f"more {document_id}", vectors=vectors)
    calibrated = store.calibrate()
    assert calibrated.statistics.vectors == sum(map(len, GIVEN.values())) + 25 + 90
    inspection = store.inspect()
    assert inspection.calibration_vectors == calibrated.statistics.vectors
    assert inspection.calibration_bytes == pytest.approx(pieces, rel=0.05)
    assert_all(client, calibrated)


def test_another_merger_is_refused_until_the_store_is_rebuilt_with_it(client):
    fill(client, informed(), contextual=True)
    other = MergedStore(CountingBackend(client), merger=MeanMerger())
    for act in (
        lambda: other.search(QUERY, 3, "document"),
        lambda: other.search(QUERY, 3, "fused"),
        lambda: other.ingest("x", vectors=GIVEN["d0"]),
        lambda: other.append("chat", GIVEN["d0"][0]),
    ):
        with pytest.raises(FingerprintError, match=r"rebuild\(\) or calibrate\(\)"):
            act()
    assert len(other.search(QUERY, 3)) == 3  # raw chunk vectors are no merger's work
    other.rebuild()
    assert_all(client, MeanMerger())
    assert len(other.search(QUERY, 3, "document")) == 3
    with pytest.raises(FingerprintError):
        MergedStore(CountingBackend(client), merger=informed()).search(QUERY, 3, "section")


def test_another_merger_may_calibrate_at_once(client):
    fill(client, MeanMerger())
    other = MergedStore(CountingBackend(client), merger=informed())
    assert_all(client, MeanMerger())
    assert_all(client, other.calibrate())


def test_rebuilding_with_another_fan_out_leaves_no_old_section(client):
    fill(client, informed())
    MergedStore(CountingBackend(client), merger=NarrowMean()).rebuild()
    assert_all(client, NarrowMean())
    MergedStore(CountingBackend(client), merger=informed()).rebuild()
    assert_all(client, informed())


def test_rebuilding_uncalibrated_goes_back_to_the_merger_that_was_passed_in(client):
    store = fill(client, informed())
    store.calibrate()
    store.rebuild()
    assert store.inspect().calibration_vectors
    store.rebuild(calibrated=False)
    assert_all(client, informed())
    inspection = store.inspect()
    assert (inspection.calibration_vectors, inspection.calibration_bytes) == (0, 0)


def test_a_writer_with_another_merger_that_slept_through_a_rebuilding_is_refused(client):
    fill(client, informed())
    sleeper = MergedStore(CountingBackend(client), merger=informed())
    sleeper.append("chat", GIVEN["d0"][0])
    MergedStore(CountingBackend(client), merger=MeanMerger()).rebuild()
    for act in (
        lambda: sleeper.append("chat", GIVEN["d0"][0]),
        lambda: sleeper.ingest("x", vectors=GIVEN["d0"]),
    ):
        with pytest.raises(FingerprintError):
            act()


@pytest.mark.parametrize("contextual", [False, True])
@pytest.mark.parametrize("finish", ["calibrate", "rebuild"])
@pytest.mark.parametrize("changes", [0, 1, 2, 3, 10, 30])
def test_an_interrupted_calibration_is_noticed_and_can_be_finished(client, changes, finish, contextual):
    store = fill(client, informed(), contextual=contextual, backend=FailingBackend)
    store._backend.changes_left = changes
    with pytest.raises(StoreUnavailableError):
        store.calibrate()
    store._backend.changes_left = None
    reopened = MergedStore(CountingBackend(client), merger=informed())
    for one in (reopened, store):  # both go on with the merger from before
        assert one.merger.fingerprint == informed().fingerprint
        assert len(one.search(QUERY, 3, "document")) == 3
        one.ingest("d0", vectors=GIVEN["d0"])
    getattr(reopened, finish)()
    assert_all(client, reopened.merger)
    assert (reopened.inspect().calibration_vectors > 0) == (finish == "calibrate")
    again = MergedStore(CountingBackend(client), merger=informed())
    assert again.merger.fingerprint == reopened.merger.fingerprint
    assert len(again.search(QUERY, 3, "document")) == 3


def test_an_empty_store_cannot_be_calibrated(client):
    store = MergedStore(CountingBackend(client), merger=informed())
    with pytest.raises(EmptyInputError, match="ingest"):
        store.calibrate()
    store.rebuild()
    store.ingest("a", vectors=GIVEN["d0"])
    store.delete("a")
    with pytest.raises(EmptyInputError, match="ingest"):
        store.calibrate()


def test_a_missing_chunk_is_named(client):
    store = fill(client, MeanMerger())
    ids = [p.id for p in stored(client, "documents", "chunks").values() if p.payload["position"] == 7]
    client.delete("documents", ids)
    with pytest.raises(StoreError, match="Chunk 7 of"):
        store.rebuild()


def test_damaged_calibrations_are_named(client):
    fill(client, informed()).calibrate()
    client.set_payload("documents__merged", {"data": "AAAA"}, points=[calibration_id(client)])
    with pytest.raises(StoreError, match="calibration stored"):
        MergedStore(CountingBackend(client), merger=informed()).search(QUERY, 1)
    client.delete("documents__merged", [calibration_id(client)])
    with pytest.raises(StoreError, match="calibration stored"):
        MergedStore(CountingBackend(client), merger=informed()).search(QUERY, 1)


def calibration_id(client):
    points = stored(client, "documents", "merged").values()
    return next(p.id for p in points if p.payload["kind"] == "calibration")


@pytest.mark.parametrize(
    ("payload", "error", "says"),
    [
        ({"schema": 2}, StoreVersionError, "pip install --upgrade"),
        ({"schema": "x"}, StoreError, "damaged"),
        ({"surprise": 1}, StoreError, "surprise"),
    ],
)
def test_settings_of_a_newer_version_or_damaged_ones_are_refused(client, payload, error, says):
    fill(client, informed())
    client.set_payload("documents__merged", payload, points=[META_ID])
    with pytest.raises(error, match=says):
        MergedStore(CountingBackend(client), merger=informed()).search(QUERY, 1)


def test_a_merger_or_embedder_of_another_dimension_is_refused(client):
    fill(client, informed())
    wide = MergedStore(CountingBackend(client), merger=CalibratedMerger(dimension=DIMENSION + 1))
    with pytest.raises(DimensionError, match="has dimension 16"):
        wide.search(QUERY, 1)
    store = MergedStore(CountingBackend(client), merger=informed(), embedder=HashingEmbedder(DIMENSION + 1))
    with pytest.raises(DimensionError, match="dimension 17"):
        store.ingest("a", "Some text.")
    other = MergedStore(CountingBackend(client, "other"), merger=informed())
    with pytest.raises(DimensionError, match="dimension 3"):
        other.ingest("a", vectors=np.eye(3))
    assert not client.collection_exists("other")


def test_a_store_that_was_opened_empty_sees_what_others_ingest(client):
    reader, writer = (MergedStore(CountingBackend(client), merger=informed()) for _ in range(2))
    assert reader.search(QUERY, 3, "document") == []
    writer.ingest("a", vectors=GIVEN["d2"])
    assert [hit.document_id for hit in reader.search(QUERY, 3, "document")] == ["a"]
    reader.append("a", GIVEN["d0"][0])
    assert_document(client, informed(), "a", np.concatenate([GIVEN["d2"], GIVEN["d0"][:1]]))


def test_two_writers_that_make_one_store_do_not_mix_it(client):
    late = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=HashingEmbedder())

    def produce():
        yield Document("late", vectors=GIVEN["d0"])
        MergedStore(CountingBackend(client), merger=informed()).ingest("early", vectors=GIVEN["d1"])

    with pytest.raises(FingerprintError):
        late.ingest_many(produce())
    assert_document(client, informed(), "early", GIVEN["d1"])
    assert [document.id for document in late.documents()] == ["early"]


def test_inspect_counts_what_is_there(client):
    store = fill(client, informed(), contextual=True)
    inspection = store.inspect()
    chunks = sum(map(len, GIVEN.values())) + 25
    tree = merged(client)
    assert inspection.chunks == chunks
    assert inspection.sections == {1: 2 + 3 + 6 + 11 + 3, 2: 1}
    assert (inspection.documents, inspection.conversations, inspection.depth) == (5, 1, 3)
    assert inspection.vector_bytes == 4 * DIMENSION * (2 * chunks + len(tree))
    assert inspection.fingerprint == informed().fingerprint
    assert inspection.contextual
    assert 100 * chunks < inspection.payload_bytes < 2_000 * chunks
    shallow = MergedStore(CountingBackend(client, "shallow"), merger=informed())
    assert (shallow.inspect().depth, shallow.inspect().dimension) == (0, None)
    for count, depth in ((1, 1), (9, 1), (10, 2), (99, 2), (100, 3)):
        shallow.ingest("a", vectors=chunk_vectors(1, count, DIMENSION))
        assert shallow.inspect().depth == depth


def test_documents_lists_documents_and_conversations(client):
    store = fill(client, MeanMerger())
    listed = {document.id: document for document in store.documents()}
    assert {name: document.chunks for name, document in listed.items()} == {
        **{name: len(vectors) for name, vectors in GIVEN.items()},
        "chat": 25,
    }
    assert [name for name, document in listed.items() if document.conversation] == ["chat"]
    assert listed["d1"].mass == 12


def test_documents_that_never_rest_are_made_again_with_their_root_marked_first(monkeypatch):
    monkeypatch.setattr("merger_plugins.stores.upkeep._LOSSES", 0)
    store = QdrantStore(":memory:", merger=MeanMerger(), contextual=True)
    for name, vectors in documents(4, 1, 12, 33).items():
        store.ingest(name, vectors=vectors)
        store.append(f"chat {name}", vectors[0])
    before = {hit.id: hit.score for hit in store.search(documents(4, 1)["d0"][0], 50, "contextual")}
    store.rebuild()
    assert list(store.verify()) == []
    after = {hit.id: hit.score for hit in store.search(documents(4, 1)["d0"][0], 50, "contextual")}
    assert after == pytest.approx(before, abs=1e-5)
