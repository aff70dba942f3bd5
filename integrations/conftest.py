"""What the contract of the stores needs here as under tests/."""

import pytest

pytest.register_assert_rewrite("tests.stores")

from tests.conftest import _nothing_left_open  # noqa: E402, F401 - once assertions are rewritten
from tests.stores.conftest import chroma_server  # noqa: E402, F401
