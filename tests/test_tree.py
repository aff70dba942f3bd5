"""Rolling merges against the same thing made from scratch, by recursion from the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from merger_plugins import TURN_WEIGHTS, CalibratedMerger, ContextWeights, MergerError, RollingMerge
from merger_plugins.errors import (
    DimensionError,
    EmptyInputError,
    InputError,
    NonFiniteError,
    StateError,
    ZeroVectorError,
)
from merger_plugins.tree import LEAST_MASS, MOST_MASS, frontier
from tests.naive_tree import NaiveTree
from tests.strategies import (
    CALIBRATED,
    DIMENSION,
    MEAN,
    MERGERS,
    NARROW_CALIBRATED,
    NARROW_MEAN,
    chunk_vectors,
    normalised,
    splits,
    weighted_sequences,
)

pytestmark = pytest.mark.filterwarnings("error")

every_merger = pytest.mark.parametrize("merger", MERGERS.values(), ids=MERGERS.keys())
strategies = pytest.mark.parametrize("strategy", ["tree", "flat", "chain"])
TOLERANCE = {"atol": 1e-5}


def rolled(merger, vectors, masses=None, **options):
    rolling = RollingMerge(merger, **options)
    rolling.extend(vectors, masses=masses)
    return rolling


def naive(merger, vectors, masses=None, *, empty=(), strategy="tree"):
    masses = np.ones(len(vectors)) if masses is None else masses
    pairs = zip(vectors, masses, strict=True)
    places = [None if i in empty else pair for i, pair in enumerate(pairs)]
    return NaiveTree(merger, places, vectors.shape[1], strategy)


def assert_agree(rolling, other, levels=(0, 1, 2)):
    """Two rolling merges, or one and a naive one, say the same in everything they say."""
    if isinstance(other, RollingMerge):
        assert (len(rolling), rolling.places) == (len(other), other.places)
        assert rolling.mass == pytest.approx(other.mass, rel=1e-6)
        expected = other.vector, [other.sections(level) for level in levels], other.contextual(TURN_WEIGHTS)
    else:
        assert len(rolling) == sum(place is not None for place in other.places)
        assert rolling.places == len(other.places)
        assert rolling.mass == pytest.approx(sum(node.mass for node in other.leaves), rel=1e-6)
        expected = other.vector(), [other.sections(level) for level in levels], other.contextual(TURN_WEIGHTS)
    assert np.allclose(rolling.vector, expected[0], **TOLERANCE)
    for level, sections in zip(levels, expected[1], strict=True):
        assert np.allclose(rolling.sections(level), sections, **TOLERANCE)
    assert np.allclose(rolling.contextual(TURN_WEIGHTS), expected[2], **TOLERANCE)


# Which nodes cover a sequence


@given(st.integers(1, 3_000), st.integers(2, 12), st.integers(0, 3))
def test_the_frontier_covers_every_place_once(places, fanout, lazy):
    ranges = frontier(places, fanout, lazy=lazy)
    covered = [
        place
        for level, (start, stop) in reversed(list(enumerate(ranges)))
        for place in range(start * fanout**level, stop * fanout**level)
    ]
    assert covered == list(range(places))
    assert all(stop - start < fanout * (1 + lazy) for start, stop in ranges)


@pytest.mark.parametrize(
    ("places", "lazy", "ranges"),
    [
        (0, 0, []),
        (9, 0, [(0, 9)]),
        (10, 0, [(10, 10), (0, 1)]),
        (123, 0, [(120, 123), (10, 12), (0, 1)]),
        (19, 1, [(0, 19)]),
        (20, 1, [(10, 20), (0, 1)]),
        (29, 2, [(0, 29)]),
        (30, 2, [(10, 30), (0, 1)]),
        (320, 2, [(300, 320), (10, 30), (0, 1)]),
    ],
)
def test_a_lazy_level_keeps_its_nodes_until_more_are_complete(places, lazy, ranges):
    assert frontier(places, 10, lazy=lazy) == ranges


# Growing


@every_merger
@given(weighted_sequences(max_size=50))
def test_a_rolling_merge_answers_as_the_definition(merger, sequence):
    vectors, masses = sequence
    assert_agree(rolled(merger, vectors, masses), naive(merger, vectors, masses))


@strategies
@pytest.mark.parametrize("merger", [NARROW_MEAN, NARROW_CALIBRATED], ids=["mean", "calibrated"])
@given(weighted_sequences(max_size=40))
def test_every_strategy_follows_its_definition(merger, strategy, sequence):
    vectors, masses = sequence
    rolling = rolled(merger, vectors, masses, strategy=strategy)
    expected = naive(merger, vectors, masses, strategy=strategy).vector()
    assert np.allclose(rolling.vector, expected, **TOLERANCE)


@every_merger
def test_many_chunks_through_several_levels(merger):
    vectors = chunk_vectors(0, 437)
    masses = np.random.default_rng(0).uniform(1, 100, 437)
    assert_agree(rolled(merger, vectors, masses), naive(merger, vectors, masses), levels=(0, 1, 2, 3))


@strategies
@pytest.mark.parametrize("history", [True, False])
@given(st.data())
def test_any_split_into_appends_and_extensions_gives_the_same(strategy, history, data):
    vectors, masses = data.draw(weighted_sequences(max_size=40))
    merger = data.draw(st.sampled_from([NARROW_MEAN, NARROW_CALIBRATED, CALIBRATED]))
    rolling = RollingMerge(merger, strategy=strategy, history=history)
    for part in data.draw(splits(len(vectors))):
        if part.stop - part.start == 1:
            rolling.append(vectors[part.start], mass=float(masses[part.start]))
        else:
            rolling.extend(vectors[part], masses=masses[part])
    whole = rolled(merger, vectors, masses, strategy=strategy)
    assert np.allclose(rolling.vector, whole.vector, **TOLERANCE)
    assert (len(rolling), rolling.places) == (len(whole), whole.places)


@every_merger
def test_a_section_of_chunks_is_their_merge_and_a_flat_root_is_the_merge_of_all(merger):
    vectors, masses = chunk_vectors(0, 34), np.arange(1.0, 35)
    width = merger.fanout
    parts = [slice(start, start + width) for start in range(0, 34, width)]
    expected = merger.merge_many([vectors[p] for p in parts], masses=[masses[p] for p in parts])
    assert np.allclose(rolled(merger, vectors, masses).sections(), expected, **TOLERANCE)
    if merger.window is None:
        flat = rolled(merger, vectors, masses, strategy="flat")
        assert np.allclose(flat.vector, merger.merge(vectors, masses=masses), **TOLERANCE)


@pytest.mark.parametrize("merger", [MEAN, NARROW_MEAN], ids=["fan-out 10", "fan-out 3"])
@given(weighted_sequences(max_size=60))
def test_the_tree_loses_nothing_of_a_mean(merger, sequence):
    vectors, masses = sequence
    assert np.allclose(
        rolled(merger, vectors, masses).vector, MEAN.merge(vectors, masses=masses), **TOLERANCE
    )


def test_a_chain_of_means_is_the_fold_of_merges():
    vectors, masses = chunk_vectors(0, 12), np.arange(1.0, 13)
    merged, mass = vectors[0], masses[0]
    for vector, weight in zip(vectors[1:], masses[1:], strict=True):
        merged, mass = MEAN.merge([merged, vector], masses=[mass, weight]), mass + weight
    assert np.allclose(rolled(MEAN, vectors, masses, strategy="chain").vector, merged, **TOLERANCE)


def test_masses_are_in_proportion_in_a_rolling_merge_too():
    vectors, masses = chunk_vectors(0, 45), np.arange(1.0, 46)
    expected = rolled(CALIBRATED, vectors, masses)
    for factor in (LEAST_MASS, 1e-6, 1e10, MOST_MASS / 45):
        assert np.allclose(rolled(CALIBRATED, vectors, masses * factor).vector, expected.vector, **TOLERANCE)


# Changing


@every_merger
@given(st.data())
def test_replacing_and_removing_equal_rebuilding_with_the_same_places(merger, data):
    vectors, masses = data.draw(weighted_sequences(min_size=2, max_size=40))
    rolling = rolled(merger, vectors, masses)
    places = st.integers(0, len(vectors) - 1)
    fresh = chunk_vectors(data.draw(st.integers(0, 1_000)), len(vectors))
    for place in sorted(data.draw(st.sets(places, max_size=6))):
        vectors[place] = fresh[place]
        rolling.replace(place, fresh[place])
    for place in sorted(data.draw(st.sets(places, max_size=3))):
        vectors[place], masses[place] = fresh[place], 7.5
        rolling.replace(place, fresh[place], mass=7.5)
    removed = data.draw(st.sets(places, max_size=len(vectors) - 1))
    for place in removed:
        rolling.remove(place)
    if len(rolling):
        assert_agree(rolling, naive(merger, vectors, masses, empty=removed))


@strategies
def test_removed_chunks_count_for_nothing_and_their_places_can_be_filled_again(strategy):
    vectors = chunk_vectors(0, 31)
    rolling = rolled(NARROW_CALIBRATED, vectors, strategy=strategy)
    for place in (0, 1, 2, 17, 30):
        rolling.remove(place)
    assert (len(rolling), rolling.places, rolling.mass) == (26, 31, 26.0)
    gone = {0, 1, 2, 17, 30}
    expected = naive(NARROW_CALIBRATED, vectors, empty=gone, strategy=strategy)
    assert np.allclose(rolling.vector, expected.vector(), **TOLERANCE)
    assert not rolling.sections(1)[0].any()
    assert not rolling.contextual()[[0, 1, 2, 17, 30]].any()
    for place in gone:
        rolling.replace(place, vectors[place], mass=1)
    whole = rolled(NARROW_CALIBRATED, vectors, strategy=strategy)
    assert np.allclose(rolling.vector, whole.vector, **TOLERANCE)


@strategies
def test_an_emptied_merge_says_so_and_starts_again(strategy):
    rolling = rolled(MEAN, chunk_vectors(0, 12), strategy=strategy)
    for place in range(12):
        rolling.remove(place)
    assert (len(rolling), rolling.places, rolling.mass) == (0, 12, 0.0)
    for attempt in (lambda: rolling.vector, rolling.contextual, rolling.refresh_context):
        with pytest.raises(EmptyInputError, match="holds no chunk; append one"):
            attempt()
    assert not rolling.sections(1).any()
    for continued in (rolling, MEAN.rolling(rolling.state, strategy=strategy)):
        continued.append(chunk_vectors(1, 1)[0], mass=3)
        assert np.allclose(continued.vector, normalised(chunk_vectors(1, 1))[0], **TOLERANCE)
        assert (len(continued), continued.places, continued.mass) == (1, 13, 3.0)


@pytest.mark.parametrize("place", [-1, 5, 1_000])
def test_places_that_do_not_exist_are_refused_with_how_many_there_are(place):
    rolling = rolled(MEAN, chunk_vectors(0, 5))
    for attempt in (lambda: rolling.remove(place), lambda: rolling.replace(place, np.ones(DIMENSION))):
        with pytest.raises(InputError, match=f"place {place} does not exist; there are 5"):
            attempt()


def test_empty_places_cannot_be_removed_again_and_have_no_mass_to_keep():
    rolling = rolled(MEAN, chunk_vectors(0, 5))
    rolling.remove(2)
    with pytest.raises(InputError, match="place 2 is empty already"):
        rolling.remove(2)
    with pytest.raises(InputError, match=r"place 2 is empty.*pass mass="):
        rolling.replace(2, np.ones(DIMENSION))


@pytest.mark.parametrize(
    ("vector", "mass", "error"),
    [
        (np.ones(DIMENSION + 1), 1, DimensionError),
        (np.ones((1, DIMENSION)), 1, DimensionError),
        (np.zeros(DIMENSION), 1, ZeroVectorError),
        (np.full(DIMENSION, np.inf), 1, NonFiniteError),
        (np.ones(DIMENSION), 0, InputError),
        (np.ones(DIMENSION), np.nan, NonFiniteError),
        (np.ones(DIMENSION), LEAST_MASS / 2, InputError),
        (np.ones(DIMENSION), MOST_MASS * 2, InputError),
    ],
)
@strategies
def test_a_refused_chunk_changes_nothing(strategy, vector, mass, error):
    rolling = rolled(MEAN, chunk_vectors(0, 15), strategy=strategy)
    before = rolling.state
    for attempt in (
        lambda: rolling.append(vector, mass=mass),
        lambda: rolling.extend([np.ones(DIMENSION), vector], masses=[1, mass]),
        lambda: rolling.replace(3, vector, mass=mass),
    ):
        with pytest.raises(error) as caught:
            attempt()
        assert isinstance(caught.value, MergerError)
    assert rolling.state == before
    assert len(rolling) == 15


def test_a_mass_out_of_bounds_is_named_with_the_bounds():
    with pytest.raises(InputError, match=r"hold 1e\+20; .* 1e-15 to 1e\+15"):
        MEAN.rolling().append(np.ones(3), mass=1e20)


def test_the_first_chunk_decides_the_dimension_where_the_merger_does_not():
    rolling = rolled(MEAN, np.ones((1, 5)))
    with pytest.raises(DimensionError, match=r"dimension 4.*dimension 5"):
        rolling.append(np.ones(4))
    with pytest.raises(DimensionError, match=r"dimension 5.*dimension 6"):
        CALIBRATED.rolling().append(np.ones(5))


@strategies
def test_the_callers_arrays_are_neither_kept_nor_changed(strategy):
    vectors, masses = chunk_vectors(0, 7), np.arange(1, 8, dtype=np.float32)
    rolling = rolled(MEAN, vectors, masses, strategy=strategy)
    before = rolling.vector
    vectors[:], masses[:] = 9, 9
    assert np.array_equal(rolling.vector, before)
    rolling.vector[:] = 0
    rolling.sections(0)[:] = 0
    rolling.nodes(0, 0, 7).vectors[:] = 0
    assert np.array_equal(rolling.vector, before)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(InputError, match=r"'heap'; choose 'tree', 'flat' or 'chain'"):
        RollingMerge(MEAN, strategy="heap")


@strategies
def test_chunks_that_cancel_out_are_refused_when_read(strategy):
    rolling = rolled(MEAN, [[1.0, 2.0], [-1.0, -2.0]], strategy=strategy)
    with pytest.raises(ZeroVectorError, match=r"2 chunks .*cancel out"):
        _ = rolling.vector


# Sections


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


# Saving and forgetting


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


# Context


def test_the_first_renewal_gives_every_chunk_and_the_next_one_none():
    rolling = rolled(CALIBRATED, chunk_vectors(0, 25))
    rolling.remove(3)
    places, vectors = rolling.refresh_context()
    assert places.tolist() == [p for p in range(25) if p != 3]
    assert places.dtype == np.int64
    assert np.array_equal(vectors, rolling.contextual()[places])
    again, nothing = rolling.refresh_context()
    assert (again.shape, nothing.shape) == ((0,), (0, DIMENSION))


@pytest.mark.parametrize(
    ("change", "due"),
    [
        (lambda r, v: r.append(v), [48, 49, 50]),
        (lambda r, v: r.extend([v, v]), [48, 49, 50, 51]),
        (lambda r, v: r.replace(20, v), [18, 19, 20, 21, 22]),
        (lambda r, v: r.replace(0, v), [0, 1, 2]),
        (lambda r, v: r.replace(49, v), [47, 48, 49]),
        (lambda r, _: r.remove(20), [18, 19, 21, 22]),
        (lambda r, v: (r.replace(1, v), r.replace(30, v)), [0, 1, 2, 3, 28, 29, 30, 31, 32]),
    ],
)
def test_a_change_renews_the_chunks_that_it_reaches(change, due):
    vectors = chunk_vectors(0, 51, spread=0.3)
    rolling = rolled(CALIBRATED, vectors[:50])
    rolling.refresh_context()
    change(rolling, vectors[50])
    places, renewed = rolling.refresh_context()
    assert places.tolist() == due
    assert np.allclose(renewed, rolling.contextual()[due], **TOLERANCE)
    assert not len(rolling.refresh_context()[0])


def test_a_root_that_turned_renews_every_chunk():
    rolling = rolled(CALIBRATED, chunk_vectors(0, 10, spread=0.3))
    rolling.refresh_context()
    rolling.extend(-chunk_vectors(0, 10, spread=0.3) + chunk_vectors(9, 10))
    assert rolling.refresh_context()[0].tolist() == list(range(20))


def test_a_mean_mass_that_moved_renews_every_chunk():
    rolling = rolled(CALIBRATED, chunk_vectors(0, 30, spread=0.3), np.full(30, 50))
    rolling.refresh_context()
    rolling.extend(chunk_vectors(0, 30, spread=0.3), masses=np.full(30, 500))
    assert rolling.refresh_context()[0].tolist() == list(range(60))


def test_other_weights_renew_every_chunk_and_the_mergers_own_are_no_others():
    rolling = rolled(CALIBRATED, chunk_vectors(0, 12))
    rolling.refresh_context()
    assert not len(rolling.refresh_context(CALIBRATED.context_weights)[0])
    places, vectors = rolling.refresh_context(TURN_WEIGHTS)
    assert places.tolist() == list(range(12))
    assert np.array_equal(vectors, rolling.contextual(TURN_WEIGHTS))


def test_a_renewal_that_failed_is_due_again():
    rolling = rolled(MEAN, chunk_vectors(0, 3), history=False)
    rolling.refresh_context()
    rolling.extend(chunk_vectors(1, 30))
    for _ in range(2):
        with pytest.raises(StateError, match="gone"):
            rolling.refresh_context()


def test_a_short_conversation_renews_its_turns_after_being_resumed():
    turns = chunk_vectors(0, 12, spread=0.3)
    resumed = CALIBRATED.rolling(rolled(CALIBRATED, turns[:11]).state)
    assert resumed.refresh_context()[0].tolist() == list(range(11))
    resumed.append(turns[11])
    places, vectors = resumed.refresh_context()
    assert places.tolist()[-3:] == [9, 10, 11]
    assert np.allclose(vectors, rolled(CALIBRATED, turns).contextual()[places], **TOLERANCE)


DRIFTS = {
    "one subject": (0.0, lambda _: 50.0),
    "a wandering subject": (0.2, lambda _: 50.0),
    "growing chunks": (0.05, lambda i: 1.0 + i),
    "short, then long": (0.05, lambda i: 1.0 if i < 60 else 100.0),
    "long, then short": (0.05, lambda i: 100.0 if i < 60 else 1.0),
}


@pytest.mark.parametrize(
    ("weights", "least"), [(ContextWeights(), 0.999), (TURN_WEIGHTS, 0.998)], ids=["paragraphs", "turns"]
)
@pytest.mark.parametrize(("step", "mass"), DRIFTS.values(), ids=DRIFTS.keys())
def test_what_a_renewal_leaves_alone_is_close_to_fresh(step, mass, weights, least):
    # In few dimensions vectors nearly cancel out now and then; 64 have the geometry of embeddings.
    rng = np.random.default_rng(0)
    scale = np.geomspace(1, 0.1, 64)
    merger = CalibratedMerger(dimension=64).calibrated(rng.standard_normal((4_000, 64)) * scale + 0.2)
    rolling, stored, written = merger.rolling(), {}, 0
    subject = rng.standard_normal(64)
    for i in range(120):
        subject = subject + step * rng.standard_normal(64)
        rolling.append((subject + rng.standard_normal(64)) * scale + 0.2, mass=mass(i))
        places, vectors = rolling.refresh_context(weights)
        stored.update(zip(places.tolist(), vectors, strict=True))
        written += len(places)
        held = np.stack([stored[place] for place in range(rolling.places)])
        assert (rolling.contextual(weights) * held).sum(axis=1).min() > least
    assert written < 120 * 15  # an append renews a few chunks, not half of the document


# Anything in any order


class RollingAgainstRebuilding(RuleBasedStateMachine):
    """A rolling merge that lives through everything, against one made from scratch after each step."""

    seeds = st.integers(0, 100_000)
    some_mass = st.floats(0.5, 500)

    @initialize(
        merger=st.sampled_from([NARROW_MEAN, NARROW_CALIBRATED]),
        strategy=st.sampled_from(["tree", "tree", "flat", "chain"]),
    )
    def start(self, merger, strategy):
        self.merger, self.strategy = merger, strategy
        self.rolling = RollingMerge(merger, strategy=strategy)
        self.resumed = RollingMerge(merger, strategy=strategy, history=False)
        self.places = []
        self.stored = {}

    def held(self):
        return [i for i, place in enumerate(self.places) if place is not None]

    @rule(seed=seeds, mass=some_mass)
    def append(self, seed, mass):
        vector = chunk_vectors(seed, 1)[0]
        for rolling in (self.rolling, self.resumed):
            rolling.append(vector, mass=mass)
        self.places.append((vector, mass))

    @rule(seed=seeds, count=st.integers(1, 14), mass=some_mass)
    def extend(self, seed, count, mass):
        vectors = chunk_vectors(seed, count)
        masses = np.linspace(mass, 2 * mass, count)
        for rolling in (self.rolling, self.resumed):
            rolling.extend(vectors, masses=masses)
        self.places += zip(vectors, masses, strict=True)

    @precondition(lambda self: self.held())
    @rule(data=st.data(), seed=seeds)
    def replace(self, data, seed):
        place = data.draw(st.sampled_from(self.held()))
        vector = chunk_vectors(seed, 1)[0]
        self.rolling.replace(place, vector)
        self.places[place] = (vector, self.places[place][1])
        self.resume()

    @precondition(lambda self: self.places)
    @rule(data=st.data(), seed=seeds, mass=some_mass)
    def put(self, data, seed, mass):
        place = data.draw(st.integers(0, len(self.places) - 1))
        vector = chunk_vectors(seed, 1)[0]
        self.rolling.replace(place, vector, mass=mass)
        self.places[place] = (vector, mass)
        self.resume()

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def remove(self, data):
        place = data.draw(st.sampled_from(self.held()))
        self.rolling.remove(place)
        self.places[place] = None
        self.stored.pop(place, None)
        self.resume()

    @rule()
    def resume(self):
        self.resumed = self.merger.rolling(self.rolling.state, strategy=self.strategy)

    @rule()
    def save_what_was_resumed(self):
        self.resumed = self.merger.rolling(self.resumed.state, strategy=self.strategy)

    @precondition(lambda self: self.held())
    @rule()
    def refresh(self):
        places, vectors = self.rolling.refresh_context()
        self.stored.update(zip(places.tolist(), vectors, strict=True))
        assert sorted(self.stored) == self.held()
        fresh = self.rolling.contextual()
        assert np.allclose(vectors, fresh[places], **TOLERANCE)
        assert min(float(fresh[p] @ v) for p, v in self.stored.items()) > 0.99

    @invariant()
    def everything_agrees(self):
        assert self.rolling.places == self.resumed.places == len(self.places)
        assert len(self.rolling) == len(self.resumed) == len(self.held())
        if self.held():
            expected = NaiveTree(self.merger, self.places, DIMENSION, self.strategy)
            assert_agree(self.rolling, expected)
            assert np.allclose(self.resumed.vector, expected.vector(), **TOLERANCE)


TestRollingAgainstRebuilding = RollingAgainstRebuilding.TestCase
TestRollingAgainstRebuilding.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
