"""The contract of the stores, on Qdrant: in memory, in a folder, on its own engine, and on a server."""

# ruff: noqa: F403 - the tests are written once, for every store
from tests.stores.contract.backend import *
from tests.stores.contract.bad_input import *
from tests.stores.contract.hosts import fixtures
from tests.stores.contract.life import *
from tests.stores.contract.store import *

host, shared_host = fixtures("qdrant-memory", "qdrant-folder", "qdrant-edge", "qdrant-server")
