"""Child processes that write into a store and are killed; what they left is completed and compared."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from merger_plugins.errors import StoreError
from merger_plugins.stores import MergedStore
from tests.stores.model import Model, operations, perform
from tests.stores.support import DIMENSION
from tests.strategies import NarrowMean

SEED = 7
LIFE = 30
"""Operations on one folder, through all the kills that they take."""


def qdrant(folder: Path):
    from merger_plugins.qdrant import QdrantBackend

    return QdrantBackend(str(folder), "documents")


def chroma(folder: Path):
    from merger_plugins.chroma import ChromaBackend

    return ChromaBackend(str(folder), "documents")


def chroma_saving(folder: Path):
    """Its index is saved every ten points, as that of a large collection is every thousand."""
    import chromadb

    if not (folder / "chroma.sqlite3").exists():
        index = {"hnsw": {"space": "cosine", "sync_threshold": 10, "batch_size": 5}}
        client = chromadb.PersistentClient(str(folder))
        for name, metadata in (("documents", None), ("documents__merged", {"merger:dimension": DIMENSION})):
            client.get_or_create_collection(
                name, configuration=index, metadata=metadata, embedding_function=None
            )
        client.close()
    return chroma(folder)


STORES = {"qdrant": qdrant, "chroma": chroma, "chroma-saving": chroma_saving}


def dies(backend, changes: int) -> None:
    """Let this process be killed before a number of changes of points, each on its own, have been made."""
    left = [changes]
    write, swap, delete = backend.write, backend.swap, backend.delete
    delete_document = backend.delete_document

    def spend():
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def one_by_one(shelf, points, **options):
        for point in points:
            spend()
            write(shelf, [point], **options)

    def swapping(swaps, *, first=(), below=None):
        one_by_one("merged", first, below=below)
        done = []
        for one in swaps:
            spend()
            done += swap([one])
        return done

    def deleting(shelf, ids, **options):
        for point_id in ids:
            spend()
            delete(shelf, [point_id], **options)

    def deleting_document(*args, **options):
        spend()
        delete_document(*args, **options)

    backend.write, backend.swap = one_by_one, swapping
    backend.delete, backend.delete_document = deleting, deleting_document


def child(name, folder, work, changes, pipe):
    """Does the work, and says how far it has come."""
    backend = STORES[name](folder)
    store = MergedStore(backend, merger=NarrowMean())
    store.inspect()
    if changes is not None:
        dies(backend, changes)
    pipe.send("ready")
    for operation in work:
        perform(store, operation)
        pipe.send("done")
    backend.close()
    pipe.send("closed")


def killed(context, name, folder, work, chance, *, between) -> int:
    """Run a child until it is killed, between two changes of points or at any moment.

    Returns how many operations it completed, as far as it could say.
    """
    here, there = context.Pipe(duplex=False)
    changes = chance.randrange(40) if between else None
    process = context.Process(target=child, args=(name, folder, work, changes, there))
    process.start()
    there.close()
    done = 0
    until = None
    while True:
        wait = None if until is None else max(until - time.monotonic(), 0)
        try:
            if not here.poll(wait):
                process.kill()  # at a moment of its own
                until = None
                continue
            message = here.recv()
        except EOFError:
            break
        if message == "ready" and changes is None:
            until = time.monotonic() + chance.random() * 0.06
        done += message == "done"
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    here.close()
    return done


def index_is_torn(store: MergedStore) -> bool:
    """Whether Chroma lost vectors as it was saving them; then that is told, and nothing else is wrong."""
    try:
        found = list(store.verify())
        lost = any((p.kind == "missing" and p.level == 0) or "no vector" in p.detail for p in found)
    except StoreError as error:
        if "damaged" not in str(error):
            raise
        lost = True
    if lost:
        kinds = {problem.kind for problem in store.repair()}
        assert kinds <= {"missing", "unfinished"}
        store.inspect()
    return lost


@dataclass
class Survived:
    """What a store went through without harm: no node lost, doubled or wrong.

    Attributes:
        kills: SIGKILLs that ended a child before it had done its work.
        between_changes: those of them that fell between two changes of points, the others at any moment.
        unfinished: kills after which `verify` named a change that was not complete.
        torn: kills that left an index of Chroma without vectors, which was told.
        operations: calls that children, or those who repeated what was cut off, completed.
    """

    kills: int = 0
    between_changes: int = 0
    unfinished: int = 0
    torn: int = 0
    operations: int = 0


def survive(name: str, parent: Path, kills: int) -> Survived:
    """Kill children until that number is reached; after each kill reopen, repeat the call and compare.

    Every second folder lives with kills between two changes of points, the others at any moment.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.stores.killing", f"merger_plugins.{name.partition('-')[0]}"])
    chance = random.Random(SEED)
    survived = Survived()
    life = 0
    while survived.kills < kills:
        life += 1
        # A turn without an id can be repeated, unless the kill came after its last write.
        between = life % 2 == 0
        left = operations(life, LIFE, named=not between)
        folder = parent / str(life)
        model = Model()
        while left and survived.kills < kills:
            done = killed(context, name, folder, left, chance, between=between)
            survived.operations += done
            survived.kills += done < len(left)
            survived.between_changes += between and done < len(left)
            for operation in left[:done]:
                model.apply(operation)
            left = left[done:]
            backend = STORES[name](folder)
            store = MergedStore(backend, merger=NarrowMean())
            if name == "chroma-saving" and index_is_torn(store):
                survived.torn += 1
                backend.close()
                break
            survived.unfinished += any(problem.kind == "unfinished" for problem in store.verify())
            if left:
                perform(store, left[0])
                model.apply(left[0])
                survived.operations += 1
                left = left[1:]
            assert not list(store.verify())
            model.check(backend, NarrowMean())
            backend.close()
    return survived
