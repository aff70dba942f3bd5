"""Back-fills that sort and merge in a second process: the same result, and no harm when either one dies."""

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from merger_plugins import CalibratedMerger
from merger_plugins.errors import InputError, StoreError
from merger_plugins.qdrant import QdrantBackend, QdrantStore
from merger_plugins.stores import aside
from merger_plugins.stores.gathering import seldom_collected
from merger_plugins.stores.records import META_ID
from tests.stores.foreign import assert_merged, corpus, create, put
from tests.stores.support import DIMENSION, informed, merged, stored
from tests.strategies import NarrowMean

TEXTS = corpus(6, (1, 3, 12, 40, 9, 64, 31, 133) * 3)


@pytest.fixture
def app():
    client = QdrantClient(":memory:")
    create(client)
    put(client, TEXTS)
    yield client
    client.close()


@pytest.fixture
def started(monkeypatch):
    """The processes that back-fills start, which here are of use for any number of points."""
    processes = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            processes.append(self)

    monkeypatch.setattr(aside.subprocess, "Popen", Recorded)
    monkeypatch.setattr(aside, "_WORTH_IT", 0)
    monkeypatch.setattr(aside, "_cores", lambda: 2)
    return processes


def companion(client):
    """Every point of it but the settings, which name who wrote them."""
    points = stored(client, "app", "merged")
    del points[META_ID]
    return points


@pytest.mark.parametrize("contextual", ["none", "companion"])
def test_the_same_to_the_last_bit(app, started, contextual):
    other = QdrantClient(":memory:")
    create(other)
    put(other, TEXTS)
    for _ in range(3):
        store, alone = QdrantStore(app, "app"), QdrantStore(other, "app")
        told = store.backfill(contextual=contextual)
        assert told == alone.backfill(contextual=contextual, one_process=True)
        ours, theirs = companion(app), companion(other)
        assert ours.keys() == theirs.keys()
        for point_id, point in ours.items():
            assert point.payload == theirs[point_id].payload
            np.testing.assert_array_equal(point.vector, theirs[point_id].vector)
        assert not list(store.verify())
        for client in (app, other):  # one document is gone, another has fewer chunks
            gone = [
                models.FieldCondition(key="metadata.source", match=models.MatchValue(value=name))
                for name in ("d2", "d3")
            ]
            few = models.FieldCondition(key="metadata.start_index", range=models.Range(gte=500))
            client.delete("app", models.FilterSelector(filter=models.Filter(must=[gone[0]])))
            client.delete("app", models.FilterSelector(filter=models.Filter(must=[gone[1], few])))
    assert (told.documents, told.merged, told.removed) == (len(TEXTS) - 1, 0, 0)
    assert len(started) == 3
    assert all(process.returncode == 0 for process in started)
    other.close()


def test_a_new_reading_sweeps_the_old_one_away(app, started):
    QdrantStore(app, "app", merger=informed()).backfill(order_by="none")
    QdrantStore(app, "app", merger=informed()).backfill(order_by="metadata.start_index", anew=True)
    assert len(started) == 2
    assert_merged(QdrantBackend(app, "app"), TEXTS, informed())


def test_documents_too_many_for_their_sums_are_calibrated_on_all_the_same(app, monkeypatch):
    first = QdrantStore(app, "app").backfill()
    found = merged(app, "app")
    app.delete_collection("app__merged")
    monkeypatch.setattr("merger_plugins.stores.workshop._FLOATS_OF_SUMS", 3 * DIMENSION)
    assert QdrantStore(app, "app").backfill().calibration_vectors == first.calibration_vectors
    again = merged(app, "app")
    assert again.keys() == found.keys()
    for key, point in again.items():
        np.testing.assert_allclose(point.vector, found[key].vector, atol=1e-5)


