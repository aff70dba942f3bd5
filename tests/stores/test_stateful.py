"""Any order of changes, reopenings and crashes leaves what building from scratch would give."""

import os
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from qdrant_client import QdrantClient

from merger_plugins import MeanMerger
from merger_plugins.errors import StoreUnavailableError
from merger_plugins.stores import MergedStore
from tests.stores.model import Model, Operation, perform
from tests.stores.support import FailingBackend, informed, stored
from tests.strategies import NarrowCalibrated, NarrowMean

EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "25"))

names = st.sampled_from(["a", "b"])
seeds = st.integers(0, 10**6)
numbers = st.integers(0, 40)
crashes = st.one_of(st.none(), st.none(), st.integers(0, 12))


class Histories(RuleBasedStateMachine):
    mergers: ClassVar = [NarrowMean(), informed(NarrowCalibrated), MeanMerger()]

    @initialize(merger=st.sampled_from(mergers), contextual=st.booleans())
    def open(self, merger, contextual):
        self.client = QdrantClient(":memory:")
        self.backend = FailingBackend(self.client)
        self.options = {"merger": merger, "contextual": contextual}
        self.store = MergedStore(self.backend, **self.options)
        self.model = Model()
        self.turn = 0

    def teardown(self):
        if hasattr(self, "client"):
            self.client.close()

    def do(self, operation, crash):
        """Perform it; after a crash, somewhere else, again."""
        if not self.model.allows(operation):
            return
        self.backend.changes_left = crash
        try:
            perform(self.store, operation)
        except StoreUnavailableError:
            self.backend.changes_left = None
            self.reopen()
            perform(self.store, operation)
        self.backend.changes_left = None
        self.model.apply(operation)

    @rule(name=names, seed=seeds, crash=crashes, named=st.booleans())
    def append(self, name, seed, crash, named):
        self.turn += 1
        self.do(Operation("append", name, seed, 1, str(self.turn) if named else None), crash)

    @rule(name=names, seed=seeds, number=st.integers(1, 12), crash=crashes)
    def extend(self, name, seed, number, crash):
        self.do(Operation("extend", name, seed, number), crash)

    @rule(name=names, seed=seeds, number=st.integers(1, 32), crash=crashes)
    def ingest(self, name, seed, number, crash):
        self.do(Operation("ingest", name, seed, number), crash)

    @rule(name=names, seed=seeds, number=numbers, crash=crashes)
    def replace(self, name, seed, number, crash):
        self.do(Operation("replace", name, seed, number), crash)

    @rule(name=names, number=numbers, crash=crashes)
    def remove(self, name, number, crash):
        self.do(Operation("remove", name, 0, number), crash)

    @rule(name=names, crash=crashes)
    def delete(self, name, crash):
        self.do(Operation("delete", name), crash)

    @rule()
    def reopen(self):
        self.store = MergedStore(self.backend, **self.options)

    @rule()
    def rebuild(self):
        self.store.rebuild()

    @rule()
    def repair(self):
        assert not self.store.repair()

    @invariant()
    def sound(self):
        if hasattr(self, "store") and self.client.collection_exists("documents"):
            self.model.check(self.backend, self.options["merger"])
            assert not list(self.store.verify())
            if self.options["contextual"]:
                points = stored(self.backend, "", "chunks").values()
                assert all(point.contextual is not None for point in points)


Histories.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHistories = Histories.TestCase
