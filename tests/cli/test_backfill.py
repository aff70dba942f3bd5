"""``merger-plugins backfill`` on folders that other applications wrote."""

import json
import os
import pty
import subprocess
import sys
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient

from merger_plugins.qdrant import QdrantStore
from tests.stores.foreign import corpus, create, point_id, put
from tests.stores.support import DIMENSION
from tests.strategies import chunk_vectors


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "app"
    client = QdrantClient(path=str(path))
    create(client)
    put(client, corpus())
    client.close()
    return path


def big_corpus():
    return {f"d{i}": chunk_vectors(i, 12, DIMENSION) for i in range(400)}


@pytest.fixture
def big(tmp_path):
    path = tmp_path / "big"
    client = QdrantClient(path=str(path))
    create(client)
    client._client.collections["app"].storage.storage.execute("PRAGMA synchronous = OFF")
    put(client, big_corpus())
    client.close()
    return path


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    return partial(run, "backfill")


def test_the_command_says_what_it_took_and_did(run, folder):
    result = run("--store", folder, "--collection", "app")
    total = sum(map(len, corpus().values()))
    assert f"LangChain layout: {total} chunks in {len(corpus())} documents" in result.stdout
    assert "grouped by metadata.source, ordered by metadata.start_index" in result.stdout
    assert result.stderr == ""
    with QdrantStore(folder, "app") as store:
        assert len(store.search(chunk_vectors(1, 1, DIMENSION)[0], 50, "document")) == len(corpus())


def test_as_json_and_again(run, folder):
    first = json.loads(run("--store", folder, "--collection", "app", "--json").stdout)
    again = json.loads(run("--store", folder, "--collection", "app", "--json").stdout)
    assert (first["merged"], again["merged"]) == (len(corpus()), 0)
    assert first["fingerprint"] == again["fingerprint"]
    assert again["order_by"] == ["metadata.start_index"]


def test_fields_named_by_hand(run, tmp_path):
    client = QdrantClient(path=str(tmp_path / "own"))
    create(client, "by_hand")
    put(client, corpus(), "by_hand")
    client.close()
    options = ("--store", tmp_path / "own", "--collection", "app")
    assert "--group-by" in run(*options, code=1).stderr
    assert "--order-by" in run(*options, "--group-by", "book", code=1).stderr
    made = json.loads(
        run(*options, "--group-by", "book", "--order-by", "at", "--no-calibrate", "--json").stdout
    )
    assert (made["documents"], made["calibration_vectors"]) == (len(corpus()), 0)
    with QdrantStore(tmp_path / "own", "app") as store:
        (hit,) = store.search(chunk_vectors(1, 1, DIMENSION)[0], 1, "chunk")
        assert asdict(hit)["stored"] == hit.stored
        assert str(hit.stored["book"]) == hit.document_id
        assert asdict(hit) == {**hit.described(), "stored": hit.stored}


def test_what_was_left_out_or_ties_is_said(run, folder):
    client = QdrantClient(path=str(folder))
    client.set_payload("app", {"start_index": 0}, [point_id("d6", i) for i in range(35)], key="metadata")
    client.overwrite_payload("app", {"page_content": "x"}, [point_id("d2", 3)])
    client.close()
    options = ("--store", folder, "--collection", "app")
    assert "--skip-missing" in run(*options, code=1).stderr
    noted = run(*options, "--skip-missing").stderr
    assert "left out: 1 points" in noted
    assert "35 points share their place" in noted


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--collection", "other"], "no collection 'other'"),
        (["--collection", "app", "--group-by", "metadata.nobody"], "metadata.nobody"),
        (["--collection", "app", "--contextual", "named"], "companion"),
        (["--collection", "app", "--scratch", "nowhere"], "nowhere"),
        (["--collection", "app", "--merger", "calibrated-all-MiniLM-L6-v2"], "dimension 384"),
    ],
)
def test_what_cannot_be_done_is_an_error_with_a_remedy(run, folder, options, says):
    assert says in run("--store", folder, *options, code=1).stderr


def test_a_folder_that_is_not_there_is_not_made(run, tmp_path):
    assert "There is no folder" in run("--store", tmp_path / "typo", code=1).stderr
    assert not (tmp_path / "typo").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is needed")
def test_on_a_terminal_bars_show_the_rate(big):
    parent, child = pty.openpty()
    code = "from merger_plugins.cli import main; main()"
    command = [sys.executable, "-c", code, "backfill", "--store", str(big), "--collection", "app"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=child) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                part = os.read(parent, 4096)
            except OSError:
                break
            if not part:
                break
            shown += part
    os.close(parent)
    assert process.returncode == 0
    for word in (b"reading", b"calibrating", b"merging", b"chunks/s"):
        assert word in shown


def test_killed_half_way_the_same_command_completes_it(run, big):
    texts = big_corpus()
    watching = (
        "import os, signal\n"
        "from merger_plugins.qdrant import QdrantBackend, QdrantStore\n"
        "write, count = QdrantBackend.write, 0\n"
        "def once(self, shelf, points, **options):\n"
        "    global count\n"
        "    count += 1\n"
        "    write(self, shelf, points[:1000] if count == 2 else points, **options)\n"
        "    if count == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "QdrantBackend.write = once\n"
        f"QdrantStore({str(big)!r}, 'app').backfill()\n"
    )
    killed = subprocess.run([sys.executable, "-c", watching], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    done = json.loads(run("--store", big, "--collection", "app", "--json").stdout)
    assert done["documents"] == 400
    assert done["merged"] == 200  # the 800 sections and 200 of the roots were written
    with QdrantStore(big, "app") as store:
        assert len(store.search(np.ones(DIMENSION), 1000, "document")) == 400
        roots = {hit.document_id: hit for hit in store.search(np.ones(DIMENSION), 1000, "document")}
        assert roots.keys() == texts.keys()
