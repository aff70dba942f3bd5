"""A merger for Hugging Face checkpoints: ours, and one of the form of enzoescipy's sequence-merger."""

import copy
import json
import pickle
import shutil
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="install the extra train")
safetensors = pytest.importorskip("safetensors.torch", reason="install the extra train")
pytest.importorskip("transformers", reason="install the extra train")

from merger_plugins import OnnxMerger, TransformersMerger, load_merger  # noqa: E402
from merger_plugins.errors import (  # noqa: E402
    ArtefactError,
    DimensionError,
    InputError,
    MissingExtraError,
    NonFiniteError,
    UntrustedCodeError,
)
from tests.strategies import Array, chunk_vectors  # noqa: E402
from tests.synthesizers import D, trained  # noqa: E402

CLOSE = 1e-5
LENGTHS = [1, 3, 5, 5, 2, 4]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours") / "checkpoint"
    trained().save_pretrained(folder)
    return folder


CODE = """
    from pathlib import Path
    import torch
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput

    Path({marker!r}).touch()

    class MergerConfig(PretrainedConfig):
        model_type = "sequence_merger"
        def __init__(self, d_model=12, **kwargs):
            self.d_model = d_model
            super().__init__(**kwargs)

    class Merger(PreTrainedModel):
        config_class = MergerConfig
        def __init__(self, config):
            super().__init__(config)
            self.score = torch.nn.Linear(config.d_model, 1)
            self.map = torch.nn.Linear(config.d_model, config.d_model)
            self.post_init()
        def _init_weights(self, module):
            pass
        def forward(self, {arguments}):
            {body}
            return BaseModelOutput(last_hidden_state=merged)
"""

ZEROS_ARE_PADDING = """
            absent = (sequences == 0).all(-1, keepdim=True)
            weights = self.score(sequences).masked_fill(absent, -torch.inf).softmax(1)
            merged = self.map((weights * sequences).sum(1))
"""
ZEROS_COUNT = """
            weights = self.score(sequences).softmax(1)
            merged = self.map((weights * sequences).sum(1))
"""


