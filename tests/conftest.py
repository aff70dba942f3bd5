"""Settings that all tests share."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Few examples, because each works on arrays; no deadline, because the first call of a BLAS routine is slow.
arrays = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("arrays", arrays)
settings.register_profile("long", arrays, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "arrays"))

# No test speaks TLS, and each HTTP client would take 25 ms to read the certificates of this machine.
os.environ |= {"SSL_CERT_FILE": "", "SSL_CERT_DIR": str(Path(__file__).parent)}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so; the tests of Ctrl-C need what a foreground job has.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What the imports made stays; the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_open() -> Iterator[None]:
    """Sockets of clients that cannot be closed go with their module, not in the middle of a later test.

    So do collections in the database that all of Chroma's clients in memory share.
    """
    yield
    gc.collect()
    if "chromadb" in sys.modules:
        client = sys.modules["chromadb"].EphemeralClient()
        for collection in client.list_collections():
            client.delete_collection(collection.name)
        client.close()
