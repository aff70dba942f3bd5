"""Train a tiny network for seconds, export it, merge with it: better than the mean where order counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="install the extra train")
pytest.importorskip("onnxscript", reason="install the extra train")
pytest.importorskip("onnxruntime", reason="install the extra cpu")

from merger_plugins import MeanMerger, load_merger  # noqa: E402
from merger_plugins.training.network import Synthesizer  # noqa: E402
from tests.strategies import Array  # noqa: E402
from tests.synthesizers import D, config  # noqa: E402


def sequences(seed: int, count: int) -> tuple[Any, Any, Any]:
    """Vectors (b, 5, d) padded with zeros, masses (b, 5), and teachers (b, d) that weigh early ones more."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(count, 5, D, generator=generator) + 0.3, dim=-1)
    lengths = torch.randint(2, 6, (count, 1), generator=generator)
    vectors = vectors * (torch.arange(5) < lengths)[..., None]
    masses = torch.randint(20, 60, (count, 5), generator=generator).float()
    weights = masses * 0.5 ** torch.arange(5)
    return vectors, masses, torch.nn.functional.normalize((weights[..., None] * vectors).sum(1), dim=-1)


def test_what_was_learned_reaches_the_exported_merger(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Synthesizer(config(dropout=0.0)).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(200):
        vectors, masses, teachers = sequences(step, 64)
        loss = 1 - (model(vectors, masses=masses).pooler_output * teachers).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(tmp_path / "checkpoint")
    checkpoint = load_merger(tmp_path / "checkpoint")
    exported = load_merger(checkpoint.export(tmp_path / "exported"))

    vectors, masses, teachers = (tensor.numpy() for tensor in sequences(10_000, 300))
    held_out = [row[row.any(-1)] for row in vectors]
    weights = [mass[: len(row)] for mass, row in zip(masses, held_out, strict=True)]

    def fidelity(merged: Array) -> float:
        return float(np.sum(merged * teachers, axis=1).mean())

    merged = exported.merge_many(held_out, masses=weights)
    np.testing.assert_allclose(merged, checkpoint.merge_many(held_out, masses=weights), atol=1e-5)
    mean = fidelity(MeanMerger().merge_many(held_out, masses=weights))
    assert 1 - fidelity(merged) < (1 - mean) / 2
