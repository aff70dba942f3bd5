"""Which contextual chunk vectors are renewed, and how far the others may lag."""

import numpy as np
import pytest

from merger_plugins import TURN_WEIGHTS, CalibratedMerger, ContextWeights
from merger_plugins.errors import StateError
from tests.strategies import CALIBRATED, DIMENSION, MEAN, chunk_vectors
from tests.tree.naive import TOLERANCE, rolled

pytestmark = pytest.mark.filterwarnings("error")


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
