"""A store as plain lists, and random operations on it, for tests that compare both."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from merger_plugins import SequenceMerger
from merger_plugins.stores import MergedStore
from merger_plugins.stores.backend import Backend
from tests.stores.support import DIMENSION, assert_document, merged, stored
from tests.strategies import chunk_vectors


@dataclass(frozen=True)
class Operation:
    """One call: what it does, to which document, and the numbers that the rest follows from."""

    act: str
    name: str
    seed: int = 0
    number: int = 0
    turn_id: str | None = None


@dataclass
class Model:
    """Documents by name: each a list of (vector, mass), None for an empty place."""

    documents: dict[str, list[Any]] = field(default_factory=dict)

    def allows(self, operation: Operation) -> bool:
        """Whether the operation is no error."""
        places = self.documents.get(operation.name)
        if operation.act == "replace":
            return places is not None and operation.number < len(places)
        if operation.act == "remove":
            left = [p for p in places or [] if p is not None]
            return operation.number < len(places or []) and left != [(places or [])[operation.number]]
        return True

    def apply(self, operation: Operation) -> None:
        """What the operation does to the lists."""
        rows = _rows(operation)
        if operation.act == "ingest":
            self.documents[operation.name] = rows
        elif operation.act in ("append", "extend"):
            self.documents.setdefault(operation.name, []).extend(rows)
        elif operation.act == "replace":
            self.documents[operation.name][operation.number] = rows[0]
        elif operation.act == "remove":
            self.documents[operation.name][operation.number] = None
        elif operation.act == "delete":
            self.documents.pop(operation.name, None)

    def check(self, backend: Backend, merger: SequenceMerger) -> None:
        """The store holds what building it from scratch would give."""
        chunks = stored(backend, "", "chunks")
        assert len(chunks) == sum(p is not None for places in self.documents.values() for p in places)
        assert {key[0] for key in merged(backend)} == self.documents.keys()
        for name, places in self.documents.items():
            filler = next(place for place in places if place is not None)
            rows = [place or filler for place in places]
            assert_document(
                backend,
                merger,
                name,
                np.stack([vector for vector, _ in rows]),
                [mass for _, mass in rows],
                empty=[index for index, place in enumerate(places) if place is None],
            )


def _rows(operation: Operation) -> list[tuple[Any, float]]:
    count = operation.number if operation.act in ("ingest", "extend") else 1
    vectors = chunk_vectors(operation.seed, max(count, 1), DIMENSION)
    return [(vector, 1.0 + (operation.seed + index) % 4) for index, vector in enumerate(vectors)]


def perform(store: MergedStore, operation: Operation) -> None:
    """What the operation does to a store."""
    rows = _rows(operation)
    vectors, masses = np.stack([vector for vector, _ in rows]), [mass for _, mass in rows]
    if operation.act == "ingest":
        store.ingest(operation.name, vectors=vectors, masses=masses)
    elif operation.act == "append":
        store.append(operation.name, vectors[0], mass=masses[0], turn_id=operation.turn_id)
    elif operation.act == "extend":
        store.extend(operation.name, vectors=vectors, masses=masses, turn_id=operation.turn_id)
    elif operation.act == "replace":
        store.replace(operation.name, operation.number, vectors[0], mass=masses[0])
    elif operation.act == "remove":
        store.remove(operation.name, operation.number)
    else:
        store.delete(operation.name)


def operations(seed: int, count: int, *, named: bool) -> list[Operation]:
    """Operations that are no errors, one after the other; `named` gives turns ids."""
    random, model, made = Random(seed), Model(), []
    acts = ["append"] * 6 + ["ingest"] * 3 + ["extend", "replace", "remove", "delete"]
    while len(made) < count:
        act = random.choice(acts)
        places = model.documents.get(name := random.choice("abc"), [])
        number = random.randrange(len(places)) if places and act in ("replace", "remove") else 0
        if act in ("ingest", "extend"):
            number = random.randint(1, 24 if act == "ingest" else 5)
        turn_id = f"{seed}/{len(made)}" if named and act in ("append", "extend") else None
        operation = Operation(act, name, random.randrange(10**6), number, turn_id)
        if model.allows(operation):
            model.apply(operation)
            made.append(operation)
    return made
