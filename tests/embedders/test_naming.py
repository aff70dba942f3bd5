"""Embedders by what somebody writes on a command line."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from merger_plugins.embedders import MiniLMEmbedder
from merger_plugins.embedders.naming import embedder_named
from merger_plugins.errors import InputError, MissingExtraError


def test_the_bundled_embedder_has_a_name():
    assert isinstance(embedder_named("all-MiniLM-L6-v2"), MiniLMEmbedder)


def test_what_is_no_embedder_is_said():
    with pytest.raises(InputError, match=r"There is no embedder 'nothing'\. Pass 'all-MiniLM-L6-v2', the"):
        embedder_named("nothing")
    for name in ("module:", ":attribute", ".module:attribute", "module:a."):
        with pytest.raises(InputError, match=f"'{name}' is no import path; 'module:attribute' was expected"):
            embedder_named(name)
    with pytest.raises(InputError, match="'no_such_module:model' cannot be imported"):
        embedder_named("no_such_module:model")


def test_a_folder_is_a_model_of_sentence_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as where it is not installed
    with pytest.raises(MissingExtraError, match="pip install sentence-transformers"):
        embedder_named(str(tmp_path))

    class Model:
        def __init__(self, folder: str) -> None:
            if not Path(folder, "modules.json").is_file():
                raise ValueError("no modules.json")

    library = ModuleType("sentence_transformers")
    library.SentenceTransformer = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    with pytest.raises(
        InputError, match=r"cannot be read as a sentence-transformers model: no modules\.json"
    ):
        embedder_named(str(tmp_path))
    (tmp_path / "modules.json").write_text("[]")
    assert isinstance(embedder_named(str(tmp_path)), Model)
