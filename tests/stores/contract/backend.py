"""Every operation of a backend, compared with what numpy and plain Python say."""

import threading
from uuid import UUID, uuid5

import numpy as np
import pytest

from merger_plugins.errors import InputError, StoreError
from merger_plugins.stores.backend import Layout, Point, Swap, VectorForm, Where
from tests.stores.support import DIMENSION, FILTERS, metadata_of, unit
from tests.strategies import chunk_vectors

PAYLOADS = [
    {},
    {"page_content": "Grüße, 世界 🐝", "metadata": {}},
    {"level": 0, "mass": 5.0, "writing": False, "document_id": "a/b:c", "empty": ""},
    {"metadata": {"lang": "en", "n": 3, "share": 0.1, "done": True, "none": None, "tags": ["a", "b", 3]}},
    {"metadata": {"$where": 1, "#id": 2, "": 3, "merger:kind": "x", "chroma:document": "y", "a.b": 4}},
    {"metadata": {"author": {"name": "Ada", "born": {"year": 1815}}, "deep": [[1, [2]], {"x": [None]}]}},
    {"metadata": {"big": 2**60, "negative": -(2**60), "tiny": 1e-300, "huge": 1e300, "whole": 4.0}},
    {"context": {"root": "AAAA", "mean_mass": 1.5}, "rebuilding": None, "chunks": ["x", "y"]},
    {
        "metadata": {"page_content": "mine", "metadata": "too", "document_id": "own", "level": "own"},
        "level": 2,
    },
]


def ident(name):
    return str(uuid5(UUID(int=7), str(name)))


def points(seed, count, payload=lambda index: {"position": index}, contextual=False):
    vectors = unit(chunk_vectors(seed, count, DIMENSION))
    others = unit(chunk_vectors(seed + 500, count, DIMENSION))
    return [
        Point(ident(f"{seed}/{i}"), payload(i), vectors[i], others[i] if contextual else None)
        for i in range(count)
    ]


@pytest.fixture
def backend(host):
    backend = host.backend()
    backend.layout()
    backend.create(DIMENSION, contextual=False)
    return backend


@pytest.fixture
def both(host):
    """With contextual vectors."""
    backend = host.backend()
    backend.create(DIMENSION, contextual=True)
    return backend


class TestLayout:
    @pytest.mark.parametrize("contextual", [False, True])
    def test_there_is_nothing_before_and_the_layout_after(self, host, contextual):
        backend = host.backend()
        assert backend.layout() is None
        assert backend.vectors() is None
        assert not backend.has_companion()
        for _ in range(2):
            backend.create(DIMENSION, contextual=contextual)
            assert backend.layout() == Layout(DIMENSION, contextual, merged=True)
            assert backend.has_companion()
        backend.write("chunks", points(1, 3, contextual=contextual))
        assert host.backend().layout() == Layout(DIMENSION, contextual, merged=True)

    def test_the_raw_vector_is_described(self, backend):
        backend.write("chunks", points(1, 1))
        assert backend.vectors() == {"": VectorForm(DIMENSION)}

    def test_creating_again_keeps_what_is_there(self, backend):
        backend.write("chunks", points(1, 3))
        backend.write("merged", points(2, 2))
        backend.create(DIMENSION, contextual=False)
        assert (backend.count("chunks", Where()), backend.count("merged", Where())) == (3, 2)

    def test_collections_do_not_meet(self, host, backend):
        backend.write("chunks", points(1, 3))
        name = f"{host.collection}-other"
        other = host.backend(name)
        assert other.layout() is None
        other.create(3, contextual=False)
        assert other.layout() == Layout(3, contextual=False, merged=True)
        assert other.count("chunks", Where()) == 0

    def test_only_a_server_has_other_writers(self, host, backend):
        assert backend.exclusive == host.exclusive


