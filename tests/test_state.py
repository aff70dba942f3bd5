"""The saved form of a rolling merge: what was written is read, and nothing else."""

import hashlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import MergerError, RollingMerge
from merger_plugins._nodes import Nodes
from merger_plugins._state import VERSION, dump, load
from merger_plugins.errors import StateError
from tests.strategies import CALIBRATED, DIMENSION, MEAN, NARROW_MEAN, UNCALIBRATED, chunk_vectors

EXPECTED = {"fingerprint": "0123456789abcdef", "strategy": "tree", "fanout": 10}


def nodes(seed, count, dimension=4):
    rng = np.random.default_rng(seed)
    return Nodes(
        rng.standard_normal((count, dimension)).astype(np.float32),
        rng.uniform(0, 9, count).astype(np.float32),
        rng.integers(0, 2**40, count),
    )


def sealed(header, arrays=b"", *, version=1, magic=b"MRGS"):
    """A state as the module's docstring lays it out, written without the module."""
    text = json.dumps(header).encode()
    body = magic + bytes([version]) + struct.pack("<I", len(text)) + text + arrays
    return body + hashlib.sha256(body).digest()[:16]


@given(st.lists(st.integers(0, 12), max_size=5), st.integers(1, 8), st.integers(0, 10_000))
def test_what_is_written_is_read_to_the_last_bit(sizes, dimension, places):
    levels = [(7 * i, nodes(i, size, dimension)) for i, size in enumerate(sizes)]
    state = load(dump(**EXPECTED, places=places, levels=levels), **EXPECTED)
    assert state.places == places
    assert [first for first, _ in state.levels] == [first for first, _ in levels]
    for (_, read), (_, written) in zip(state.levels, levels, strict=True):
        for name, dtype in (("vectors", np.float32), ("masses", np.float32), ("counts", np.int64)):
            assert getattr(read, name).dtype == dtype
            assert np.array_equal(getattr(read, name), getattr(written, name))


@given(st.lists(st.integers(0, 12), max_size=5), st.integers(1, 8))
def test_a_compact_state_is_as_near_as_twelve_bits_are(sizes, dimension):
    levels = [(7 * i, nodes(i, size, dimension)) for i, size in enumerate(sizes)]
    written = dump(**EXPECTED, places=1, levels=levels, compact=True)
    state = load(written, **EXPECTED)
    for (_, read), (_, exact) in zip(state.levels, levels, strict=True):
        largest = np.abs(exact.vectors).max(axis=1, initial=0)[:, None]
        assert (np.abs(read.vectors - exact.vectors) <= largest * (0.5 / 2047 + 1e-6)).all()
        assert read.vectors.dtype == np.float32
        assert np.array_equal(read.masses, exact.masses)
        assert np.array_equal(read.counts, exact.counts)
    again = load(dump(**EXPECTED, places=1, levels=state.levels, compact=True), **EXPECTED)
    for (_, twice), (_, once) in zip(again.levels, state.levels, strict=True):
        assert np.allclose(twice.vectors, once.vectors, rtol=1e-6, atol=0)


def test_the_layout_of_a_compact_state_is_the_documented_one():
    vectors = np.array([[2047, -2047, 1]], np.float32) / 8
    header = {**EXPECTED, "places": 1, "dimension": 3, "levels": [[0, 1]]}
    bits = [f"{code:012b}" for code in (2047 + 2048, -2047 + 2048, 1 + 2048, 0)]
    numbers = b"".join(int(second + first, 2).to_bytes(3, "little") for first, second in (bits[:2], bits[2:]))
    arrays = np.array([1 / 8], "<f4").tobytes() + numbers
    arrays += np.array([5], "<f4").tobytes() + np.array([1], "<i8").tobytes()
    ((_, read),) = load(sealed(header, arrays, version=2), **EXPECTED).levels
    assert np.array_equal(read.vectors, vectors)
    assert read.masses.tolist() == [5]
    written = dump(**EXPECTED, places=1, levels=[(0, read)], compact=True)
    assert written == sealed(header, arrays, version=2)


