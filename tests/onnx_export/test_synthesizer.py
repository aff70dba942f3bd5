"""The synthesizer that ships: its folder, its card, its figures; and its release from a training's folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merger_plugins import OnnxMerger, load_merger
from merger_plugins._artefact import open_artefact
from merger_plugins.mergers.loading import SYNTHESIZER, bundled
from onnx_export import synthesizer
from tests.strategies import chunk_vectors

ROOT = Path(__file__).parents[2]
LARGEST = 15_000_000


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / synthesizer.FIGURES).read_text())["figures"]
    return found


def test_figures_and_card_belong_to_the_model_that_ships(figures: dict[str, Any]) -> None:
    folder = bundled(SYNTHESIZER)
    assert figures["fingerprint"] == open_artefact(folder, kind="onnx").fingerprint
    card = (folder / "README.md").read_text(encoding="utf-8")
    for title, part in (("held-out Wikipedia", "wikipedia"), ("COVID-QA's papers", "covidqa")):
        found = figures[part]["mergers"]["synthesizer"]
        assert f"| {title}, synthesizer | {found['teacher']:.3f} | {found['by_chunks']['2']:.3f} | " in card
    assert "license: apache-2.0" in card
    assert "CC BY-SA 3.0" in card
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LARGEST


def test_figures_are_those_it_ships_for(figures: dict[str, Any]) -> None:
    wikipedia, papers = (figures[name]["mergers"]["synthesizer"] for name in ("wikipedia", "covidqa"))
    assert wikipedia["teacher"] >= 0.950
    assert wikipedia["by_chunks"]["10"] >= 0.940
    assert papers["teacher"] >= 0.92
    for name in ("wikipedia", "covidqa"):
        assert figures[name]["associativity"]["synthesizer"]["mean"] >= 0.985
        found = figures[name]["mergers"]["synthesizer"]
        assert found["order"] > 3 * found["order_error"] > 0
        assert figures[name]["recognition"]["mean"]["mean"] == 0
        for length in ("50", "100"):
            kept = figures[name]["lengths"]["tree"][length]
            assert kept["synthesizer"]["mean"] > kept["mean"]["mean"]
        assert found["teacher"] > figures[name]["mergers"]["mean"]["teacher"]
        recognised = figures[name]["recognition"]["synthesizer"]
        assert recognised["mean"] > 2 * recognised["error"] > 0


def test_it_merges_in_order_and_stays_near_the_mean() -> None:
    merger = load_merger(SYNTHESIZER)
    assert isinstance(merger, OnnxMerger)
    assert (merger.dimension, merger.window) == (384, 10)
    vectors = chunk_vectors(0, 9, 384)
    merged = merger.merge(vectors)
    np.testing.assert_allclose(np.linalg.norm(merged), 1, atol=1e-5)
    assert float(merged @ load_merger("mean").merge(vectors)) > 0.8
    assert np.abs(merged - merger.merge(vectors[::-1])).max() > 1e-4
    long = chunk_vectors(1, 57, 384)
    rolling = merger.rolling()
    rolling.extend(long)
    np.testing.assert_allclose(rolling.vector, merger.merge(long), atol=1e-5)


def test_a_finished_training_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="install the extra train")
    from merger_plugins.training.config import TrainingConfig
    from merger_plugins.training.train import train
    from tests.training.toy import CONTEXT, article, make

    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": article(number)}) + "\n" for number in range(24)))
    few = {"steps": 2, "batch_size": 4, "longest": 16}
    run = train(
        TrainingConfig().replace(
            texts=[str(texts)],
            output=str(tmp_path / "run"),
            max_tokens=CONTEXT,
            network={"named": "small", "num_layers": 1},
            data={"chunk_tokens": 20},
            self_supervised=few,
            five_twelve_to_one=few,
            ten_to_one={**few, "nested_size": 2},
        ),
        embedder=make(),
    )
    monkeypatch.setattr(synthesizer, "FIGURES", tmp_path / "figures.json")
    folder = synthesizer.release(run.folder, tmp_path / "out")
    trained, released = load_merger(run.model), load_merger(folder)
    vectors = chunk_vectors(2, 10, 16)
    np.testing.assert_allclose(released.merge(vectors), trained.merge(vectors), atol=2e-3)
    assert open_artefact(folder).config["source"]["name"] == SYNTHESIZER
    assert "Not measured yet" in (folder / "README.md").read_text()

    measured = json.loads((ROOT / "benchmarks/results/synthesizer.json").read_text())
    measured["figures"]["fingerprint"] = released.fingerprint
    synthesizer.FIGURES.write_text(json.dumps(measured))
    card = (synthesizer.release(run.folder, tmp_path / "out") / "README.md").read_text()
    assert "| held-out Wikipedia, mean |" in card
    assert "| ten_to_one | 2 | 4 | " in card
    assert load_merger(tmp_path / "out").fingerprint == released.fingerprint