class TestPoints:
    @pytest.mark.parametrize("shelf", ["chunks", "merged"])
    @pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
    def test_a_payload_comes_back_as_it_was(self, host, backend, shelf, payload):
        (point,) = points(1, 1, lambda _: payload)
        backend.write(shelf, [point])
        for again in (False, True):
            if again:
                backend = host.backend()
                backend.layout()
            (stored,) = backend.fetch(shelf, [point.id], vectors=True).values()
            assert stored.payload == payload
            assert [type(v) for v in stored.payload.values()] == [
                type(stored.payload[k]) for k in stored.payload
            ]
            np.testing.assert_allclose(stored.vector, point.vector, atol=1e-6)
            assert stored.contextual is None

    @pytest.mark.parametrize("before", PAYLOADS[1::2], ids=range(1, len(PAYLOADS), 2))
    def test_replacing_leaves_nothing_of_the_old_point(self, backend, before):
        old = points(1, len(PAYLOADS), lambda _: before)
        backend.write("chunks", old)
        for vectors in ([p.vector for p in old], [p.vector for p in points(2, len(PAYLOADS))]):
            new = [Point(p.id, after, v) for p, after, v in zip(old, PAYLOADS, vectors, strict=True)]
            backend.write("chunks", new)
            stored = backend.fetch("chunks", [p.id for p in new], vectors=True)
            for point in new:
                assert stored[point.id].payload == point.payload
                np.testing.assert_allclose(stored[point.id].vector, point.vector, atol=1e-6)
        assert backend.count("chunks", Where()) == len(PAYLOADS)

    def test_points_without_a_vector_have_none(self, backend):
        backend.write("merged", [Point(ident("meta"), {"kind": "settings"}), *points(1, 2)])
        stored = backend.fetch("merged", [ident("meta"), ident("1/0")], vectors=True)
        assert stored[ident("meta")].vector is None
        assert stored[ident("1/0")].vector is not None
        (scanned,) = backend.scan("merged", Where({"kind": "settings"}))
        assert scanned.payload == {"kind": "settings"}
        backend.write("merged", [Point(ident("meta"), {"kind": "settings", "data": "A" * 700_000})])
        assert len(backend.fetch("merged", [ident("meta")])[ident("meta")].payload["data"]) == 700_000

    def test_what_is_not_there_is_left_out_and_repeated_ids_do_not_matter(self, backend):
        backend.write("chunks", points(1, 2))
        assert backend.fetch("chunks", []) == {}
        wanted = [ident("absent"), ident("1/0"), ident("1/0")]
        assert list(backend.fetch("chunks", wanted)) == [ident("1/0")]
        assert backend.fetch("merged", wanted) == {}

    def test_only_what_was_asked_for_comes(self, both):
        payload = {"page_content": "text", "level": 0, "metadata": {"x": 1}, "list": [1]}
        (point,) = points(1, 1, lambda _: payload, contextual=True)
        both.write("chunks", [point])

        def fetched(**options):
            return both.fetch("chunks", [point.id], **options)[point.id]

        assert fetched(payload=False).payload == {}
        assert fetched(payload=["page_content"]).payload == {"page_content": "text"}
        assert fetched(payload=["level", "list", "absent"]).payload == {"level": 0, "list": [1]}
        assert fetched(payload=["metadata"]).payload == {"metadata": {"x": 1}}
        assert (fetched().vector, fetched().contextual) == (None, None)
        alone = fetched(payload=False, vectors=True)
        np.testing.assert_allclose(alone.vector, point.vector, atol=1e-6)
        np.testing.assert_allclose(alone.contextual, point.contextual, atol=1e-6)

    def test_contextual_vectors_are_replaced_with_their_points(self, both):
        (point,) = points(1, 1, contextual=True)
        (other,) = points(2, 1, contextual=True)
        both.write("chunks", [point])
        both.write("chunks", [Point(point.id, {"v": 2}, point.vector, other.contextual)])
        (stored,) = both.fetch("chunks", [point.id], vectors=True).values()
        np.testing.assert_allclose(stored.vector, point.vector, atol=1e-6)
        np.testing.assert_allclose(stored.contextual, other.contextual, atol=1e-6)
        both.write("chunks", [Point(point.id, {"v": 3}, other.vector)])
        (stored,) = both.fetch("chunks", [point.id], vectors=True).values()
        assert stored.contextual is None
        np.testing.assert_allclose(stored.vector, other.vector, atol=1e-6)

    def test_more_points_than_a_request_takes(self, host, backend):
        many = [
            Point(ident(i), {"document_id": "big", "position": i}, vector)
            for i, vector in enumerate(_circle(host.many))
        ]
        backend.write("chunks", many)
        assert backend.count("chunks", Where()) == len(many)
        assert len(backend.fetch("chunks", [point.id for point in many], payload=False)) == len(many)
        assert [p.id for p in backend.scan("chunks", Where(), payload=False)] == sorted(p.id for p in many)
        half = len(many) // 2
        backend.delete("chunks", [point.id for point in many[:half]])
        assert backend.count("chunks", Where()) == len(many) - half
        backend.delete_document("chunks", "big")
        assert backend.count("chunks", Where()) == 0

    def test_deleting(self, both):
        both.write("chunks", points(1, 4, lambda i: {"document_id": f"d{i % 2}"}, contextual=True))
        both.write("merged", points(2, 4, lambda i: {"document_id": f"d{i % 2}"}))
        both.delete("chunks", [])
        both.delete("chunks", [ident("1/0"), ident("absent")])
        assert both.count("chunks", Where()) == 3
        both.delete_document("chunks", "d1")
        assert [p.id for p in both.scan("chunks", Where())] == [ident("1/2")]
        assert len(both.nearest("chunks", np.ones(DIMENSION), 9, Where(), contextual=True)) == 1
        assert both.count("merged", Where()) == 4
        both.delete_document("merged", "nobody")
        both.delete_document("merged", "d0")
        assert both.count("merged", Where({"document_id": "d1"})) == both.count("merged", Where()) == 2


