"""`load_merger`: names, folders of every kind, and Hugging Face ids."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from merger_plugins import CalibratedMerger, MeanMerger, OnnxMerger, SequenceMerger, load_merger
from merger_plugins._artefact import write_artefact
from merger_plugins.errors import ArtefactError, MissingExtraError
from merger_plugins.mergers.loading import DEFAULT
from tests.strategies import CALIBRATED, DIMENSION, chunk_vectors


def test_the_default_is_the_bundled_merger_of_minilm() -> None:
    merger = load_merger()
    assert isinstance(merger, CalibratedMerger)
    assert merger.dimension == 384
    assert merger.background is not None
    assert merger.embedder is not None
    assert "all-MiniLM-L6-v2" in merger.embedder
    assert load_merger(DEFAULT).fingerprint == merger.fingerprint
    merged = merger.merge(chunk_vectors(0, 12, 384))
    np.testing.assert_allclose(np.linalg.norm(merged), 1, atol=1e-5)


def test_mean_is_known_by_name() -> None:
    assert isinstance(load_merger("mean"), MeanMerger)


@pytest.mark.parametrize("source", [MeanMerger(), CALIBRATED, CalibratedMerger(dimension=DIMENSION)])
def test_a_saved_folder_gives_the_same_merger(source: SequenceMerger, tmp_path: Path) -> None:
    folder = source.save(tmp_path / "saved")
    for path in (folder, str(folder)):
        again = load_merger(path)
        assert type(again) is type(source)
        assert again.fingerprint == source.fingerprint
        vectors = chunk_vectors(1, 14)
        np.testing.assert_array_equal(again.merge(vectors), source.merge(vectors))


def test_an_exported_folder_gives_an_onnx_merger(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="install the extra export")
    pytest.importorskip("onnxruntime", reason="install the extra cpu")
    merger = load_merger(CALIBRATED.export(tmp_path / "exported"))
    assert isinstance(merger, OnnxMerger)
    vectors = chunk_vectors(2, 14)
    np.testing.assert_allclose(merger.merge(vectors), CALIBRATED.merge(vectors), atol=1e-5)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "other", {"kind": "embedder"}, {"weights": b""}).path
    with pytest.raises(ArtefactError, match=r"'embedder', which is no merger; expected 'mean'.*'onnx'"):
        load_merger(folder)


def test_a_folder_that_is_no_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"config\.json is missing"):
        load_merger(tmp_path)


def test_a_folder_of_a_newer_release_says_to_upgrade(tmp_path: Path) -> None:
    folder = MeanMerger().save(tmp_path / "mean")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": config["format"] + 1}))
    with pytest.raises(ArtefactError, match="pip install --upgrade merger-plugins"):
        load_merger(folder)


@pytest.mark.parametrize("name", ["no-such-model", "./absent", "/absent/model", "~/absent", "a/b/c"])
def test_a_name_of_nothing_is_refused_without_asking_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(asked := []))
    with pytest.raises(ArtefactError, match="no model folder"):
        load_merger(name)
    assert not asked


def hub(asked: list[str], answer: Path | Exception | None = None) -> Any:
    """What is used of huggingface_hub, without the network: it notes the ids and gives the answer."""

    def snapshot_download(repository: str, *, allow_patterns: object = None) -> str:
        asked.append(repository)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    return SimpleNamespace(snapshot_download=snapshot_download)


def test_an_id_of_the_hub_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folder = CALIBRATED.save(tmp_path / "cache" / "snapshot")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(asked := [], folder))
    assert load_merger("someone/a-merger").fingerprint == CALIBRATED.fingerprint
    assert set(asked) == {"someone/a-merger"}


def test_a_folder_here_comes_before_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    CALIBRATED.save(tmp_path / "someone" / "a-merger")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(asked := []))
    assert load_merger("someone/a-merger").fingerprint == CALIBRATED.fingerprint
    assert not asked


def test_a_download_that_fails_is_an_artefact_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    failure = OSError("404: no such repository")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub([], failure))
    with pytest.raises(ArtefactError, match=r"'someone/a-merger'.*404.*Check the name") as caught:
        load_merger("someone/a-merger")
    assert caught.value.__cause__ is failure


def test_without_the_hub_package_an_id_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'merger-plugins\[hub\]'"):
        load_merger("someone/a-merger")
