import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import MeanMerger
from merger_plugins.stores.backend import Point
from merger_plugins.stores.planning import Covering, differs, root_level, section_keys
from merger_plugins.stores.surroundings import BACK
from tests.strategies import NarrowCalibrated, NarrowMean

counts = st.integers(0, 400)
fanouts = st.integers(2, 10)


def keys_by_hand(places: int, fanout: int) -> set[tuple[int, int]]:
    if places < fanout:
        return set()
    complete = {
        (level, first // fanout**level)
        for level in range(1, 10)
        for first in range(0, places, fanout**level)
        if first + fanout**level <= places
    }
    return complete | {(1, (places - 1) // fanout)}


@given(counts, fanouts)
def test_section_keys_are_the_complete_nodes_and_the_last_section(places, fanout):
    keys = section_keys(places, fanout)
    assert len(keys) == len(set(keys))
    assert set(keys) == keys_by_hand(places, fanout)


@given(counts, st.integers(1, 40), fanouts)
def test_keys_since_are_those_that_appending_changes(before, added, fanout):
    changed = set(section_keys(before + added, fanout, since=before))
    kept = set(section_keys(before + added, fanout)) - changed
    complete_before = {
        (level, index)
        for level, index in keys_by_hand(before, fanout)
        if (index + 1) * fanout**level <= before
    }
    assert kept == complete_before


@given(st.integers(1, 10_000), fanouts)
def test_a_root_is_one_level_above_the_highest_complete_node(places, fanout):
    level = root_level(places, fanout)
    assert fanout ** (level - 1) <= places < fanout**level


@given(st.integers(1, 5_000), st.booleans(), st.booleans())
def test_a_covering_is_small_and_asks_for_complete_sections_only(places, lazy, contextual):
    merger = NarrowCalibrated(dimension=3) if lazy else NarrowMean()
    covering = Covering.of(places, merger, back=BACK if contextual else 0)
    complete = keys_by_hand(places, 3)
    assert all(key in complete and (key[1] + 1) * 3 ** key[0] <= places for key in covering.nodes())
    assert covering.leaves.stop == places
    assert covering.leaves.start <= max(places - BACK, 0) or not contextual
    assert len(covering.leaves) + len(covering.nodes()) <= BACK + 9 * 9


def test_points_differ_by_payload_and_vectors_but_not_by_rounding():
    vector = np.ones(3, np.float32)
    point = Point("a", {"mass": 3.0, "norm": 1.0, "text": "x", "node": "abc"}, vector)
    same = Point("a", {"mass": 3.0000002, "norm": 1.0, "text": "x", "node": "other"}, vector + 1e-7)
    assert not differs(point, same)
    assert differs(point, None)
    assert differs(point, Point("a", {**point.payload, "text": "y"}, vector))
    assert differs(point, Point("a", {**point.payload, "mass": 3.1}, vector))
    assert differs(point, Point("a", point.payload, vector + 1e-3))
    assert differs(point, Point("a", point.payload, vector, vector))


@pytest.mark.parametrize("places", [1, 9])
def test_a_short_document_has_no_sections(places):
    assert section_keys(places, MeanMerger().fanout) == []
    assert root_level(places, MeanMerger().fanout) == 1
