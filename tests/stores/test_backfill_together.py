"""Back-fills of one collection at the same time: a right result or a ConflictError, never a mixture."""

import json
import subprocess
import sys
import threading

import chromadb
import numpy as np
import pytest

from merger_plugins.chroma import ChromaBackend, ChromaStore
from merger_plugins.errors import ConflictError, MergerError
from merger_plugins.stores import MergedStore, holding
from merger_plugins.stores.backend import Swap, Where
from merger_plugins.stores.commits import sealed
from merger_plugins.stores.filling import Backfilled
from merger_plugins.stores.records import META_ID
from tests.stores.foreign import ChromaApp, assert_merged, corpus, hosted
from tests.stores.support import DIMENSION, informed
from tests.strategies import chunk_vectors

LENGTHS = (12,) * 20 + (3,) * 10 + (40,) * 3


@pytest.fixture(params=["qdrant", "edge", "chroma"])
def app(request, tmp_path):
    with hosted(request.param, tmp_path) as made:
        yield made


def at_once(calls):
    """What each of the calls gives, or its ConflictError, where all begin at one moment."""
    start = threading.Barrier(len(calls))
    outcomes = [None] * len(calls)

    def run(index, call):
        start.wait()
        try:
            outcomes[index] = call()
        except MergerError as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcome in outcomes:
        assert isinstance(outcome, Backfilled | ConflictError), repr(outcome)
    return outcomes


def test_threads_with_stores_of_their_own(app):
    texts = corpus(4, LENGTHS)
    app.write("app", app.cosine, texts)
    outcomes = at_once([lambda: app.store("app").backfill()] * 3)
    assert any(isinstance(outcome, Backfilled) for outcome in outcomes)
    assert_merged(app.store("app")._backend, texts, informed())
    assert app.store("app").backfill().documents == len(texts)
    assert_merged(app.store("app")._backend, texts, informed())


def test_threads_that_share_a_store(app):
    texts = corpus(4, LENGTHS)
    app.write("app", app.cosine, texts)
    store = app.store("app")
    outcomes = at_once([store.backfill] * 3)
    assert any(isinstance(outcome, Backfilled) for outcome in outcomes)
    assert_merged(app.store("app")._backend, texts, informed())


def test_threads_that_want_different_calibrations(app):
    """Each makes an edition of its own, and each sweeps that of the other."""
    texts = corpus(4, LENGTHS)
    app.write("app", app.cosine, texts)
    for _ in range(3):
        outcomes = at_once([lambda c=c: app.store("app").backfill(calibrate=c) for c in (True, False)])
        assert any(isinstance(outcome, Backfilled) for outcome in outcomes)
        reopened = app.store("app")
        reopened.search(np.ones(DIMENSION), 1)
        assert_merged(reopened._backend, texts, reopened.merger)


def test_one_that_read_less_than_another_one_merged_stops(app):
    """It began first, and others wrote and merged more while it read."""
    texts = corpus(4, LENGTHS)
    app.write("app", app.cosine, texts)
    more = {"d90": chunk_vectors(9, 25, DIMENSION)}

    def meanwhile(step):
        if step.stage == "merging" and not app.exists("app__merged"):
            raise AssertionError("writes before it holds")
        if step.stage == "reading" and not meanwhile.done:
            meanwhile.done = True
            app.write("app", app.cosine, more)
            assert app.store("app").backfill().merged == len(texts) + 1

    meanwhile.done = False
    with pytest.raises(ConflictError, match="wrote since this one began"):
        app.store("app").backfill(progress=meanwhile)
    assert meanwhile.done
    assert_merged(app.store("app")._backend, texts | more, informed())


def test_one_that_begins_while_another_writes_is_told(app):
    texts = corpus(4, LENGTHS)
    app.write("app", app.cosine, texts)
    seen = []

    def meanwhile(step):
        if step.stage == "merging" and not seen:
            with pytest.raises(ConflictError, match="at work"):
                app.store("app").backfill()
            seen.append(step)

    assert app.store("app").backfill(progress=meanwhile).merged == len(texts)
    assert seen
    assert_merged(app.store("app")._backend, texts, informed())


def test_one_that_failed_holds_nothing(app):
    texts = corpus(4, LENGTHS)
    app.write("app", app.cosine, texts)

    def fails(step):
        if step.stage == "merging":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        app.store("app").backfill(progress=fails)
    assert app.store("app").backfill().documents == len(texts)
    assert_merged(app.store("app")._backend, texts, informed())


