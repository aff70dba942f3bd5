"""`load_merger`: a merger by name, folder or hub id."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from merger_plugins._artefact import CONFIG, open_artefact
from merger_plugins._extras import require
from merger_plugins.errors import ArtefactError, InputError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.mergers.mean import MeanMerger

DEFAULT = "calibrated-all-MiniLM-L6-v2"
"""The bundled merger that `load_merger` gives by default."""

SYNTHESIZER = "synthesizer-all-MiniLM-L6-v2"
"""The bundled trained merger."""


def bundled(name: str) -> Path:
    """The folder of a model that ships with the package; it may not exist."""
    return Path(str(files("merger_plugins"))) / "models" / name


def load_merger(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    trust_remote_code: bool = False,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
) -> SequenceMerger:
    """Load a merger.

    Args:
        name_or_path: None for the bundled default, `CalibratedMerger` with the background of
            all-MiniLM-L6-v2; ``"mean"``; the name of a bundled model; a folder that `SequenceMerger.save` or
            `SequenceMerger.export` wrote; the folder of a Hugging Face checkpoint that merges vectors, which
            torch runs (`TransformersMerger`); or a Hugging Face id (``owner/name``) of either, which is
            downloaded with the extra ``hub``.
        trust_remote_code: run Python code that comes with a checkpoint; see `TransformersMerger`.
        providers: of a merger that is an ONNX graph, ONNX Runtime's execution providers, each of which must
            load, such as ``("CUDAExecutionProvider",)``; None for CUDA where it works, else the CPU.
        threads: of a merger that is an ONNX graph, CPU threads; see `OnnxMerger`.

    Raises:
        InputError: `providers` or `threads` for another kind of merger: numpy's threads are set by the
            environment variable OMP_NUM_THREADS, before it is imported.
        ArtefactError: nothing there, damaged, of a newer version, or no merger.
        UntrustedCodeError: a checkpoint brings code, and `trust_remote_code` is False.
        MissingExtraError: what it needs is not installed.
    """
    if name_or_path is None:
        name_or_path = DEFAULT
    wishes = {"providers": providers, "threads": threads}
    if name_or_path == MeanMerger.kind:
        _check_wishes("the mean", wishes)
        return MeanMerger()
    folder = Path(name_or_path)
    if not folder.is_dir() and isinstance(name_or_path, str):
        if bundled(name_or_path).is_dir():
            folder = bundled(name_or_path)
        elif is_hub_id(name_or_path):
            folder = downloaded(name_or_path, [CONFIG])
            if not _is_checkpoint(folder):
                folder = downloaded(name_or_path)
    if _is_checkpoint(folder):
        from merger_plugins.mergers.transformers import TransformersMerger

        _check_wishes(f"{folder}, which torch runs,", wishes)
        return TransformersMerger(name_or_path, trust_remote_code=trust_remote_code)
    artefact = open_artefact(folder)
    kind = artefact.config.get("kind")
    if kind == "onnx":
        from merger_plugins.mergers.onnx import OnnxMerger

        return OnnxMerger(folder, providers=providers, threads=threads)
    _check_wishes(f"{folder}, which numpy runs,", wishes)
    if kind == MeanMerger.kind:
        return MeanMerger()
    if kind == CalibratedMerger.kind:
        return CalibratedMerger.load(artefact)
    raise ArtefactError(
        f"{folder} holds the kind {kind!r}, which is no merger; expected 'mean', 'calibrated' or 'onnx'."
    )


def _check_wishes(what: str, wishes: dict[str, Any]) -> None:
    wished = [name for name, value in wishes.items() if value is not None]
    if wished:
        raise InputError(
            f"{' and '.join(wished)} arrived for {what} and that is no ONNX graph. Leave it out; the threads "
            "of numpy and torch are set by the environment variable OMP_NUM_THREADS."
        )


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a Hugging Face id, ``owner/name``, rather than of a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def downloaded(repository: str, patterns: Sequence[str] | None = None) -> Path:
    """The folder that a repository of the hub was downloaded to.

    Args:
        repository: its id.
        patterns: the only files wanted, such as ``"*.json"``; None for all.

    Raises:
        ArtefactError: it cannot be downloaded.
        MissingExtraError: the package huggingface-hub is not installed.
    """
    hub = require("huggingface_hub", extra="hub", purpose=f"Loading {repository!r} from the hub")
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # the hub raises its own, the network's and the disk's errors
        raise ArtefactError(
            f"{repository!r} is no folder here, and could not be downloaded as a Hugging Face id: {error}. "
            "Check the name, or pass the path of a model folder."
        ) from error


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a Hugging Face checkpoint; of one that is damaged, `open_artefact` tells more."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    ours = not isinstance(config, dict) or "format" in config
    return not ours and bool({"model_type", "auto_map"} & config.keys())
