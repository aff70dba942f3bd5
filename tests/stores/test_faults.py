"""A child process that writes is killed at random moments; what it left is completed, and nothing is wrong.

FAULT_RUNS=500 for the full number of kills; `python -m benchmarks.kills` keeps what they showed.
"""

import importlib.util
import os

import pytest

from tests.stores.killing import STORES, survive

RUNS = int(os.environ.get("FAULT_RUNS", "24"))


@pytest.mark.parametrize("name", STORES)
def test_no_moment_to_be_killed_is_a_bad_one(tmp_path, name):
    if name.startswith("chroma") and importlib.util.find_spec("chromadb") is None:
        pytest.skip("chromadb is not installed")
    survived = survive(name, tmp_path, RUNS)
    assert survived.kills == RUNS
    assert survived.unfinished > RUNS // 10
    print(name, survived)
