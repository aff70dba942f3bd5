import pytest

from tests.llama_index.apps import KINDS, App, app


@pytest.fixture(scope="session")
def apps() -> dict[str, App]:
    """Read only; the hooks over Qdrant and Chroma are back-filled."""
    made = {kind: app(kind) for kind in KINDS}
    for kind in ("qdrant", "chroma"):
        with made[kind].hook() as hook:
            hook.backfill()
    return made
