"""Section vectors of every level, and nodes to be stored."""

import numpy as np
import pytest

from merger_plugins import RollingMerge
from merger_plugins.errors import EmptyInputError, InputError
from merger_plugins.tree import frontier
from tests.strategies import CALIBRATED, DIMENSION, MEAN, NARROW_CALIBRATED, chunk_vectors
from tests.tree.naive import TOLERANCE, every_merger, rolled

pytestmark = pytest.mark.filterwarnings("error")


def test_nothing_has_no_sections_no_length_and_no_vector():
    for merger, width in ((MEAN, 0), (CALIBRATED, DIMENSION)):
        rolling = merger.rolling()
        assert (len(rolling), rolling.places, rolling.mass) == (0, 0, 0.0)
        assert rolling.sections().shape == (0, width)
        with pytest.raises(EmptyInputError, match="holds no chunk"):
            _ = rolling.vector


@every_merger
def test_a_range_of_sections_is_a_slice_of_all(merger):
    rolling = rolled(merger, chunk_vectors(0, 50))
    for level in range(4):
        every = rolling.sections(level)
        assert len(every) == -(-50 // merger.fanout**level)
        assert np.array_equal(rolling.section_range(level, 0), every)
        for start, stop in ((0, 1), (len(every) - 1, len(every)), (0, len(every) // 2), (0, 0)):
            assert np.allclose(rolling.section_range(level, start, stop), every[start:stop], atol=1e-6)


def test_above_the_top_the_sections_stay_what_they_are():
    rolling = rolled(NARROW_CALIBRATED, chunk_vectors(0, 20))
    top = rolling.sections(3)
    assert top.shape == (1, DIMENSION)
    for level in (4, 10, 3_000):
        assert np.array_equal(rolling.sections(level), top)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 6), (3, 2), (6, None)])
def test_sections_that_do_not_exist_are_refused_with_how_many_there_are(start, stop):
    with pytest.raises(InputError, match="of level 1 do not exist: 45 places make 5"):
        rolled(MEAN, chunk_vectors(0, 45)).section_range(1, start, stop)


def test_a_level_below_the_chunks_is_refused():
    with pytest.raises(InputError, match="level is -1"):
        rolled(MEAN, chunk_vectors(0, 3)).sections(-1)


@every_merger
def test_nodes_of_a_frontier_resume_the_merge(merger):
    vectors, masses = chunk_vectors(0, 58), np.arange(1.0, 59)
    rolling = rolled(merger, vectors, masses)
    ranges = frontier(58, merger.fanout, lazy=merger._lazy_carry)
    levels = [(start, rolling.nodes(level, start, stop)) for level, (start, stop) in enumerate(ranges)]
    for _, nodes in levels:
        nodes.vectors.flags.writeable = False
    resumed = RollingMerge.from_nodes(merger, levels, 58)
    for changed in (rolling, resumed):
        changed.replace(57, vectors[0])
        changed.extend(vectors)
    assert np.allclose(resumed.vector, rolling.vector, **TOLERANCE)


@every_merger
def test_a_resumed_merge_has_the_complete_nodes_of_what_it_kept(merger):
    rolling = rolled(merger, chunk_vectors(0, 77))
    resumed = merger.rolling(rolling.state)
    for level, (start, _) in enumerate(frontier(77, merger.fanout, lazy=merger._lazy_carry)):
        complete = 77 // merger.fanout**level
        expected, nodes = (r.nodes(level, start, complete) for r in (rolling, resumed))
        assert np.allclose(nodes.vectors, expected.vectors, atol=1e-4)
        assert np.allclose(nodes.masses, expected.masses)
        assert np.array_equal(nodes.counts, expected.counts)


def test_nodes_that_do_not_exist_are_refused():
    rolling = rolled(MEAN, chunk_vectors(0, 25))
    with pytest.raises(InputError, match="Nodes 0 to 3 do not exist: this level holds 2"):
        rolling.nodes(1, 0, 3)
    with pytest.raises(InputError, match="level is 7"):
        rolling.nodes(7, 0, 1)