def foreign(folder: Path, body: str = ZEROS_ARE_PADDING, arguments: str = "sequences") -> Path:
    """A checkpoint whose model is defined by code beside its weights; importing that leaves a mark."""
    folder.mkdir(parents=True)
    marker = str(folder.parent / "imported")
    code = textwrap.dedent(CODE.format(marker=marker, arguments=arguments, body=body.strip()))
    (folder / "modeling_merger.py").write_text(code)
    config = {
        "model_type": "sequence_merger",
        "architectures": ["Merger"],
        "auto_map": {
            "AutoConfig": "modeling_merger.MergerConfig",
            "AutoModel": "modeling_merger.Merger",
        },
        "d_model": D,
    }
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.save_file(weights(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"score.weight": (1, D), "score.bias": (1,), "map.weight": (D, D), "map.bias": (D,)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def attention_pool(vectors: Array) -> Array:
    """What the foreign model computes from (n, d) vectors."""
    w = {name: tensor.double().numpy() for name, tensor in weights().items()}
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.exp(units @ w["score.weight"][0])
    merged = w["map.weight"] @ (scores @ units / scores.sum()) + w["map.bias"]
    result: Array = merged / np.linalg.norm(merged)
    return result


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where transformers keeps its copy of a checkpoint's code, and imports it from."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


# -- ours ----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_ours_needs_no_consent_and_merges_as_its_network_does(ours: Path) -> None:
    merger = load_merger(ours)
    assert isinstance(merger, TransformersMerger)
    assert (merger.dimension, merger.window) == (D, 5)
    model = trained()
    sequences = [chunk_vectors(i, n, D) * 9 for i, n in enumerate(LENGTHS)]
    masses = [np.arange(1, n + 1) * 7.0 for n in LENGTHS]
    together = merger.merge_many(sequences, masses=masses)
    for row, (vectors, mass) in enumerate(zip(sequences, masses, strict=True)):
        with torch.no_grad():
            expected = model(torch.from_numpy(vectors)[None], None, torch.tensor(mass)[None]).pooler_output[0]
        np.testing.assert_allclose(together[row], expected, atol=CLOSE)
        np.testing.assert_allclose(merger.merge(vectors, masses=mass), expected, atol=CLOSE)


def test_longer_sequences_go_through_the_tree(ours: Path) -> None:
    merger = load_merger(ours)
    vectors, masses = chunk_vectors(3, 12, D), np.arange(1.0, 13)
    rolling = merger.rolling()
    for vector, mass in zip(vectors, masses, strict=True):
        rolling.append(vector, mass=mass)
    parts = [slice(0, 5), slice(5, 10), slice(10, 12)]
    sections = [merger.merge(vectors[p], masses=masses[p]) for p in parts[:2]]
    tops = np.stack([*sections, merger.merge(vectors[10:], masses=masses[10:])])
    expected = merger.merge(tops, masses=[masses[p].sum() for p in parts])
    np.testing.assert_allclose(rolling.vector, expected, atol=CLOSE)
    np.testing.assert_allclose(merger.merge(vectors, masses=masses), expected, atol=CLOSE)
    assert merger.contextualize(vectors).shape == (12, D)


def test_copies_pickles_and_saved_folders_are_the_same_merger(ours: Path, tmp_path: Path) -> None:
    merger = TransformersMerger(ours, window=3, device="cpu")
    vectors = chunk_vectors(0, 7, D)
    expected = merger.merge(vectors)
    saved = load_merger(merger.save(tmp_path / "saved"))
    for other in (copy.deepcopy(merger), pickle.loads(pickle.dumps(merger)), saved):
        assert (other.fingerprint, other.window) == (merger.fingerprint, 3)
        np.testing.assert_array_equal(other.merge(vectors), expected)
    with pytest.raises(ArtefactError, match="not an empty folder"):
        merger.save(tmp_path / "saved")


def test_the_fingerprint_tells_weights_code_and_window_apart(ours: Path, tmp_path: Path) -> None:
    fingerprints = {TransformersMerger(ours).fingerprint, TransformersMerger(ours, window=4).fingerprint}
    for name in ("model.safetensors", "network.py"):
        changed = shutil.copytree(ours, tmp_path / name)
        (changed / name).write_bytes((changed / name).read_bytes() + b" ")
        fingerprints.add(TransformersMerger(changed).fingerprint)
    assert len(fingerprints) == 4
    shutil.copytree(ours, tmp_path / "same")
    (tmp_path / "same" / "README.md").write_text("a card")
    assert TransformersMerger(tmp_path / "same").fingerprint == TransformersMerger(ours).fingerprint


def test_export_gives_an_onnx_merger_of_the_same_merges(ours: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="install the extra train")
    pytest.importorskip("onnxruntime", reason="install the extra cpu")
    merger = load_merger(ours)
    exported = load_merger(merger.export(tmp_path / "exported"))
    assert isinstance(exported, OnnxMerger)
    assert exported.window == merger.window
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["source"]["fingerprint"] == (
        merger.fingerprint
    )
    sequences = [chunk_vectors(i, n, D) for i, n in enumerate([*LENGTHS, 23])]
    np.testing.assert_allclose(exported.merge_many(sequences), merger.merge_many(sequences), atol=CLOSE)


def test_what_cannot_be_merged_is_refused(ours: Path) -> None:
    merger = load_merger(ours)
    with pytest.raises(DimensionError, match="12"):
        merger.merge(chunk_vectors(0, 2, 13))
    with pytest.raises(InputError, match="cannot be calibrated"):
        merger.calibrated(chunk_vectors(0, 30, D))
    with pytest.raises(InputError, match="window is 1"):
        TransformersMerger(ours, window=1)


# -- somebody else's -----------------------------------------------------------------------------------


def test_code_runs_with_consent_only(home: Path) -> None:
    folder = foreign(home / "theirs")
    for load in (load_merger, TransformersMerger):
        with pytest.raises(UntrustedCodeError, match="Read it; then pass trust_remote_code=True"):
            load(folder)
    assert not (home / "imported").exists()
    merger = load_merger(folder, trust_remote_code=True)
    assert merger.window == 10
    merger.merge(chunk_vectors(0, 2, D))
    assert (home / "imported").exists()


@pytest.mark.parametrize("body", [ZEROS_ARE_PADDING, ZEROS_COUNT])
def test_a_model_without_a_mask_never_sees_padding(body: str, home: Path) -> None:
    merger = load_merger(foreign(home / "theirs", body), trust_remote_code=True)
    sequences = [chunk_vectors(i, n, D) * 5 for i, n in enumerate(LENGTHS)]
    expected = [attention_pool(vectors) for vectors in sequences]
    np.testing.assert_allclose(merger.merge_many(sequences), expected, atol=CLOSE)


def test_theirs_is_exported_where_zeros_are_padding(home: Path) -> None:
    pytest.importorskip("onnxscript", reason="install the extra train")
    pytest.importorskip("onnxruntime", reason="install the extra cpu")
    folder = foreign(home / "theirs")
    exported = load_merger(load_merger(folder, trust_remote_code=True).export(home / "exported"))
    sequences = [chunk_vectors(i, n, D) for i, n in enumerate(LENGTHS)]
    expected = [attention_pool(vectors) for vectors in sequences]
    np.testing.assert_allclose(exported.merge_many(sequences), expected, atol=CLOSE)


@pytest.mark.parametrize(
    ("body", "arguments", "message"),
    [
        ("merged = sequences", "sequences", r"neither pooler_output nor last_hidden_state is \(b, d\)"),
        ("merged = sequences[:, 0, :5]", "sequences", r"gives \(1, 5\), where \(1, 12\) was expected"),
        ("raise KeyError('token')", "input_ids", r"failed on vectors of shape \(1, 2, 12\): KeyError"),
        ("merged = sequences[:, 0] / 0", "sequences", "gives NaN"),
    ],
)
def test_a_model_that_is_no_merger_is_told(body: str, arguments: str, message: str, home: Path) -> None:
    merger = load_merger(foreign(home / "theirs", body, arguments), trust_remote_code=True)
    with pytest.raises((ArtefactError, NonFiniteError), match=message):
        merger.merge(chunk_vectors(0, 2, D))


# -- damaged, missing, of another kind -----------------------------------------------------------------


def rewritten(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_another_architecture_is_refused_before_anything_is_loaded(ours: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ours, tmp_path / "bert")
    rewritten(folder, model_type="bert", auto_map={})
    with pytest.raises(ArtefactError, match="architecture 'bert', which merges no vectors"):
        load_merger(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 3, "layer_dims": None, "ffn_dims": None, "nhead_dims": None}, "lacks 12 weights"),
        ({"d_model": 24, "layer_dims": [24, 24], "ffn_dims": [96, 96]}, "cannot be loaded"),
        ({"ppe_dim": 5}, "ppe_dim is 5"),
    ],
)
def test_weights_of_another_network_are_refused(
    changes: dict[str, Any], message: str, ours: Path, tmp_path: Path
) -> None:
    merger = load_merger(rewritten(shutil.copytree(ours, tmp_path / "changed"), **changes))
    with pytest.raises(ArtefactError, match=message):
        merger.merge(chunk_vectors(0, 2, merger.dimension or D))


