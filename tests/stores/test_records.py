from datetime import UTC, datetime
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins.errors import InputError, StoreError
from merger_plugins.stores.records import (
    PointIds,
    content_hash,
    namespace_of,
    pack,
    plain,
    source_hash,
    unpack,
)

IDS = PointIds(namespace_of("documents"))


def test_ids_are_uuids_that_follow_from_their_arguments():
    again = PointIds(namespace_of("documents"))
    assert UUID(IDS.root("a")).version == 5
    assert IDS.root("a") == again.root("a")
    assert IDS.root("a") != PointIds(namespace_of("other")).root("a")


@given(st.lists(st.tuples(st.text(), st.integers(0, 3), st.integers(0, 3)), min_size=2, unique=True))
def test_no_two_points_share_an_id(keys):
    ids = {IDS.section(*key) for key in keys} | {IDS.root(key[0]) for key in keys}
    assert len(ids) == len(keys) + len({key[0] for key in keys})


payloads = st.fixed_dictionaries(
    {"hash": st.text(), "mass": st.floats(1, 9), "metadata": st.dictionaries(st.text(), st.integers())}
)


@given(st.lists(payloads), st.lists(payloads))
def test_content_hash_continues_from_the_chunks_before(before, after):
    assert content_hash(after, content_hash(before)) == content_hash([*before, *after])


@given(st.lists(payloads, min_size=1, max_size=3), st.lists(payloads, max_size=3))
def test_content_hash_tells_contents_apart(one, other):
    assert (content_hash(one) == content_hash(other)) == (one == other)


def test_a_vector_and_a_text_of_the_same_bytes_are_different_sources():
    vector = np.frombuffer(b"abcd", "<f4")
    assert source_hash(vector) != source_hash("abcd")
    assert source_hash(vector) == source_hash(vector.copy())


def test_plain_copies_and_converts():
    given_ = {"when": datetime(2026, 1, 2, tzinfo=UTC), "n": np.int64(3), "deep": [{"x": 1.5}]}
    copy = plain(given_, "It")
    assert copy == {"when": "2026-01-02T00:00:00+00:00", "n": 3, "deep": [{"x": 1.5}]}
    copy["deep"][0]["x"] = 0
    assert given_["deep"] == [{"x": 1.5}]


@pytest.mark.parametrize("value", [{"x": float("nan")}, {"x": {1, 2}}, {"x": object()}, {(1, 2): 3}])
def test_plain_refuses_what_json_has_no_form_for(value):
    with pytest.raises(InputError, match="The thing cannot be stored"):
        plain(value, "The thing")


def test_packed_vectors_come_back_exactly():
    vector = np.random.default_rng(0).standard_normal(7).astype(np.float32)
    np.testing.assert_array_equal(unpack(pack(vector)), vector)


@pytest.mark.parametrize("text", ["###", "AAA=", 5])
def test_damaged_nodes_are_an_error_that_says_what_to_do(text):
    with pytest.raises(StoreError, match="rebuild"):
        unpack(text)
