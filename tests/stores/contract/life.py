"""What happens to a store over its life, over every database: edits, damage, new editions, conversations."""

import numpy as np
import pytest

from merger_plugins import CalibratedMerger, merge_question
from merger_plugins.errors import InputError
from merger_plugins.stores import MergedStore
from tests.stores.model import Model, operations, perform
from tests.stores.support import (
    DIMENSION,
    HashingEmbedder,
    assert_document,
    documents,
    informed,
    merged,
    stored,
)
from tests.stores.test_checking import DAMAGES, OTHER, VECTORS
from tests.strategies import NarrowCalibrated, NarrowMean, chunk_vectors

LEVELS = ["chunk", "section", "document", "fused"]
QUERY = chunk_vectors(78, 1, DIMENSION)[0]


def ranking(hits):
    return [(hit.id, round(hit.score, 5)) for hit in hits]


class TestEdits:
    @pytest.mark.parametrize(
        ("seed", "kind", "contextual"), [(1, NarrowMean, False), (2, NarrowCalibrated, True)]
    )
    def test_any_order_of_changes_ends_in_what_a_build_from_scratch_gives(self, host, seed, kind, contextual):
        merger = informed(kind) if kind is NarrowCalibrated else kind()
        model = Model()
        store = host.store(merger=merger, contextual=contextual)
        for index, operation in enumerate(operations(seed, 24, named=True)):
            perform(store, operation)
            model.apply(operation)
            if index % 8 == 7:
                store = host.store(merger=merger, contextual=contextual)
                model.check(store._backend, merger)
                assert not list(store.verify())
        if contextual:
            points = stored(store._backend, "", "chunks").values()
            assert all(point.contextual is not None for point in points)

    def test_removed_places_are_empty_until_something_is_put_there(self, host):
        vectors = chunk_vectors(3, 23, DIMENSION)
        store = host.store(merger=NarrowMean())
        store.extend("a", vectors=vectors)
        for place in (0, 5, 6, 7, 8, 22):
            store.remove("a", place)
        assert_document(store._backend, NarrowMean(), "a", vectors, empty=(0, 5, 6, 7, 8, 22))
        store.replace("a", 6, vectors[1])
        changed = vectors.copy()
        changed[6] = vectors[1]
        assert_document(store._backend, NarrowMean(), "a", changed, empty=(0, 5, 7, 8, 22))
        with pytest.raises(InputError, match="position 23"):
            store.remove("a", 23)
        with pytest.raises(InputError, match="no document 'b'"):
            store.replace("b", 0, vectors[0])

    def test_a_turn_with_an_id_is_stored_once(self, host):
        vectors = chunk_vectors(4, 6, DIMENSION)
        for _ in range(2):
            store = host.store(merger=NarrowMean())
            for _ in range(2):
                for place, vector in enumerate(vectors):
                    assert store.append("chat", vector, turn_id=f"t{place}").chunks >= place + 1
                store.extend("chat", vectors=vectors[:2], turn_id="two")
        assert_document(store._backend, NarrowMean(), "chat", np.concatenate([vectors, vectors[:2]]))


class TestHealth:
    def test_damage_is_found_and_mended(self, host):
        store = host.store(merger=NarrowMean())
        store.ingest("a", vectors=VECTORS, metadata={"x": 1})
        store.ingest("b", vectors=OTHER)
        assert not list(store.verify())
        for damage, (act, expected) in DAMAGES.items():
            act(store, store._backend)
            found = [(p.kind, p.document_id, p.level, p.position) for p in store.verify()]
            right = ("missing", "a", None, None) in found if expected is None else found == expected
            assert right, (damage, found)
            assert not store.repair(), damage
            assert not list(store.verify()), damage
            for name, vectors in (("a", VECTORS), ("b", OTHER)):
                assert_document(store._backend, NarrowMean(), name, vectors)

    def test_lost_chunks_come_back_with_their_document(self, host):
        store = host.store(merger=NarrowMean())
        store.ingest("a", vectors=VECTORS)
        ids = [p.id for p in stored(store._backend, "", "chunks").values() if p.payload["position"] in (3, 4)]
        store._backend.delete("chunks", ids)
        left = store.repair()
        assert [(p.kind, p.level, p.position) for p in left] == [("missing", 0, 3), ("missing", 0, 4)]
        assert "ingest the document again" in left[0].detail
        store.ingest("a", vectors=VECTORS)
        assert not list(store.verify())
        assert_document(store._backend, NarrowMean(), "a", VECTORS)


