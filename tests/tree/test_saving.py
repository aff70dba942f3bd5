"""States, resuming, and rolling merges without history."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import CalibratedMerger, RollingMerge
from merger_plugins.errors import StateError
from merger_plugins.tree import frontier
from tests.strategies import (
    CALIBRATED,
    DIMENSION,
    MEAN,
    NARROW_CALIBRATED,
    NARROW_MEAN,
    chunk_vectors,
    splits,
    weighted_sequences,
)
from tests.tree.naive import TOLERANCE, rolled, strategies

pytestmark = pytest.mark.filterwarnings("error")


@strategies
@given(st.data())
def test_saved_and_resumed_is_as_never_interrupted(strategy, data):
    vectors, masses = data.draw(weighted_sequences(min_size=2, max_size=50))
    merger = data.draw(st.sampled_from([NARROW_MEAN, NARROW_CALIBRATED, CALIBRATED]))
    whole = RollingMerge(merger, strategy=strategy)
    pieces = RollingMerge(merger, strategy=strategy)
    for part in data.draw(splits(len(vectors))):
        for rolling in (whole, pieces):
            rolling.extend(vectors[part], masses=masses[part])
        held = st.integers(0, whole.places - 1)
        for place in data.draw(st.sets(held, max_size=2)):
            if whole.history and len(whole) > 1 and whole.sections(0)[place].any() and pieces.history:
                whole.remove(place)
                pieces.remove(place)
        if data.draw(st.booleans()):
            pieces = merger.rolling(pieces.state, strategy=strategy)
        assert np.allclose(pieces.vector, whole.vector, **TOLERANCE)
        assert (len(pieces), pieces.places) == (len(whole), whole.places)
        assert pieces.mass == pytest.approx(whole.mass, rel=1e-6)
    assert pieces.state == merger.rolling(pieces.state, strategy=strategy).state


@strategies
def test_an_empty_merge_can_be_saved_and_resumed(strategy):
    for merger in (MEAN, CALIBRATED):
        resumed = merger.rolling(RollingMerge(merger, strategy=strategy).state, strategy=strategy)
        resumed.extend(chunk_vectors(0, 25))
        assert np.allclose(
            resumed.vector, rolled(merger, chunk_vectors(0, 25), strategy=strategy).vector, **TOLERANCE
        )


@strategies
def test_without_history_the_state_is_the_same(strategy):
    vectors = chunk_vectors(0, 77)
    kept, forgotten = (
        rolled(NARROW_CALIBRATED, vectors, strategy=strategy, history=history) for history in (True, False)
    )
    assert kept.state == forgotten.state


@pytest.mark.parametrize("merger", [MEAN, CALIBRATED, NARROW_CALIBRATED], ids=repr)
def test_a_state_stays_small(merger):
    node = 4 * DIMENSION + 12
    rolling = RollingMerge(merger, history=False)
    for _ in range(10):
        rolling.extend(chunk_vectors(0, 500))
    levels = len(frontier(5_000, merger.fanout, lazy=merger._lazy_carry))
    assert len(rolling.state) < levels * 3 * merger.fanout * node + 500
    assert levels <= 8


@pytest.mark.parametrize("merger", [MEAN, CalibratedMerger(dimension=384)], ids=repr)
def test_a_compact_state_is_small_and_goes_on_where_the_plain_one_does(merger):
    vectors = chunk_vectors(0, 1_010, 384) + 1
    rolling = RollingMerge(merger, history=False)
    rolling.extend(vectors[:999])
    compact = merger.rolling(rolling.compact_state)
    assert len(rolling.compact_state) < 0.4 * len(rolling.state) < 65_536
    for vector in vectors[999:]:
        rolling.append(vector)
        compact.append(vector)
        compact = merger.rolling(compact.compact_state)
        assert rolling.vector @ compact.vector > 1 - 1e-6
    assert (len(compact), compact.places) == (1_010, 1_010)


VECTORS = chunk_vectors(0, 45)
FORGETFUL = {
    "made without": lambda merger: rolled(merger, VECTORS, history=False),
    "resumed": lambda merger: merger.rolling(rolled(merger, VECTORS).state),
}
forgetful = pytest.mark.parametrize("make", FORGETFUL.values(), ids=FORGETFUL.keys())


@forgetful
@pytest.mark.parametrize("merger", [MEAN, CALIBRATED], ids=["mean", "calibrated"])
def test_without_history_older_chunks_cannot_be_read_or_changed(merger, make):
    rolling = make(merger)
    oldest = frontier(45, 10, lazy=merger._lazy_carry)[0][0]
    assert oldest > 0
    for attempt in (
        lambda: rolling.replace(oldest - 1, VECTORS[0]),
        lambda: rolling.remove(oldest - 1),
        lambda: rolling.sections(0),
        lambda: rolling.sections(1),
        lambda: rolling.contextual(),
        lambda: rolling.nodes(0, oldest - 1, oldest),
    ):
        with pytest.raises(StateError, match=r"gone: .*history=False"):
            attempt()


@forgetful
@pytest.mark.parametrize("merger", [MEAN, CALIBRATED], ids=["mean", "calibrated"])
def test_without_history_the_chunks_that_are_kept_can_be_read_and_changed(merger, make):
    rolling, whole = make(merger), rolled(merger, VECTORS)
    oldest = frontier(45, 10, lazy=merger._lazy_carry)[0][0]
    assert np.allclose(rolling.section_range(0, oldest), whole.section_range(0, oldest), **TOLERANCE)
    assert np.allclose(rolling.section_range(1, 4), whole.section_range(1, 4), **TOLERANCE)
    for changed in (rolling, whole):
        changed.replace(oldest, VECTORS[0])
        changed.replace(44, VECTORS[1], mass=5)
        changed.remove(43)
        changed.extend(VECTORS)
    assert np.allclose(rolling.vector, whole.vector, **TOLERANCE)


def test_a_resumed_chain_reads_no_chunk_where_it_kept_the_chain():
    chain = MEAN.rolling(rolled(MEAN, chunk_vectors(0, 8), strategy="chain").state, strategy="chain")
    with pytest.raises(StateError, match="gone"):
        chain.section_range(0, 7)
    with pytest.raises(StateError):
        chain.replace(7, np.ones(DIMENSION))
    chain.append(chunk_vectors(1, 1)[0])
    with pytest.raises(StateError, match="chain without history"):
        chain.replace(8, np.ones(DIMENSION))