def held_by(backend, name):
    """Have the settings say that this one holds the merged vectors."""
    point = backend.fetch("merged", [META_ID])[META_ID]
    version = point.payload["version"]
    changes = {"foreign": point.payload["foreign"] | {"holder": name}}
    assert backend.swap([Swap(sealed(point, version + 1, changes), version)]) == [True]


def test_a_dead_process_does_not_hold_what_only_this_process_can_write(app):
    texts = corpus()
    app.write("app", app.cosine, texts)
    store = app.store("app")
    store.backfill()
    held_by(store._backend, "another process.1")
    app.write("app", app.cosine, {"d90": chunk_vectors(9, 25, DIMENSION)})
    assert app.store("app").backfill().merged == 1


class TestServer:
    @pytest.fixture
    def app(self, chroma_server):
        host, port = chroma_server.url.removeprefix("http://").split(":")
        made = ChromaApp(chromadb.HttpClient(host=host, port=int(port)))
        made.url = chroma_server.url
        yield made
        for each in made.client.list_collections():
            if each.name.startswith("app"):
                made.client.delete_collection(each.name)

    def test_processes(self, app):
        texts = corpus(4, LENGTHS)
        app.write("app", "cosine", texts)
        for calibrate in (False, True, False):
            program = (
                "import sys, json\n"
                "from merger_plugins.chroma import ChromaStore\n"
                "from merger_plugins.errors import ConflictError\n"
                "from tests.stores.support import informed\n"
                "store = ChromaStore(sys.argv[1], 'app', merger=informed())\n"
                "print('ready', flush=True); sys.stdin.readline()\n"
                "try:\n"
                f"    print(json.dumps(store.backfill(calibrate={calibrate}).documents))\n"
                "except ConflictError as error:\n"
                "    print(json.dumps(str(error)))\n"
            )
            running = [
                subprocess.Popen(
                    [sys.executable, "-c", program, app.url],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for _ in range(2)
            ]
            for each in running:
                assert each.stdout.readline() == "ready\n"
            for each in running:
                each.stdin.write("go\n")
                each.stdin.flush()
            outcomes = [json.loads(each.communicate()[0]) for each in running]
            assert len(texts) in outcomes
            for outcome in outcomes:
                assert outcome == len(texts) or "back-fill" in outcome
            reopened = ChromaStore(app.url, "app", merger=informed())
            reopened.search(np.ones(DIMENSION), 1)
            assert_merged(reopened._backend, texts, reopened.merger)

    def test_a_silent_holder_loses_its_hold_and_one_that_moves_keeps_it(self, app, monkeypatch):
        monkeypatch.setattr(holding, "PATIENCE", 2.0)
        texts = corpus()
        app.write("app", "cosine", texts)
        store = ChromaStore(app.url, "app", merger=informed())
        store.backfill()
        backend = ChromaBackend(app.url, "app")
        held_by(backend, "another process.1")
        app.write("app", "cosine", {"d90": chunk_vectors(9, 25, DIMENSION)})

        stop = threading.Event()

        def beats():
            while not stop.wait(0.4):
                held_by(backend, "another process.1")

        beating = threading.Thread(target=beats)
        beating.start()
        with pytest.raises(ConflictError, match="at work"):
            MergedStore(ChromaBackend(app.url, "app"), merger=informed()).backfill()
        stop.set()
        beating.join()
        assert store.backfill().merged == 1

    def test_a_holder_that_lost_its_hold_writes_no_more(self, app, monkeypatch):
        monkeypatch.setattr(holding, "_BEAT", 0.0)
        monkeypatch.setattr("merger_plugins.stores.gathering._FLOATS_AT_ONCE", 64 * DIMENSION)
        texts = corpus(4, LENGTHS)
        app.write("app", "cosine", texts)
        backend = ChromaBackend(app.url, "app")
        steps = []

        def taken(step):
            if step.stage == "merging":
                steps.append(step)
                if len(steps) == 2:
                    held_by(backend, "another process.1")

        with pytest.raises(ConflictError, match="wrote since"):
            ChromaStore(app.url, "app", merger=informed()).backfill(progress=taken)
        assert len(steps) == 2
        written = {p.payload["document_id"] for p in backend.scan("merged", Where({"kind": "root"}))}
        assert 0 < len(written) < len(texts)