def test_a_plain_state_is_one_that_earlier_releases_read():
    assert dump(**EXPECTED, places=0, levels=[])[4] == 1


def test_the_layout_is_the_documented_one():
    vectors = np.arange(6, dtype="<f4").reshape(2, 3)
    header = {**EXPECTED, "places": 2, "dimension": 3, "levels": [[0, 2]]}
    counts = np.array([1, 1], "<i8")
    written = sealed(header, vectors.tobytes() + np.array([5, 6], "<f4").tobytes() + counts.tobytes())
    state = load(written, **EXPECTED)
    assert state.places == 2
    ((first, read),) = state.levels
    assert first == 0
    assert np.array_equal(read.vectors, vectors)
    assert read.masses.tolist() == [5, 6]
    assert read.counts.tolist() == [1, 1]


def test_what_is_read_may_be_changed():
    state = load(dump(**EXPECTED, places=2, levels=[(0, nodes(0, 2))]), **EXPECTED)
    state.levels[0][1].vectors[:] = 0


GOOD = dump(**EXPECTED, places=3, levels=[(0, nodes(0, 3))])


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_changed_byte_is_found(place, change):
    damaged = bytearray(GOOD)
    damaged[place] ^= change
    with pytest.raises(StateError):
        load(bytes(damaged), **EXPECTED)


@given(st.integers(0, len(GOOD) - 1))
def test_any_missing_end_is_found(length):
    with pytest.raises(StateError):
        load(GOOD[:length], **EXPECTED)


def test_anything_added_is_found():
    with pytest.raises(StateError, match=r"damaged.*again"):
        load(GOOD + b"\0", **EXPECTED)


@pytest.mark.parametrize("data", [b"", b"MRGS", b"\x80\x04pickled", b"x" * 100])
def test_other_bytes_are_no_state(data):
    with pytest.raises(StateError, match=f"{len(data)} bytes are no state.*again") as caught:
        load(data, **EXPECTED)
    assert isinstance(caught.value, MergerError)
    assert isinstance(caught.value, ValueError)


def test_a_newer_version_asks_for_an_upgrade():
    with pytest.raises(StateError, match=f"version {VERSION + 1}.*up to {VERSION}.*pip install --upgrade"):
        load(sealed({}, version=VERSION + 1), **EXPECTED)


@pytest.mark.parametrize(
    ("name", "other"), [("fingerprint", "fedcba9876543210"), ("strategy", "chain"), ("fanout", 3)]
)
def test_the_state_of_another_merger_names_both(name, other):
    with pytest.raises(StateError, match=f"{name} {EXPECTED[name]!r}, and this merger has {other!r}"):
        load(GOOD, **{**EXPECTED, name: other})


def test_mergers_and_strategies_do_not_take_each_others_states():
    rolling = CALIBRATED.rolling()
    rolling.extend(chunk_vectors(0, 25))
    with pytest.raises(StateError, match=CALIBRATED.fingerprint):
        UNCALIBRATED.rolling(rolling.state)
    with pytest.raises(StateError, match=r"'tree'.*'flat'"):
        CALIBRATED.rolling(rolling.state, strategy="flat")
    rolling = MEAN.rolling()
    rolling.append(chunk_vectors(0, 1)[0])
    with pytest.raises(StateError, match=r"fanout 10.*3"):
        NARROW_MEAN.rolling(rolling.state)


def test_nodes_that_do_not_cover_the_sequence_are_refused_with_what_it_needs():
    covering = [(0, nodes(0, 5, DIMENSION)), (0, nodes(1, 1, DIMENSION))]
    with pytest.raises(StateError, match=r"\(0, 5\), \(0, 1\).*15 places need \[\(10, 15\), \(0, 1\)\]"):
        RollingMerge.from_nodes(MEAN, covering, 15)
    with pytest.raises(StateError, match="-1 places"):
        RollingMerge.from_nodes(MEAN, covering, -1)
    with pytest.raises(StateError, match=r"0 places need \[\]"):
        RollingMerge.from_nodes(MEAN, covering, 0)