def _circle(count):
    angles = np.linspace(0, 3, count)
    vectors = np.zeros((count, DIMENSION), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    return vectors


class TestVersions:
    """Writes that must not undo what came after them."""

    def given(self, backend, shelf, *versions):
        made = points(1, len(versions), lambda i: {} if versions[i] is None else {"version": versions[i]})
        backend.write(shelf, made)
        return made

    @pytest.mark.parametrize("shelf", ["chunks", "merged"])
    def test_a_write_below_leaves_newer_points(self, backend, shelf):
        old = self.given(backend, shelf, None, 3, 5, 6)
        new = points(2, 5)
        ids = [*(point.id for point in old), ident("inserted")]
        backend.write(
            shelf,
            [Point(i, {"version": 5, "new": 1}, p.vector) for i, p in zip(ids, new, strict=True)],
            below=5,
        )
        stored = backend.fetch(shelf, ids, vectors=True)
        assert ["new" in stored[i].payload for i in ids] == [True, True, True, False, True]
        np.testing.assert_allclose(stored[ids[3]].vector, old[3].vector, atol=1e-6)
        np.testing.assert_allclose(stored[ids[2]].vector, new[2].vector, atol=1e-6)

    @pytest.mark.parametrize("shelf", ["chunks", "merged"])
    def test_a_deletion_below_keeps_newer_points(self, backend, shelf):
        old = self.given(backend, shelf, None, 3, 5, 6)
        backend.delete(shelf, [*(point.id for point in old), ident("absent")], below=4)
        assert {p.payload["version"] for p in backend.scan(shelf, Where())} == {5, 6}

    def test_deleting_a_document_below_keeps_newer_points(self, both):
        versions = [None, 3, 5, 6]
        made = points(
            1, 4, lambda i: {"document_id": "a"} | ({"version": versions[i]} if versions[i] else {}), True
        )
        both.write("chunks", made)
        both.delete_document("chunks", "a", below=5)
        assert [p.payload["version"] for p in both.scan("chunks", Where())] == [6]
        assert len(both.nearest("chunks", np.ones(DIMENSION), 9, Where(), contextual=True)) == 1

    def swap(self, point_id, expected, version, token="t", seed=9):
        vector = points(seed, 1)[0].vector
        return Swap(Point(point_id, {"version": version, "token": token}, vector), expected)

    def test_a_swap_needs_the_version_that_it_expects(self, backend):
        a, b, c = (ident(name) for name in "abc")
        assert backend.swap([]) == []
        assert backend.swap([self.swap(a, 1, 2), self.swap(b, 0, 1), self.swap(c, None, 1)]) == [
            False,
            False,
            True,
        ]
        assert backend.fetch("merged", [a, b]) == {}
        assert backend.swap([self.swap(c, None, 2, "late")]) == [False]
        assert backend.swap([self.swap(c, 0, 2, "late")]) == [False]
        assert backend.fetch("merged", [c])[c].payload == {"version": 1, "token": "t"}
        assert backend.swap([self.swap(c, 1, 7, "next"), self.swap(a, None, 1, "first")]) == [True, True]
        assert backend.fetch("merged", [c])[c].payload == {"version": 7, "token": "next"}

    def test_a_point_without_a_version_has_version_0(self, backend):
        self.given(backend, "merged", None)
        point_id = ident("1/0")
        assert backend.swap([self.swap(point_id, None, 1)]) == [False]
        assert backend.swap([self.swap(point_id, 0, 1)]) == [True]

    def test_what_goes_first_is_written_whatever_becomes_of_the_swap(self, backend):
        newer = self.given(backend, "merged", 9)[0]
        first = [Point(newer.id, {"version": 2}, newer.vector), *points(3, 2, lambda _: {"version": 2})]
        swaps = [self.swap(ident("root"), 4, 5)]
        assert backend.swap(swaps, first=first, below=2) == [False]
        assert backend.fetch("merged", [newer.id])[newer.id].payload["version"] == 9
        assert backend.count("merged", Where()) == 3
        assert backend.swap([], first=points(4, 1)) == []
        assert backend.count("merged", Where()) == 4

    def test_of_many_writers_that_expect_the_same_one_succeeds(self, backend):
        root = ident("root")
        backend.swap([self.swap(root, None, 1, "made")])
        won, lost = [], []

        def race(name):
            try:
                run(name)
            except Exception as error:  # noqa: BLE001 - of a thread, told below
                lost.append(error)

        def run(name):
            for version in range(1, 6):
                if backend.swap([self.swap(root, version, version + 1, f"{name}/{version}")]) == [True]:
                    won.append((version, f"{name}/{version}"))
                while backend.fetch("merged", [root])[root].payload["version"] <= version:
                    pass

        threads = [threading.Thread(target=race, args=[name]) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not lost
        # Where tokens are read back, a winner that was followed by the next one at once is not told.
        assert sorted(version for version, _ in won) == sorted({version for version, _ in won})
        last = backend.fetch("merged", [root])[root].payload
        assert (last["version"], last["token"]) == (6, max(won)[1])


class TestScanning:
    def test_scanning_is_in_the_order_of_ids_and_by_what_was_asked(self, backend):
        made = points(
            1, 40, lambda i: {"kind": "root" if i % 4 == 0 else "section", "n": i, "document_id": f"d{i}"}
        )
        backend.write("merged", made)
        assert [p.id for p in backend.scan("merged", Where())] == sorted(p.id for p in made)
        roots = list(backend.scan("merged", Where({"kind": "root"}), payload=["n"]))
        assert sorted(p.payload["n"] for p in roots) == list(range(0, 40, 4))
        assert all(p.payload.keys() == {"n"} and p.vector is None for p in roots)
        assert not next(backend.scan("merged", Where(), payload=False)).payload
        assert backend.count("merged", Where({"kind": "root", "n": 8})) == 1
        some = Where({"kind": "root"}, documents=["d4", "d5", "d8", "absent"])
        assert backend.count("merged", some) == len(list(backend.scan("merged", some))) == 2
        assert backend.count("merged", Where(documents=[])) == 0
        assert list(backend.scan("chunks", Where())) == []

    def test_scanning_brings_vectors(self, host, both):
        made = {p.id: p for p in points(1, 5, contextual=True)}
        both.write("chunks", list(made.values()))
        for point in both.scan("chunks", Where(), payload=False, vectors=True):
            np.testing.assert_allclose(point.vector, made[point.id].vector, atol=1e-6)

    def test_thousands_of_documents_at_once(self, backend):
        backend.write("merged", points(1, 20, lambda i: {"document_id": f"d{i}"}))
        names = [f"d{i}" for i in range(12_000)]
        assert backend.count("merged", Where(documents=names)) == 20
        assert len(backend.nearest("merged", np.ones(DIMENSION), 50, Where(documents=names))) == 20

    def test_members_are_looked_up_in_lists(self, backend):
        made = points(1, 30, lambda i: {"chunks": [ident(f"c{i}"), ident(f"c{i + 1}")], "level": 1})
        backend.write("merged", made)
        where = Where({"level": 1}, members=[ident("c3"), ident("c4"), ident("absent")])
        assert {p.id for p in backend.scan("merged", where)} == {ident(f"1/{i}") for i in (2, 3, 4)}
        assert backend.count("merged", Where(members=[])) == 0
        many = Where(members=[ident(f"c{i}") for i in range(400)])
        assert backend.count("merged", many) == 30
        hits = backend.nearest("merged", made[3].vector, 5, many, exact=True)
        assert len({hit.point.id for hit in hits}) == 5
        assert hits[0].point.id == made[3].id


METADATA = [
    {**metadata_of(i), "tags": [f"t{i % 3}", "all", i], "author": {"name": f"a{i % 2}"}} for i in range(30)
]


@pytest.fixture(scope="class")
def filled_backend(shared_host):
    backend = shared_host.backend()
    backend.create(DIMENSION, contextual=True)
    backend.write(
        "chunks",
        points(1, 30, lambda i: {"document_id": f"d{i % 7}", "metadata": METADATA[i]}, contextual=True),
    )
    return backend


class TestNearest:
    @staticmethod
    def expected(query, *, contextual=False, keep=lambda _: True):
        vectors = np.stack([p.contextual if contextual else p.vector for p in points(1, 30, contextual=True)])
        scores = vectors @ unit(query)
        return [(i, scores[i]) for i in np.argsort(-scores) if keep(i)]

    @staticmethod
    def assert_same(found, expected):
        assert [scored.point.id for scored in found] == [ident(f"1/{i}") for i, _ in expected]
        np.testing.assert_allclose([s.score for s in found], [score for _, score in expected], atol=1e-5)

    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("contextual", [False, True])
    @pytest.mark.parametrize("scale", [0.01, 1, 300])
    def test_the_largest_cosines_come_first(self, filled_backend, contextual, exact, scale):
        query = chunk_vectors(77, 1, DIMENSION)[0] * scale
        expected = self.expected(query, contextual=contextual)
        for limit in (1, 7, 30, 500):
            found = filled_backend.nearest(
                "chunks", query, limit, Where(), contextual=contextual, exact=exact
            )
            self.assert_same(found, expected[:limit])

    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("contextual", [False, True])
    def test_the_best_point_of_each_document(self, filled_backend, contextual, exact):
        query = chunk_vectors(78, 1, DIMENSION)[0]
        best = {}
        for index, score in self.expected(query, contextual=contextual):
            best.setdefault(index % 7, (index, score))
        for limit in (1, 3, 7, 50):
            found = filled_backend.nearest(
                "chunks", query, limit, Where(), contextual=contextual, per_document=True, exact=exact
            )
            self.assert_same(found, list(best.values())[:limit])

    @pytest.mark.parametrize(
        ("filter", "keep"),
        [
            *FILTERS,
            ({"tags": "t1"}, lambda m: "t1" in m["tags"]),
            ({"tags": 4}, lambda m: 4 in m["tags"]),
            ({"tags": ["t1", "t2"], "even": False}, lambda m: not m["even"] and m["tag"] != "t0"),
            ({"author.name": "a1"}, lambda m: not m["even"]),
            ({"absent": "x"}, lambda _: False),
            ({"tag": []}, lambda _: False),
            ({}, lambda _: True),
        ],
    )
    @pytest.mark.parametrize("contextual", [False, True])
    def test_filters_look_into_the_metadata(self, shared_host, filled_backend, filter, keep, contextual):
        if shared_host.takes_no_booleans and any(isinstance(value, bool) for value in filter.values()):
            pytest.skip("qdrant-edge compares booleans as numbers")
        query = chunk_vectors(79, 1, DIMENSION)[0]
        found = filled_backend.nearest("chunks", query, 50, Where(filter=filter), contextual=contextual)
        expected = self.expected(query, contextual=contextual, keep=lambda i: keep(METADATA[i]))
        self.assert_same(found, expected)
        count = filled_backend.count("chunks", Where({"document_id": "d1"}, filter=filter))
        assert count == sum(bool(keep(m)) for m in METADATA[1::7])
        best = filled_backend.nearest(
            "chunks", query, 50, Where(filter=filter), per_document=True, contextual=contextual
        )
        assert len(best) == len({i % 7 for i, _ in expected})

    @pytest.mark.parametrize("filter", ["x", 3, {"x": {"y": 1}}, {"x": None}, {"x": object()}])
    def test_other_filters_are_refused(self, filled_backend, filter):
        with pytest.raises(InputError, match=r"filter"):
            filled_backend.nearest("chunks", np.ones(DIMENSION), 3, Where(filter=filter))

    def test_conditions_are_joined(self, filled_backend):
        query = chunk_vectors(80, 1, DIMENSION)[0]
        where = Where({"document_id": "d3"}, documents=["d3", "d4"], filter={"tag": "t0"})
        expected = self.expected(query, keep=lambda i: i % 7 == 3 and i % 3 == 0)
        self.assert_same(filled_backend.nearest("chunks", query, 50, where), expected)
        assert filled_backend.nearest("chunks", query, 50, Where(documents=[])) == []

    def test_only_the_payload_that_was_asked_for_comes(self, filled_backend):
        query = chunk_vectors(81, 1, DIMENSION)[0]
        for payload, keys in (
            (True, {"document_id", "metadata"}),
            (False, set()),
            (["document_id"], {"document_id"}),
        ):
            (hit,) = filled_backend.nearest("chunks", query, 1, Where(), payload=payload)
            assert hit.point.payload.keys() == keys


def test_a_document_that_crowds_out_the_others(backend):
    crowd = points(1, 200, lambda _: {"document_id": "crowd"})
    near = [Point(p.id, p.payload, unit(np.eye(DIMENSION)[0] + 0.01 * p.vector)) for p in crowd]
    backend.write("chunks", near)
    backend.write("chunks", points(2, 6, lambda i: {"document_id": f"d{i}"}))
    backend.write("chunks", [Point(ident("none"), {}, np.eye(DIMENSION, dtype=np.float32)[0])])
    found = backend.nearest("chunks", np.eye(DIMENSION)[0], 5, Where(), per_document=True)
    vectors = np.stack([p.vector for p in points(2, 6)])[:, 0]
    assert [s.point.payload["document_id"] for s in found] == [
        "crowd",
        *(f"d{i}" for i in np.argsort(-vectors)[:4]),
    ]


def test_nothing_is_near_in_an_empty_collection(both):
    for options in ({}, {"contextual": True}, {"per_document": True}, {"exact": True}):
        assert both.nearest("chunks", np.ones(DIMENSION), 3, Where(), **options) == []


def test_a_closed_backend_says_so(host):
    backend = host.backend()
    backend.create(DIMENSION, contextual=False)
    backend.close()
    for act in (
        backend.layout,
        lambda: backend.fetch("chunks", ["x"]),
        lambda: backend.write("chunks", points(1, 1)),
        lambda: list(backend.scan("chunks", Where())),
    ):
        with pytest.raises(StoreError, match="closed"):
            act()


def test_a_collection_that_is_gone_is_an_error_of_ours(host):
    backend = host.backend()
    for act in (
        lambda: backend.fetch("chunks", ["x"]),
        lambda: backend.count("merged", Where()),
        lambda: backend.nearest("chunks", np.ones(DIMENSION), 3, Where()),
    ):
        with pytest.raises(StoreError):
            act()