def test_pickled_weights_are_not_loaded(ours: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ours, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(trained().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ArtefactError, match=r"cannot be loaded.*safetensors"):
        load_merger(folder).merge(chunk_vectors(0, 2, D))


def test_a_damaged_config_is_refused(ours: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ours, tmp_path / "damaged")
    rewritten(folder, d_model="twelve")
    with pytest.raises(ArtefactError, match="states no dimension"):
        load_merger(folder)
    for content, message in (("{", "is damaged"), ("[1]", "no JSON object")):
        (folder / "config.json").write_text(content)
        with pytest.raises(ArtefactError, match=message):
            TransformersMerger(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ArtefactError, match=r"config\.json is missing"):
        TransformersMerger(folder)


def test_without_torch_it_loads_and_says_what_to_install_when_used(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merger = load_merger(ours)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'merger-plugins\[train\]'"):
        merger.merge(chunk_vectors(0, 2, D))


# -- the hub -------------------------------------------------------------------------------------------


def hub(folder: Path, asked: list[Any]) -> Any:
    """What is used of huggingface_hub, without the network."""

    def snapshot_download(repository: str, *, allow_patterns: Any = None) -> str:
        asked.append((repository, allow_patterns))
        return str(folder)

    return SimpleNamespace(snapshot_download=snapshot_download)


def test_an_id_without_consent_downloads_the_config_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = foreign(home / "theirs")
    monkeypatch.chdir(home)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(folder, asked := []))
    with pytest.raises(UntrustedCodeError, match="someone/a-merger"):
        load_merger("someone/a-merger")
    assert {tuple(patterns) for _, patterns in asked} == {("config.json",)}
    merger = load_merger("someone/a-merger", trust_remote_code=True)
    assert asked[-1] == ("someone/a-merger", ("*.json", "*.safetensors", "*.py"))
    vectors = chunk_vectors(0, 4, D)
    np.testing.assert_allclose(merger.merge(vectors), attention_pool(vectors), atol=CLOSE)
