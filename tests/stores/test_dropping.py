"""A database whose answers come late, or get lost after it did what it was asked; the call is repeated."""

import time

import pytest
from qdrant_client import QdrantClient

from merger_plugins.errors import StoreUnavailableError
from merger_plugins.qdrant import QdrantBackend
from merger_plugins.stores import MergedStore, changes, ingestion
from tests.stores.model import Model, operations, perform
from tests.strategies import NarrowMean


class DroppingBackend(QdrantBackend):
    """Loses the answer of one request, after it was carried out; each takes a moment."""

    def __init__(self, client, *, delay=0.0):
        super().__init__(client, "documents")
        self.answers_left = None
        self._delay = delay

    def _answer(self, result=None):
        time.sleep(self._delay)
        if self.answers_left is not None:
            self.answers_left -= 1
            if self.answers_left < 0:
                self.answers_left = None
                raise StoreUnavailableError("the connection was lost")
        return result

    def fetch(self, *args, **options):
        return self._answer(super().fetch(*args, **options))

    def write(self, *args, **options):
        return self._answer(super().write(*args, **options))

    def swap(self, *args, **options):
        return self._answer(super().swap(*args, **options))

    def delete(self, *args, **options):
        return self._answer(super().delete(*args, **options))

    def delete_document(self, *args, **options):
        return self._answer(super().delete_document(*args, **options))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("exclusive", [True, False])
def test_calls_whose_answers_get_lost_can_be_repeated(seed, exclusive, monkeypatch):
    monkeypatch.setattr(DroppingBackend, "exclusive", exclusive)
    for module in (changes, ingestion):  # seconds that a call waits for a writer that may be alive
        monkeypatch.setattr(module, "ABANDONED", 0.02)
    client = QdrantClient(":memory:")
    backend = DroppingBackend(client, delay=0.0005)
    store, model = MergedStore(backend, merger=NarrowMean()), Model()
    lost = 0
    for index, operation in enumerate(operations(seed, 40, named=True)):
        backend.answers_left = (index + seed) % 11
        for _ in range(2):
            try:
                perform(store, operation)
                break
            except StoreUnavailableError:
                lost += 1
        backend.answers_left = None
        model.apply(operation)
    assert lost > 15
    assert not list(store.verify())
    model.check(backend, NarrowMean())
    client.close()
