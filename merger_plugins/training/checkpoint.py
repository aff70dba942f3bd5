"""Hugging Face checkpoints that merge vectors, ours and others', behind one signature."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import logging

from merger_plugins.errors import ArtefactError
from merger_plugins.training.network import Synthesizer


class MergingNetwork(nn.Module):
    """A model that merges vectors, with the inputs and the output of a merger's graph.

    A model without an argument ``attention_mask`` sees zeros in padded places, as in the card of
    enzoescipy's sequence-merger, and may or may not know them for padding: `takes_mask` is False.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        arguments = inspect.signature(model.forward).parameters
        self.takes_mask = "attention_mask" in arguments
        self._takes_masses = "masses" in arguments
        self._mask_type = torch.bool if isinstance(model, Synthesizer) else torch.int64

    def forward(self, vectors: Tensor, mask: Tensor, masses: Tensor) -> Tensor:
        """(b, n, d) float32, (b, n) bool, (b, n) float32 -> (b, d) float32, unit rows."""
        vectors = F.normalize(vectors.masked_fill(~mask[..., None], 0), dim=-1)
        arguments: dict[str, Tensor] = {}
        if self.takes_mask:
            arguments["attention_mask"] = mask.to(self._mask_type)
        if self._takes_masses:
            arguments["masses"] = masses
        return F.normalize(_merged(self.model(vectors, **arguments)).float(), dim=-1)


def load_network(folder: Path, *, remote_code: bool, device: str | None = None) -> MergingNetwork:
    """Load a checkpoint, in float32 and not for training.

    Args:
        folder: with config.json and weights as safetensors; nothing is unpickled.
        remote_code: run the code in the folder; without, it is a checkpoint of `Synthesizer`.
        device: torch's name; None for CUDA where it works, else the CPU.

    Raises:
        ArtefactError: it cannot be loaded, or weights are missing.
    """
    load: Any = AutoModel if remote_code else Synthesizer
    consent = {"trust_remote_code": True} if remote_code else {}
    try:
        with _quiet():
            model, report = load.from_pretrained(
                folder,
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=not remote_code,
                **consent,
            )
    except Exception as error:  # the checkpoint's own code, torch and transformers raise of many kinds
        raise ArtefactError(
            f"The checkpoint {folder} cannot be loaded: {type(error).__name__}: {error}. It needs the "
            "weights that its config.json describes, as safetensors."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ArtefactError(
            f"The checkpoint {folder} lacks {len(missing)} weights that its config.json asks for, such as "
            f"{missing[0]}. It is of another architecture or damaged; train or download it again."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network: MergingNetwork = MergingNetwork(model).float().eval().to(device)
    return network


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars that transformers draws for files that are there in an instant."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without remarks on missing weights, which are an error here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


def _merged(output: Any) -> Tensor:
    """(b, d) from whatever a model gives: FINESSE reads `pooler_output`, the card `last_hidden_state`."""
    candidates = [output] if isinstance(output, Tensor) else []
    if isinstance(output, Mapping):
        candidates += [output.get("pooler_output"), output.get("last_hidden_state")]
    elif isinstance(output, tuple):
        candidates += [output[0]]
    for candidate in candidates:
        if isinstance(candidate, Tensor) and candidate.dim() == 2:
            return candidate
    raise ArtefactError(
        f"The model gives {type(output).__name__} without a merged vector a sequence: neither pooler_output "
        "nor last_hidden_state is (b, d). It is no merger of vectors."
    )
