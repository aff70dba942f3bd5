"""`load_merger`: a merger by name, folder or hub id."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from merger_plugins._artefact import open_artefact
from merger_plugins._extras import require
from merger_plugins.errors import ArtefactError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.mergers.mean import MeanMerger

DEFAULT = "calibrated-all-MiniLM-L6-v2"
"""The bundled merger that `load_merger` gives by default."""


def bundled(name: str) -> Path:
    """The folder of a model that ships with the package; it may not exist."""
    return Path(str(files("merger_plugins"))) / "models" / name


def load_merger(name_or_path: str | os.PathLike[str] | None = None) -> SequenceMerger:
    """Load a merger.

    Args:
        name_or_path: None for the bundled default, `CalibratedMerger` with the background of
            all-MiniLM-L6-v2; ``"mean"``; the name of a bundled model; a folder that `SequenceMerger.save` or
            `SequenceMerger.export` wrote; or a Hugging Face id (``owner/name``) of such a folder, which is
            downloaded with the extra ``hub``.

    Raises:
        ArtefactError: nothing there, damaged, of a newer version, or no merger.
        MissingExtraError: what it needs is not installed.
    """
    if name_or_path is None:
        name_or_path = DEFAULT
    if name_or_path == MeanMerger.kind:
        return MeanMerger()
    folder = Path(name_or_path)
    if not folder.is_dir() and isinstance(name_or_path, str):
        if bundled(name_or_path).is_dir():
            folder = bundled(name_or_path)
        elif name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~")):
            folder = _downloaded(name_or_path)
    artefact = open_artefact(folder)
    kind = artefact.config.get("kind")
    if kind == MeanMerger.kind:
        return MeanMerger()
    if kind == CalibratedMerger.kind:
        return CalibratedMerger.load(artefact)
    if kind == "onnx":
        from merger_plugins.mergers.onnx import OnnxMerger

        return OnnxMerger(folder)
    raise ArtefactError(
        f"{folder} holds the kind {kind!r}, which is no merger; expected 'mean', 'calibrated' or 'onnx'."
    )


def _downloaded(repository: str) -> Path:
    hub = require("huggingface_hub", extra="hub", purpose=f"Loading {repository!r} from the hub")
    try:
        return Path(hub.snapshot_download(repository))
    except Exception as error:  # the hub raises its own, the network's and the disk's errors
        raise ArtefactError(
            f"{repository!r} is no folder here, and could not be downloaded as a Hugging Face id: {error}. "
            "Check the name, or pass the path of a model folder."
        ) from error
