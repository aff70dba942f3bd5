"""Any merger that is a Hugging Face checkpoint, run by torch."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._artefact import CONFIG, read_json
from merger_plugins._extras import require
from merger_plugins._types import Matrix, MatrixLike
from merger_plugins.errors import ArtefactError, InputError, UntrustedCodeError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.black_box import BlackBoxMerger
from merger_plugins.mergers.loading import downloaded, is_hub_id

if TYPE_CHECKING:
    import os

    from merger_plugins.mergers.calibration import CalibrationStatistics
    from merger_plugins.training.checkpoint import MergingNetwork

OURS = "merger_plugins_synthesizer"
"""What config.json of a checkpoint that we trained calls its architecture."""

WINDOW = 10
"""How many vectors a checkpoint merges at once where nothing says how many: the card's were trained on 10."""

FILES = ("*.json", "*.safetensors", "*.py")
"""What a checkpoint is made of; also what is taken from the hub."""

_DIMENSIONS = ("d_model", "hidden_size", "embedding_dim", "dim")
_PURPOSE = "Merging with a Hugging Face checkpoint"


class TransformersMerger(BlackBoxMerger):
    """Merges by a Hugging Face checkpoint: one that we trained, or one whose code comes with it.

    The checkpoint's model takes (b, n, d) vectors first, and ``attention_mask`` and ``masses`` where it has
    arguments of these names, and gives (b, d) as ``pooler_output`` or ``last_hidden_state``, as
    enzoescipy/sequence-merger-malgeum does. It sees unit vectors. Where it takes no mask, only sequences of
    one length are batched, so that nothing is ever padded. Weights are safetensors; nothing is unpickled.

    The model is loaded at the first merge. Copies and unpickled mergers load their own. For deployment,
    `export` writes the same merger without torch.

    Args:
        path: a folder that ``save_pretrained`` wrote, or a Hugging Face id, which is downloaded with the
            extra ``hub``.
        trust_remote_code: run Python code that comes with the checkpoint. It can do all that you can do:
            read it first. Checkpoints that we trained need none.
        window: how many vectors one merge takes at the most, at least 2; None for what config.json says, or
            `WINDOW`.
        device: torch's name of where to run; None for CUDA where it works, else the CPU.

    Raises:
        ArtefactError: missing or damaged, or no checkpoint of a merger.
        UntrustedCodeError: the checkpoint brings code, and the caller did not agree to run it.
        InputError: `window` is out of range.
        MissingExtraError: torch or transformers is not installed (at the first merge).
    """

    kind = "transformers"
    _what = "network"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        trust_remote_code: bool = False,
        window: int | None = None,
        device: str | None = None,
    ) -> None:
        if window is not None and (type(window) is not int or window < 2):
            raise InputError(f"window is {window!r}; it takes a number from 2 on, or None.")
        folder = Path(path)
        is_hub = not folder.is_dir() and isinstance(path, str) and is_hub_id(path)
        config = checkpoint_config(downloaded(str(path), [CONFIG]) if is_hub else folder)
        self._remote_code = needs_code(config)
        if self._remote_code and not trust_remote_code:
            raise UntrustedCodeError(
                f"The model of {path} is defined by Python code that comes with the checkpoint, and that "
                "code can do all that you can do. Read it; then pass trust_remote_code=True."
            )
        self.path = (downloaded(str(path), FILES) if is_hub else folder).absolute()
        self.dimension = _dimension(config, self.path)
        if window is not None:
            config["window"] = window
        self.window = config.setdefault("window", None if config.get("model_type") == OURS else WINDOW)
        self._config = config
        self._device = device
        self._lazy_carry = 0 if self.window else 2
        self.fingerprint = self._fingerprint()
        self._lock = threading.Lock()
        self._loaded: MergingNetwork | None = None

    def __repr__(self) -> str:
        return f"TransformersMerger({str(self.path)!r}, dimension={self.dimension}, window={self.window})"

    def calibrated(
        self,
        sample: MatrixLike | Iterable[MatrixLike] | CalibrationStatistics,  # noqa: ARG002
    ) -> SequenceMerger:
        """Refused: nothing can be put into a trained network from outside.

        Raises:
            InputError: always, with what to do instead.
        """
        raise InputError(
            f"{self.path} is a trained network, which cannot be calibrated from outside. Use the closed form "
            "in its place: load_merger().calibrated(sample), or "
            "CalibratedMerger(dimension=...).calibrated(sample) for an embedding model of which nothing is "
            "known."
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the checkpoint anew, this merger's window in its config.json; returns the folder.

        Raises:
            ArtefactError: the folder exists and is not empty.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ArtefactError(f"{target} exists and is not an empty folder. Choose another path.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            fresh = Path(scratch, "fresh")
            fresh.mkdir()
            for file in _files(self.path):
                shutil.copyfile(file, fresh / file.name)
            (fresh / CONFIG).write_text(json.dumps(self._config, indent=2, sort_keys=True) + "\n")
            if target.exists():
                target.rmdir()
            fresh.rename(target)
        return target

    def export(
        self,
        folder: str | os.PathLike[str],
        *,
        precision: str = "float32",
        embedder: str | None = None,
        licence: str | None = None,
    ) -> Path:
        """Write a model folder with an ONNX graph, which needs no torch; returns the folder.

        Args:
            folder: where.
            precision: how the weights are stored: ``"float32"``, ``"float16"`` or ``"int8"``; or ``"mixed"``,
                float16 with matrix products in float16, too, for GPUs.
            embedder: the embedding model whose vectors it merges, for the card.
            licence: of the checkpoint, an SPDX name, for the card.

        Raises:
            InputError: there is no such precision.
            ArtefactError: it cannot be exported, its graph gives other vectors than the network, or the
                folder holds other files.
            MissingExtraError: torch, transformers or onnx is not installed.
        """
        for package in ("torch", "transformers", "onnx", "onnxscript"):
            require(package, extra="train", purpose="Exporting a Hugging Face checkpoint")
        from merger_plugins.training.export import Provenance, export_network

        assert self.dimension is not None  # a checkpoint states it
        name = str(self._config.get("_name_or_path") or self.path.name)
        return export_network(
            self._load("cpu"),
            folder,
            dimension=self.dimension,
            window=self.window,
            source=Provenance(name, self.fingerprint, embedder, licence),
            precision=precision,
        )

    def _load(self, device: str | None) -> MergingNetwork:
        for package in ("torch", "transformers"):
            require(package, extra="train", purpose=_PURPOSE)
        from merger_plugins.training.checkpoint import load_network

        return load_network(self.path, remote_code=self._remote_code, device=device)

    def _network(self) -> MergingNetwork:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load(self._device)
            return self._loaded

    def _fingerprint(self) -> str:
        """Over config.json as this merger sees it, the weights and the code."""
        digest = hashlib.sha256(json.dumps(self._config, sort_keys=True).encode())
        for file in _files(self.path):
            if file.name != CONFIG:
                with file.open("rb") as handle:
                    digest.update(
                        f"{file.name}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode()
                    )
        return digest.hexdigest()[:16]

    def _call(
        self, vectors: NDArray[np.float32], mask: NDArray[np.bool_], masses: NDArray[np.float32]
    ) -> Matrix:
        network = self._network()
        if network.takes_mask or mask.all():
            return self._forward(network, vectors, mask, masses)
        merged = np.empty((len(vectors), vectors.shape[2]), np.float32)
        lengths = mask.sum(axis=1)
        for length in np.unique(lengths):
            rows = lengths == length
            part = (vectors[rows, :length], mask[rows, :length], masses[rows, :length])
            merged[rows] = self._forward(network, *part)
        return merged

    def _forward(
        self,
        network: MergingNetwork,
        vectors: NDArray[np.float32],
        mask: NDArray[np.bool_],
        masses: NDArray[np.float32],
    ) -> Matrix:
        import torch

        device = next(network.parameters()).device
        try:
            with torch.inference_mode():
                inputs = [torch.from_numpy(array).to(device) for array in (vectors, mask, masses)]
                rows: Matrix = network(*inputs).cpu().numpy()
        except Exception as error:  # the checkpoint's own code may raise anything
            raise ArtefactError(
                f"The network of {self.path} failed on vectors of shape {vectors.shape}: "
                f"{type(error).__name__}: {error}"
            ) from error
        expected = (len(vectors), vectors.shape[2])
        if rows.shape != expected:
            raise ArtefactError(
                f"The network of {self.path} gives {rows.shape}, where {expected} was expected. "
                "It is no merger of such vectors."
            )
        return rows


def checkpoint_config(folder: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face checkpoint.

    Raises:
        ArtefactError: it is missing or damaged, or the checkpoint is of another architecture.
    """
    config = read_json(folder / CONFIG, "Check the path, or download the checkpoint again.")
    if config.get("model_type") != OURS and not needs_code(config):
        raise ArtefactError(
            f"{folder} is a checkpoint of the architecture {config.get('model_type')!r}, which merges no "
            f"vectors. Expected {OURS!r}, or a model whose own code (auto_map in config.json) does."
        )
    return config


def needs_code(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's model is defined by code that comes with it; ours is in this package too."""
    auto_map = config.get("auto_map")
    return config.get("model_type") != OURS and isinstance(auto_map, dict) and "AutoModel" in auto_map


def _files(folder: Path) -> list[Path]:
    return sorted({file for pattern in FILES for file in folder.glob(pattern) if file.is_file()})


def _dimension(config: dict[str, Any], folder: Path) -> int:
    for name in _DIMENSIONS:
        value = config.get(name)
        if type(value) is int and value > 0:
            return value
    raise ArtefactError(
        f"{folder / CONFIG} states no dimension of vectors; expected a number as one of "
        f"{', '.join(_DIMENSIONS)}."
    )
