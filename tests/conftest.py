"""Settings that all tests share."""

import gc
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Few examples, because each works on arrays; no deadline, because the first call of a BLAS routine is slow.
settings.register_profile(
    "arrays", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("arrays")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so; the tests of Ctrl-C need what a foreground job has.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_open() -> Iterator[None]:
    """Sockets of clients that cannot be closed go with their module, not in the middle of a later test."""
    yield
    gc.collect()