@pytest.mark.parametrize("stage", ["reading", "calibrating", "merging"])
def test_it_is_killed(app, started, tmp_path, stage):
    def kill(step):
        if step.stage == stage:
            os.kill(started[0].pid, signal.SIGKILL)

    store = QdrantStore(app, "app")
    with pytest.raises(StoreError, match=r"came to an end \(exit status -9.*one_process"):
        store.backfill(progress=kill, scratch=tmp_path)
    assert not list(tmp_path.iterdir())
    done = QdrantStore(app, "app").backfill(scratch=tmp_path)
    assert done.documents == len(TEXTS)
    assert (done.merged == 0) == (stage == "merging")  # what was written stays
    assert not list(QdrantStore(app, "app").verify())


# Without `if __name__ == "__main__"`, as people write scripts.
SCRIPT = """
import os, signal, sys
from qdrant_client import QdrantClient
from merger_plugins.qdrant import QdrantStore
from merger_plugins.stores import aside
from tests.stores.foreign import create, put
from tests.stores.test_backfill_aside import TEXTS

folder, stage = sys.argv[1:]
aside._WORTH_IT, aside._cores = 0, lambda: 2
begin = aside.subprocess.Popen.__init__

def recorded(self, *arguments, **options):
    begin(self, *arguments, **options)
    print(self.pid, flush=True)

def kill(step):
    if step.stage == stage:
        os.kill(os.getpid(), signal.SIGKILL)

aside.subprocess.Popen.__init__ = recorded
client = QdrantClient(":memory:")
create(client)
put(client, TEXTS)
print(QdrantStore(client, "app").backfill(scratch=folder, progress=kill).documents)
"""


@pytest.mark.parametrize("stage", ["reading", "merging", "none"])
def test_a_script_that_is_killed_leaves_nothing_behind(tmp_path, stage):
    scratch, script = tmp_path / "scratch", tmp_path / "script.py"
    scratch.mkdir()
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, script, scratch, stage],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    worker, *told = run.stdout.split()
    assert run.returncode == (0 if stage == "none" else -signal.SIGKILL), run.stderr
    assert told == ([str(len(TEXTS))] if stage == "none" else [])
    assert run.stderr == ""
    until = time.monotonic() + 30
    while list(scratch.iterdir()) or os.path.exists(f"/proc/{worker}"):  # noqa: PTH110 - a process, no file
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_it_finds_wrong_is_told_as_ever(app, started, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        QdrantStore(app, "app").backfill(scratch=tmp_path / "nowhere")
    app.set_payload(
        "app", {"start_index": "last"}, key="metadata", points=[next(iter(stored(app, "app", "chunks")))]
    )
    with pytest.raises(InputError, match="numbers on some points and text on others"):
        QdrantStore(app, "app").backfill(order_by="metadata.start_index")
    create(app, collection="long", distance=models.Distance.DOT)
    put(app, TEXTS, collection="long")
    with pytest.raises(StoreError, match="have lengths from"):
        QdrantStore(app, "long").backfill()
    assert len(started) == 3
    assert all(process.returncode == 0 for process in started)


@pytest.mark.parametrize("interpreter", ["/nowhere/python", "/bin/false"])
def test_where_no_process_can_be_started_it_does_without(app, started, interpreter, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", interpreter)
    with caplog.at_level(logging.WARNING):
        QdrantStore(app, "app", merger=informed()).backfill()
    assert "no other process could be started" in caplog.text
    assert_merged(QdrantBackend(app, "app"), TEXTS, informed())


class Own(CalibratedMerger):
    """A merger of the caller's, which another process may not know."""


def test_what_is_done_in_one_process(app, started, monkeypatch):
    for merger in (NarrowMean(), informed(Own)):
        QdrantStore(app, "app", merger=merger).backfill(anew=True)
    QdrantStore(app, "app", merger=informed()).backfill(anew=True, one_process=True)
    monkeypatch.setattr(aside, "_WORTH_IT", sum(map(len, TEXTS.values())) + 1)
    QdrantStore(app, "app", merger=informed()).backfill()
    assert not started


def test_garbage_is_collected_as_before_once_the_last_one_is_done():
    usual = gc.get_threshold()
    with seldom_collected():
        rare = gc.get_threshold()
        with pytest.raises(StoreError), seldom_collected():
            raise StoreError
        assert gc.get_threshold() == rare
    assert rare[0] > usual[0]
    assert gc.get_threshold() == usual
