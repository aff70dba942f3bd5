"""Any order of changes, reopenings and crashes leaves what building from scratch would give.

Over Qdrant and Chroma, each in memory. Beside the store's own collection there is one that another
application writes and this package back-fills.
"""

import os
from typing import ClassVar
from uuid import uuid4

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from qdrant_client import QdrantClient

from merger_plugins import MeanMerger
from merger_plugins.chroma import ChromaBackend
from merger_plugins.errors import StoreUnavailableError
from merger_plugins.stores import MergedStore
from merger_plugins.stores.backend import Point, Where
from tests.stores.foreign import private_chroma
from tests.stores.model import Model, Operation, perform
from tests.stores.support import DIMENSION, Failing, FailingBackend, informed, stored, unit
from tests.strategies import NarrowCalibrated, NarrowMean, chunk_vectors

EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "25"))

names = st.sampled_from(["a", "b"])
seeds = st.integers(0, 10**6)
numbers = st.integers(0, 40)
crashes = st.one_of(st.none(), st.none(), st.integers(0, 12))


class FailingChroma(Failing, ChromaBackend):
    """As `FailingBackend`, over Chroma."""

    def __init__(self, client, collection="documents"):
        super().__init__(client, collection)
        self.changes_left = None


class Histories(RuleBasedStateMachine):
    mergers: ClassVar = [NarrowMean(), informed(NarrowCalibrated), MeanMerger()]

    @initialize(merger=st.sampled_from(mergers), contextual=st.booleans())
    def open(self, merger, contextual):
        self.client = self.connected()
        self.backend = self.opened("documents")
        self.options = {"merger": merger, "contextual": contextual}
        self.store = MergedStore(self.backend, **self.options)
        self.model = Model()
        self.turn = 0
        self.theirs = self.opened("theirs")
        self.written: dict[str, list] = {}
        self.filled: dict[str, list] | None = None

    def connected(self):
        return QdrantClient(":memory:")

    def opened(self, collection):
        return FailingBackend(self.client, collection)

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

    @rule(name=names, seed=seeds, number=st.integers(1, 15))
    def they_write(self, name, seed, number):
        """Another application puts a document into its own collection, in the place of the one before."""
        if not self.written:
            self.theirs.create(DIMENSION, contextual=False)
        vectors = unit(chunk_vectors(seed, number, DIMENSION))
        if name in self.written:
            where = [point.id for point in self.theirs.scan("chunks", Where({"source": name}))]
            self.theirs.delete("chunks", where)
        points = [
            Point(str(uuid4()), {"source": name, "page": place}, vector)
            for place, vector in enumerate(vectors)
        ]
        self.theirs.write("chunks", points)
        self.written[name] = list(vectors)

    @rule(crash=crashes)
    def backfill(self, crash):
        """Interrupted, it goes on where it stopped."""
        if not self.written:
            return
        self.theirs.changes_left = crash
        for _ in range(2):
            try:
                MergedStore(self.theirs, merger=self.options["merger"]).backfill(
                    group_by="source", order_by="page"
                )
                break
            except StoreUnavailableError:
                self.theirs.changes_left = None
        self.theirs.changes_left = None
        self.filled = {name: list(vectors) for name, vectors in self.written.items()}

    @invariant()
    def filled_right(self):
        if getattr(self, "filled", None):
            merger = self.options["merger"]
            roots = {
                point.payload["document_id"]: point
                for point in stored(self.theirs, "", "merged").values()
                if point.payload["kind"] == "root"
            }
            assert roots.keys() == self.filled.keys()
            for name, vectors in self.filled.items():
                rolling = merger.rolling()
                rolling.extend(np.stack(vectors))
                np.testing.assert_allclose(roots[name].vector, rolling.vector, atol=1e-5)
                assert roots[name].payload["count"] == len(vectors)

    @invariant()
    def sound(self):
        if hasattr(self, "store") and self.backend.layout() is not None:
            self.model.check(self.backend, self.options["merger"])
            assert not list(self.store.verify())
            if self.options["contextual"]:
                points = stored(self.backend, "", "chunks").values()
                assert all(point.contextual is not None for point in points)


class ChromaHistories(Histories):
    def connected(self):
        return private_chroma()

    def opened(self, collection):
        return FailingChroma(self.client, collection)


def configured(machine, examples):
    machine.TestCase.settings = settings(
        max_examples=max(examples, 1),
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return machine.TestCase


TestHistories = configured(Histories, EXAMPLES)
TestChromaHistories = configured(ChromaHistories, EXAMPLES // 3)
