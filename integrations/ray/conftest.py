"""One Ray of two CPUs for all tests of this folder."""

import logging
import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    os.environ.setdefault("RAY_num_workers_soft_limit", "8")  # a process of each kind stays for the next test
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    yield
    ray.shutdown()
