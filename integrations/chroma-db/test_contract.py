"""The contract of the stores, on Chroma: in memory, in a folder, and on a server."""

# ruff: noqa: F403 - the tests are written once, for every store
from tests.stores.contract.backend import *
from tests.stores.contract.bad_input import *
from tests.stores.contract.hosts import fixtures
from tests.stores.contract.life import *
from tests.stores.contract.store import *

host, shared_host = fixtures("chroma-memory", "chroma-folder", "chroma-server")
