"""The applications and stores that tests/llama_index has too."""

from tests.llama_index.conftest import apps, store  # noqa: F401
