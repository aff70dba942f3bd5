"""``merger-plugins train`` from texts to a merger, as a user gives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="install the extra train")
for _package in ("accelerate", "tensorboard", "matplotlib", "typer", "rich"):
    pytest.importorskip(_package, reason="install the extras train and cli")

from typer.testing import CliRunner  # noqa: E402

from merger_plugins import load_merger  # noqa: E402
from merger_plugins.cli.app import app  # noqa: E402
from tests.training import toy  # noqa: E402

RECIPE = """
network = { num_layers = 1 }
[data]
chunk_tokens = 20
tree_tokens = 24
[ten_to_one]
steps = 3
batch_size = 8
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command in a folder with texts, settings and an embedding object of the user's own."""
    torch.set_num_threads(1)
    texts = tmp_path / "notes"
    texts.mkdir()
    for i in range(12):
        (texts / f"{i}.txt").write_text(toy.article(i))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "mine.py").write_text("from tests.training.toy import Toy\n\nembeddings = Toy()\n")
    monkeypatch.chdir(tmp_path)
    given = ["train", "--texts", "notes", "--embedder", "mine:embeddings", "--config", "recipe.toml"]

    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*given, "--output", "out", "--stage", "ten_to_one", *arguments])

    return invoke


def test_from_texts_to_a_merger(run: Callable[..., Any], tmp_path: Path) -> None:
    refused = run()
    assert refused.exit_code == 1
    assert "--max-tokens 512" in refused.stderr
    assert not Path("out").exists()  # nothing is begun before the settings can be used

    only = run("--max-tokens", "132", "--estimate")
    assert only.exit_code == 0, only.stderr
    assert "12 texts read" in only.stdout
    assert "calls" in only.stdout
    assert not Path("out").exists()

    result = run("--max-tokens", "132", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["articles"]["training"] == 10
    assert list(document["estimate"]["stage_seconds"]) == ["ten_to_one"]
    assert set(document["figures"]) == {"mean", "calibrated", "synthesizer"}
    assert load_merger(document["model"]).dimension == toy.DIMENSION
    assert (tmp_path / "out" / "curves.png").is_file()

    shown = run("--max-tokens", "132")
    assert shown.exit_code == 0
    assert "synthesizer" in shown.stdout
    assert "Cosine with the teacher's vector" in shown.stdout
    other = run("--max-tokens", "132", "--seed", "1")
    assert other.exit_code == 1
    assert "seed was 0 and is now 1" in other.stderr
