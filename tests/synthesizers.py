"""Tiny networks of every kind, with weights as large as trained ones have."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="install the extra train")

from merger_plugins.training.network import Synthesizer, SynthesizerConfig  # noqa: E402

D = 12

KINDS: dict[str, dict[str, Any]] = {
    "ours": {"residual": "both", "ppe_dim": 6},
    "weights alone": {"residual": "weights", "positions": "none", "activation": "relu"},
    "vector, learned positions": {"residual": "vector", "positions": "learned", "use_masses": False},
    "the card's": {
        "residual": "none",
        "use_masses": False,
        "use_glu": True,
        "activation": "silu",
        "layer_dims": [24, 16, 12],
        "ffn_dims": [20, 16, 12],
        "nhead_dims": [4, 2, 3],
        "ppe_dim": 4,
    },
}


def config(kind: str = "ours", **changes: Any) -> SynthesizerConfig:
    """The configuration of a kind in dimension `D`."""
    values = {"d_model": D, "nhead": 2, "window": 5, "max_positions": 30, **KINDS[kind], **changes}
    return SynthesizerConfig(**{"num_layers": len(values.get("layer_dims", "..")), **values})


def trained(kind: str = "ours", seed: int = 0, **changes: Any) -> Synthesizer:
    """A network whose heads are no longer zero, not in training."""
    torch.manual_seed(seed)
    model = Synthesizer(config(kind, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model
