"""Everything in any order, against rebuilding after each step."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from merger_plugins import RollingMerge
from tests.strategies import DIMENSION, NARROW_CALIBRATED, NARROW_MEAN, chunk_vectors
from tests.tree.naive import TOLERANCE, NaiveTree, assert_agree

pytestmark = pytest.mark.filterwarnings("error")


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
