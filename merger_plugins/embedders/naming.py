"""Embedders by what somebody writes on a command line: a name, a model folder, or an import path."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from merger_plugins._importing import imported
from merger_plugins.embedders.minilm import MiniLMEmbedder, load_embedder
from merger_plugins.errors import InputError, MissingExtraError


def embedder_named(name: str) -> Any:
    """An embedding object that `as_embedder` takes.

    Args:
        name: ``"all-MiniLM-L6-v2"`` for the bundled one; the folder of a sentence-transformers model; or
            ``"module:attribute"``, an object such as a LangChain or LlamaIndex embedding, or a function that
            makes one.

    Raises:
        InputError: there is no such embedder, or the folder holds none.
        MissingExtraError: a folder, and sentence-transformers is not installed.
    """
    if name == MiniLMEmbedder.name:
        return load_embedder()
    if Path(name).is_dir():
        return _sentence_transformer(name)
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(
            f"There is no embedder {name!r}. Pass {MiniLMEmbedder.name!r}, the folder of a "
            "sentence-transformers model, or the import path of an embedding object, such as "
            "'my_module:embeddings'."
        )
    found = imported(module, attribute, what="embedder")
    return found() if inspect.isfunction(found) else found


def _sentence_transformer(folder: str) -> Any:
    try:
        library = import_module("sentence_transformers")
    except ModuleNotFoundError as error:
        if error.name != "sentence_transformers":
            raise
        raise MissingExtraError(
            f"The model folder {folder} needs the package 'sentence-transformers', which is not installed. "
            "Run: pip install sentence-transformers"
        ) from error
    try:
        return library.SentenceTransformer(folder)
    except (OSError, ValueError, KeyError) as error:  # what it raises of files that are no model of its kind
        raise InputError(
            f"The folder {folder} cannot be read as a sentence-transformers model: {error}. Name the folder "
            "that holds its modules.json, or the import path of an embedding object."
        ) from error