class TestEditions:
    def test_searches_see_the_old_vectors_or_the_new_ones(self, host):
        """They are asked after every request that the calibration writes."""
        base = CalibratedMerger(dimension=DIMENSION)
        given = documents(5, 3, 14, 25)
        store = host.store(merger=base)
        for name, vectors in given.items():
            store.ingest(name, vectors=vectors)
        backend = store._backend
        reader = MergedStore(backend, merger=base)
        before = {level: ranking(reader.search(QUERY, 5, level)) for level in LEVELS[1:]}
        seen = {level: [] for level in before}

        def watched(method):
            def call(*args, **options):
                done = method(*args, **options)
                for level, found in seen.items():
                    found.append(ranking(reader.search(QUERY, 5, level)))
                return done

            return call

        writes = {name: getattr(backend, name) for name in ("write", "swap")}
        for name, method in writes.items():
            setattr(backend, name, watched(method))
        calibrated = store.calibrate()
        for name, method in writes.items():
            setattr(backend, name, method)
        for level, found in seen.items():
            after = ranking(reader.search(QUERY, 5, level))
            assert after != before[level]
            switch = found.index(after)
            assert switch > 0
            assert found == [before[level]] * switch + [after] * (len(found) - switch)
        for name, vectors in given.items():
            assert_document(backend, calibrated, name, vectors)
        assert {key[0] for key in merged(backend)} == given.keys()
        assert not list(store.verify())


TURNS = ["we go to the island", "the ferry leaves at noon", "book the small cabin"]


@pytest.fixture(scope="class")
def chats(shared_host):
    store = shared_host.store(merger=informed(), embedder=HashingEmbedder(), contextual=True)
    for index in range(12):
        store.append("house", f"the boiler was repaired on day {index}", speaker="Ann")
    for turn in TURNS:
        store.append("holiday", turn, speaker="Ben")
    store.ingest("manual", "A boiler needs water. The ferry is a ship.")
    return store


class TestConversations:
    def test_recall_at_every_level(self, chats):
        (hit,) = chats.recall("ferry at noon", 1, conversation_id="holiday")
        assert (hit.text, hit.speaker, hit.position) == (TURNS[1], "Ben", 1)
        (episode,) = chats.recall("island ferry cabin", 1, "episode", conversation_id="holiday")
        assert episode.text == "\n".join(TURNS)
        assert chats.recall("boiler repaired", 1, "conversation")[0].document_id == "house"

    def test_a_question_is_merged_with_the_last_turns(self, chats):
        embedder = HashingEmbedder()
        spoken = np.stack([embedder.embed_query(f"Ben: {turn}") for turn in TURNS])
        masses = [float(len(f"Ben: {turn}".split())) for turn in TURNS]
        question = "when does it leave"
        expected = merge_question(embedder.embed_query(question), spoken, question_mass=4, masses=masses)
        found = chats.merged_question(question, "holiday")
        np.testing.assert_allclose(found.vector, expected.vector, atol=1e-5)
        for level in LEVELS:
            hits = chats.search(question, 4, level, conversation="holiday")
            again = chats.search(expected.vector, 4, level)
            assert [hit.id for hit in hits] == [hit.id for hit in again]
            assert chats.search(question, 4, level, conversation="unknown")

    @pytest.mark.parametrize("level", [*LEVELS, "contextual"])
    def test_only_hits_of_the_documents_asked_for(self, chats, level):
        found = chats.search("boiler ferry", 50, level, documents=["manual", "holiday"])
        assert {hit.document_id for hit in found} == {"manual", "holiday"}
        assert chats.search("boiler ferry", 5, level, documents=["nobody"]) == []
        grouped = chats.search("boiler ferry", 5, level, documents=["house"], group_by_document=True)
        assert [hit.document_id for hit in grouped] == ["house"]


def test_filters_in_the_databases_own_form(host):
    store = host.store(merger=informed())
    for year, (name, vectors) in enumerate(documents(6, 3, 12, 25).items(), 2000):
        store.ingest(name, vectors=vectors, metadata={"year": year, "name": name})
    for level in LEVELS:
        for low in (2000, 2001, 2003):
            found = store.search(QUERY, 100, level, filter=host.at_least("year", low))
            assert {hit.document_id for hit in found} == {f"d{year - 2000}" for year in range(low, 2003)}
