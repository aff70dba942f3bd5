"""`verify` and `repair` of collections that another application wrote."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from merger_plugins import MeanMerger
from merger_plugins.errors import ConflictError, FingerprintError, StoreError, StoreUnavailableError
from merger_plugins.qdrant import AsyncQdrantStore, QdrantStore
from merger_plugins.stores import MergedStore
from merger_plugins.stores.backend import Point, Where
from merger_plugins.stores.records import META_ID
from tests.stores import foreign
from tests.stores.foreign import ChromaApp, QdrantApp, assert_merged, corpus, point_id, private_chroma
from tests.stores.support import DIMENSION, FailingBackend, informed, stored
from tests.strategies import chunk_vectors

NAME = "app"


@pytest.fixture(params=["qdrant", "chroma"])
def app(request):
    if request.param == "chroma":
        yield ChromaApp(private_chroma())
        return
    client = QdrantClient(":memory:")
    yield QdrantApp(client)
    client.close()


@pytest.fixture
def store(app):
    app.write(NAME, app.cosine, corpus())
    made = app.store(NAME)
    made.backfill(contextual="companion")
    return made


def merged(store: MergedStore) -> dict[tuple[str, str, int], Point]:
    points = stored(store._backend, "", "merged").values()
    kinds = ("root", "section", "contextual")
    found = [point for point in points if point.payload.get("kind") in kinds]
    return {(p.payload["document_id"], p.payload["kind"], p.payload["position"]): p for p in found}


def everything(store: MergedStore):
    return {
        (shelf, point.id): (dict(point.payload), None if point.vector is None else point.vector.tolist())
        for shelf in ("chunks", "merged")
        for point in stored(store._backend, "", shelf).values()
        if point.id != META_ID
    }


def named(problems):
    return sorted(((p.kind, p.document_id, p.level, p.position) for p in problems), key=str)


def assert_repaired(app, store, texts=None):
    """Nothing is left, and all is as a first back-fill would have made it."""
    assert list(app.store(NAME).verify()) == []
    found = {key: point for key, point in merged(store).items() if key[1] != "contextual"}
    assert len(found) == len([p for p in merged(store).values() if p.payload["kind"] != "contextual"])
    assert_merged(store._backend, texts or corpus(), informed())


def with_payload(point, **changes):
    return Point(point.id, {**point.payload, **changes}, point.vector)


def without(point, *keys):
    return Point(point.id, {k: v for k, v in point.payload.items() if k not in keys}, point.vector)


def turned(point):
    return Point(point.id, dict(point.payload), chunk_vectors(77, 1, DIMENSION)[0])


ROOT, SHORT, SECTION, CONTEXT = (
    ("d6", "root", 0),
    ("d1", "root", 0),
    ("d6", "section", 20),
    ("d6", "contextual", 7),
)

LEVELS = {"root": None, "section": 1, "contextual": 0}


def test_a_sound_collection_has_no_problem_and_nothing_changes(store):
    before = everything(store)
    assert list(store.verify()) == []
    assert list(store.verify("d6")) == []
    assert store.repair() == []
    assert everything(store) == before


@pytest.mark.parametrize("key", [ROOT, SHORT, SECTION, CONTEXT])
def test_a_point_that_is_lost(app, store, key):
    store._backend.delete("merged", [merged(store)[key].id])
    before = everything(store)
    name, kind, position = key
    assert named(store.verify()) == [("missing", name, LEVELS[kind], position)]
    assert everything(store) == before
    assert list(store.verify("d3")) == []
    assert store.repair("d3") == []
    assert named(store.verify(name)) == [("missing", name, LEVELS[kind], position)]
    assert store.repair(name) == []
    assert_repaired(app, store)


@pytest.mark.parametrize("key", [ROOT, SHORT, SECTION, CONTEXT])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (turned, "off by"),
        (lambda p: with_payload(p, mass=p.payload["mass"] + 1), "mass"),
        (lambda p: with_payload(p, stop=p.payload["stop"] + 1), "stop"),
        (lambda p: without(p, "count"), "count"),
        (lambda p: with_payload(p, metadata={"source": "elsewhere"}), "metadata"),
    ],
)
def test_a_point_that_is_wrong(app, store, key, damage, says):
    store._backend.write("merged", [damage(merged(store)[key])])
    name, kind, position = key
    (problem,) = store.verify()
    assert named([problem]) == [("wrong", name, LEVELS[kind], position)]
    assert says in problem.detail
    assert store.repair() == []
    assert_repaired(app, store)


@pytest.mark.parametrize(("key", "field"), [(SHORT, "chunks"), (SECTION, "chunks"), (CONTEXT, "chunk")])
def test_a_point_that_names_other_chunks(app, store, key, field):
    point = merged(store)[key]
    other = point_id("d7", 1)
    value = other if field == "chunk" else [other, *point.payload[field][1:]]
    store._backend.write("merged", [with_payload(point, **{field: value})])
    (problem,) = store.verify()
    assert problem.kind == "wrong"
    assert "other chunks" in problem.detail
    assert store.repair() == []
    assert_repaired(app, store)


@pytest.mark.parametrize("key", [ROOT, SECTION])
def test_the_fingerprint_of_another_merger(app, store, key):
    store._backend.write("merged", [with_payload(merged(store)[key], fingerprint="0" * 16)])
    assert [(p.kind, p.document_id) for p in store.verify()] == [("fingerprint", "d6")]
    assert store.repair() == []
    assert_repaired(app, store)


@pytest.mark.parametrize("key", [ROOT, SECTION])
def test_another_edition(app, store, key):
    store._backend.write("merged", [with_payload(merged(store)[key], edition="0" * 16)])
    (problem,) = store.verify()
    assert (problem.kind, problem.document_id) == ("wrong", "d6")
    assert "edition" in problem.detail
    assert store.repair() == []
    assert_repaired(app, store)


@pytest.mark.parametrize("field", ["document_id", "content", "stop", "kind"])
def test_a_root_that_lacks_a_field(app, store, field):
    store._backend.write("merged", [without(merged(store)[ROOT], field)])
    assert ("wrong", "d6", None, 0) in named(store.verify())
    assert store.repair() == []
    assert_repaired(app, store)


@pytest.mark.parametrize("key", [ROOT, SECTION, CONTEXT])
def test_strays(app, store, key):
    point = merged(store)[key]
    places = {"position": 90, "stop": 99}
    strays = [
        replace(with_payload(point, **places), id=point_id("stray", 0)),
        replace(with_payload(point, document_id="nobody"), id=point_id("stray", 1)),
        replace(with_payload(point, edition="f" * 16), id=point_id("stray", 2)),
    ]
    store._backend.write("merged", strays)
    level = LEVELS[key[1]]
    expected = [
        ("stray", "d6", level, 90),
        ("stray", "nobody", level, key[2]),
        ("stray", "d6", level, key[2]),
    ]
    assert named(store.verify()) == sorted(expected, key=str)
    assert {problem.point_id for problem in store.verify()} == {point.id for point in strays}
    assert store.repair() == []
    assert not stored(store._backend, "", "merged").keys() & {point.id for point in strays}
    assert_repaired(app, store)


def test_all_roots_and_sections_are_lost(app, store):
    points = merged(store)
    store._backend.delete("merged", [p.id for key, p in points.items() if key[1] != "contextual"])
    assert named(store.verify()) == [("missing", name, None, 0) for name in corpus()]
    assert store.repair() == []
    assert_repaired(app, store)


def test_another_order_of_chunks_is_no_damage():
    """Which leaves the root of so short a document as it was."""
    client = QdrantClient(":memory:")
    foreign.create(client)
    foreign.put(client, corpus())
    store = QdrantStore(client, "app", merger=informed())
    store.backfill()
    before = merged(store)["d5", "root", 0].vector

    def swapped(payload, name, place):
        payload["metadata"]["start_index"] = 100 * {0: 15, 15: 0}.get(place, place)
        return payload

    foreign.put(client, {"d5": corpus()["d5"]}, change=swapped)
    assert named(store.verify()) == [("outdated", "d5", None, None)]
    assert store.repair() == []
    np.testing.assert_allclose(merged(store)["d5", "root", 0].vector, before, atol=1e-6)


def test_changes_of_the_application_are_no_damage(app, store):
    texts = corpus()
    grown = np.concatenate([texts["d3"], texts["d5"][:7]])
    app.write(NAME, app.cosine, {"d3": grown, "d9": texts["d1"]})
    delete = app.client.delete if isinstance(app, QdrantApp) else None
    gone = [point_id("d7", place) for place in range(len(texts["d7"]))]
    if delete is not None:
        delete(NAME, gone)
    else:
        app.client.get_collection(NAME).delete(gone)
    problems = list(store.verify())
    assert named(problems) == [
        ("missing", "d9", None, 0),
        ("outdated", "d3", None, None),
        ("outdated", "d7", None, None),
    ]
    assert all("backfill()" in problem.detail for problem in problems)
    assert named(store.verify("d3")) == [("outdated", "d3", None, None)]
    assert named(store.verify("d7")) == [("outdated", "d7", None, None)]
    assert store.repair() == []
    now = {**texts, "d3": grown, "d9": texts["d1"]}
    del now["d7"]
    assert_repaired(app, store, now)


def test_one_document_at_a_time(app, store):
    for key in (ROOT, ("d5", "section", 0)):
        store._backend.delete("merged", [merged(store)[key].id])
    assert store.repair("d5") == []
    assert named(store.verify()) == [("missing", "d6", None, 0)]
    assert store.repair("d6") == []
    assert_repaired(app, store)


def test_another_merger_is_told_and_not_repaired(app, store):
    other = type(store)(app.client, NAME, merger=MeanMerger())
    (problem,) = other.verify()
    assert (problem.kind, problem.document_id) == ("fingerprint", None)
    assert "anew=True" in problem.detail
    before = everything(store)
    with pytest.raises(FingerprintError, match="anew=True"):
        other.repair()
    assert everything(store) == before


def test_a_calibration_stays_however_much_the_collection_grew(app):
    app.write(NAME, app.cosine, corpus())
    store = type(app.store(NAME))(app.client, NAME)
    first = store.backfill()
    assert first.calibration_vectors
    app.write(NAME, app.cosine, {f"d{i}": chunk_vectors(i, 64, DIMENSION) for i in range(20, 30)})
    store._backend.delete("merged", [merged(store)[ROOT].id])
    assert store.repair("d6") == []
    assert {point.payload["fingerprint"] for point in merged(store).values()} == {first.fingerprint}
    assert store.repair() == []
    assert {point.payload["fingerprint"] for point in merged(store).values()} == {first.fingerprint}
    assert len([key for key in merged(store) if key[1] == "root"]) == len(corpus()) + 10


@pytest.mark.parametrize("damage", ["lost", "wrong"])
def test_a_named_contextual_vector(damage):
    client = QdrantClient(":memory:")
    extra = {"contextual": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)}
    foreign.create(client, **extra)
    foreign.put(client, corpus())
    store = QdrantStore(client, "app", merger=informed())
    store.backfill(contextual="named")
    assert list(store.verify()) == []
    chunk = point_id("d6", 4)
    if damage == "lost":
        client.delete_vectors("app", ["contextual"], [chunk])
    else:
        vector = chunk_vectors(78, 1, DIMENSION)[0].tolist()
        client.update_vectors("app", [models.PointVectors(id=chunk, vector={"contextual": vector})])
    (problem,) = store.verify()
    assert problem == replace(problem, document_id="d6", level=0, position=4, point_id=chunk, shelf="chunks")
    assert problem.kind == ("missing" if damage == "lost" else "wrong")
    assert store.repair() == []
    assert list(store.verify()) == []


@pytest.mark.parametrize("form", sorted(foreign.FORMS))
def test_the_forms_of_other_applications(form):
    client = QdrantClient(":memory:")
    foreign.create(client, form)
    foreign.put(client, corpus(), form)
    store = QdrantStore(client, "app", merger=informed())
    store.backfill(**foreign.OPTIONS[form])
    assert list(store.verify()) == []
    name = foreign.document_name(form, "d6")
    store._backend.delete("merged", [merged(store)[name, "section", 10].id])
    assert named(store.verify(name)) == [("missing", name, 1, 10)]
    assert store.repair(name) == []
    assert list(store.verify()) == []


def test_names_inside_json_text():
    """Which the database cannot filter by."""
    client = QdrantClient(":memory:")
    foreign.create(client, "by_hand")

    def hidden(payload, name, place):
        return {"node": f'{{"book": "{name}"}}', "at": place, "text": payload["text"]}

    foreign.put(client, corpus(), "by_hand", change=hidden)
    store = QdrantStore(client, "app", merger=MeanMerger())
    store.backfill(group_by="node.book", order_by="at")
    store._backend.delete("merged", [merged(store)[key].id for key in (ROOT, ("d7", "root", 0))])
    assert named(store.verify("d6")) == [("missing", "d6", None, 0)]
    assert store.repair("d6") == []
    assert list(store.verify()) == []


def test_points_that_were_left_out_are_no_problem(store, app):
    if not isinstance(app, QdrantApp):
        return
    app.client.upsert(NAME, [models.PointStruct(id=1, vector={"": [1.0] * DIMENSION}, payload={"x": 1})])
    assert list(store.verify()) == []
    store._backend.delete("merged", [merged(store)[ROOT].id])
    assert store.repair() == []


def test_a_back_fill_that_was_interrupted_is_told_and_completed():
    client = QdrantClient(":memory:")
    foreign.create(client)
    foreign.put(client, corpus())
    backend = FailingBackend(client, "app")
    store = MergedStore(backend, merger=informed())
    store.backfill()
    changed = {name: chunk_vectors(500 + i, 12, DIMENSION) for i, name in enumerate(("d5", "d6"))}
    foreign.put(client, changed)
    backend.changes_left = 2
    with pytest.raises(StoreUnavailableError):
        store.backfill()
    backend.changes_left = None
    assert "unfinished" in {problem.kind for problem in store.verify()}
    assert store.repair() == []
    assert list(store.verify()) == []


@pytest.mark.parametrize("changes", range(8))
def test_wherever_a_repair_is_interrupted_a_repeat_completes_it(changes):
    client = QdrantClient(":memory:")
    foreign.create(client)
    foreign.put(client, corpus())
    backend = FailingBackend(client, "app")
    store = MergedStore(backend, merger=informed())
    store.backfill()
    points = merged(store)
    store._backend.write("merged", [turned(points[SECTION]), turned(points[SHORT])])
    store._backend.write("merged", [replace(points[ROOT], id=point_id("stray", 0))])
    backend.changes_left = changes
    with suppress(StoreUnavailableError):
        store.repair()
    backend.changes_left = None
    if changes < 6:
        assert list(store.verify()) != []
    assert store.repair() == []
    assert list(store.verify()) == []
    assert_merged(backend, corpus(), informed())


def test_what_a_back_fill_wrote_meanwhile_is_no_problem(app, store):
    other = app.store(NAME)
    texts = corpus()
    lost = [merged(store)[name, "root", 0].id for name in ("d0", "d7")]
    store._backend.delete("merged", lost)
    problems = store.verify()
    assert next(problems).document_id == "d0"
    app.write(NAME, app.cosine, {"d3": texts["d5"], "d9": texts["d1"]})
    other.backfill()
    store._backend.delete("merged", [merged(store)[SECTION].id])
    assert named(problems) == [("missing", "d6", 1, 20)]
    assert store.repair() == []
    assert_repaired(app, store, {**texts, "d3": texts["d5"], "d9": texts["d1"]})


def test_back_fills_that_never_end(app, store, monkeypatch):
    monkeypatch.setattr("merger_plugins.stores.comparing._WAITS", (0.0,))
    other, fetch = app.store(NAME), type(store._backend).fetch
    store._backend.delete("merged", [merged(store)[ROOT].id])
    busy = []

    def meanwhile(self, shelf, ids, **options):
        if shelf == "merged" and options.get("vectors") and not busy:
            busy.append(True)
            app.write(NAME, app.cosine, {"d0": chunk_vectors(next(seeds), 1, DIMENSION)})
            other.backfill()
            other._backend.delete("merged", [merged(other)[ROOT].id])
            busy.clear()
        return fetch(self, shelf, ids, **options)

    seeds = iter(range(100, 200))
    with monkeypatch.context() as patch:
        patch.setattr(type(store._backend), "fetch", meanwhile)
        with pytest.raises(ConflictError, match="Repeat the call"):
            list(store.verify("d0"))
    assert named(store.verify()) == [("missing", "d6", None, 0)]


def test_documents_longer_than_a_block(app, monkeypatch):
    monkeypatch.setattr("merger_plugins.stores.gathering._FLOATS_AT_ONCE", 64 * DIMENSION)
    texts = {"d0": chunk_vectors(1, 333, DIMENSION), "d1": chunk_vectors(2, 64, DIMENSION)}
    app.write(NAME, app.cosine, texts)
    store = app.store(NAME)
    store.backfill(contextual="companion")
    assert list(store.verify()) == []
    points = merged(store)
    keys = [("d0", "section", 320), ("d0", "contextual", 200), ("d0", "root", 0)]
    store._backend.write("merged", [turned(points[key]) for key in keys])
    assert named(store.verify()) == sorted(
        (("wrong", "d0", level, place) for level, place in ((1, 320), (0, 200), (None, 0))), key=str
    )
    assert store.repair() == []
    assert list(store.verify()) == []


def test_only_the_document_is_read(store, app):
    seen = []
    scan = type(store._backend).scan

    def noted(self, shelf, where, **options):
        for point in scan(self, shelf, where, **options):
            if shelf == "chunks":
                seen.append(point.id)
            yield point

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store._backend), "scan", noted)
        assert list(store.verify("d6")) == []
        assert sorted(seen) == sorted(point_id("d6", place) for place in range(35))
        assert store._backend.count("chunks", Where()) > len(seen)


def test_a_text_that_changes_nothing_that_was_made_is_no_problem(store, app):
    """As where a client rounds vectors anew: what was merged is still what the chunks give."""
    noise = np.random.default_rng(8).uniform(-1e-6, 1e-6, corpus()["d6"].shape).astype(np.float32)
    app.write(NAME, app.cosine, {"d6": corpus()["d6"] + noise})
    assert list(store.verify()) == []
    assert store.backfill().merged == 1


def test_an_embedded_folder_that_is_opened_again(tmp_path):
    with QdrantStore(tmp_path / "db", "app", merger=informed()) as store:
        store.inspect()
        client = store._backend._connection._client
        foreign.create(client)
        foreign.put(client, corpus())
        store.backfill()
    with QdrantStore(tmp_path / "db", "app", merger=informed()) as store:
        assert list(store.verify()) == []


@pytest.mark.parametrize("grown", [False, True])
def test_a_calibration_that_is_damaged_is_gathered_again(app, grown):
    app.write(NAME, app.cosine, corpus())
    kind = type(app.store(NAME))
    store = kind(app.client, NAME)
    first = store.backfill()
    pieces = list(store._backend.scan("merged", Where({"kind": "calibration"})))
    store._backend.delete("merged", [pieces[0].id])
    if grown:
        app.write(NAME, app.cosine, {"d9": corpus()["d5"]})
    for call in (lambda: list(kind(app.client, NAME).verify()), kind(app.client, NAME).repair):
        with pytest.raises(StoreError, match="anew=True"):
            call()
    done = kind(app.client, NAME).backfill(anew=True)
    assert (done.fingerprint == first.fingerprint) is not grown
    assert done.merged == (len(corpus()) + 1 if grown else 0)
    assert list(kind(app.client, NAME).verify()) == []


async def test_in_an_event_loop_whichever_threads_it_takes(tmp_path):
    with QdrantStore(tmp_path / "db", "app", merger=informed()) as store:
        store.inspect()
        client = store._backend._connection._client
        foreign.create(client)
        foreign.put(client, corpus())
        store.backfill()
        store._backend.delete("merged", [p.id for key, p in merged(store).items() if key[1] == "section"])
    async with AsyncQdrantStore(tmp_path / "db", "app", merger=informed()) as store:
        first, second = store.verify(), store.verify()
        found = [[], []]
        async for problem in first:
            found[0].append(problem)
            found[1].append(await anext(second))
        assert found[0] == found[1]
        assert len(found[0]) == sum(
            -(-len(vectors) // 10) for vectors in corpus().values() if len(vectors) >= 10
        )
        assert await store.repair() == []
        assert [problem async for problem in store.verify()] == []
