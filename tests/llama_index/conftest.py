from typing import Any

import pytest

from merger_plugins.chroma import ChromaStore
from merger_plugins.qdrant import QdrantStore
from tests.llama_index.apps import KINDS, App, WordModel, app


@pytest.fixture(scope="module")
def apps() -> dict[str, App]:
    """Read only; the hooks over Qdrant and Chroma are back-filled. Of a module, as what Chroma shares is."""
    made = {kind: app(kind) for kind in KINDS}
    for kind in ("qdrant", "chroma"):
        with made[kind].hook() as hook:
            hook.backfill()
    return made


@pytest.fixture(params=["qdrant", "chroma"])
def store(request: pytest.FixtureRequest) -> Any:
    made = QdrantStore if request.param == "qdrant" else ChromaStore
    with made(":memory:", embedder=WordModel(), contextual=True) as opened:
        yield opened
