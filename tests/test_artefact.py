"""Model folders and the safetensors layout."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from merger_plugins._artefact import (
    FORMAT,
    dump_tensors,
    fingerprint_of,
    load_tensors,
    open_artefact,
    write_artefact,
)
from merger_plugins.errors import ArtefactError, InputError

CONFIG = {"kind": "test", "dimension": 3}
FILES = {"weights.safetensors": b"\x00\x01", "onnx/model.onnx": b"graph", "README.md": b"card"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_artefact(tmp_path / "deep" / "model", CONFIG, FILES).path


def test_what_was_written_is_read_back(folder: Path) -> None:
    artefact = open_artefact(folder, kind="test")
    assert artefact.config == {**CONFIG, "format": FORMAT}
    assert artefact.read("onnx/model.onnx") == b"graph"
    assert artefact.files == ("config.json", "onnx/model.onnx", "weights.safetensors")
    assert (folder / "README.md").read_bytes() == b"card"
    assert names(folder.parent) == ["model"]


def test_fingerprint_follows_contents_alone(tmp_path: Path, folder: Path) -> None:
    original = open_artefact(folder).fingerprint
    assert len(original) == 16
    assert int(original, 16) >= 0
    again = write_artefact(
        tmp_path / "elsewhere", dict(reversed(CONFIG.items())), dict(reversed(FILES.items()))
    )
    assert again.fingerprint == original == fingerprint_of(CONFIG, FILES)
    others = [
        fingerprint_of({**CONFIG, "dimension": 4}, FILES),
        fingerprint_of(CONFIG, {**FILES, "onnx/model.onnx": b"graph2"}),
        fingerprint_of(CONFIG, {"weights.safetensors": b"\x00\x01", "model.onnx": b"graph"}),
    ]
    assert len({original, *others}) == 4


def test_card_may_be_edited(folder: Path) -> None:
    before = open_artefact(folder).fingerprint
    (folder / "README.md").write_text("a better card")
    assert open_artefact(folder).fingerprint == before


@pytest.mark.parametrize("name", ["weights.safetensors", "onnx/model.onnx", "config.json"])
def test_damage_names_the_file(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtefactError, match=rf"{name} is damaged.*again"):
        open_artefact(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "onnx/model.onnx", "config.json", "manifest.json"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtefactError, match=rf"{name} is missing"):
        open_artefact(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no model folder at .*nowhere"):
        open_artefact(tmp_path / "nowhere")


def test_newer_format_says_upgrade(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "format": FORMAT + 1}))
    with pytest.raises(ArtefactError, match=f"format {FORMAT + 1}.*pip install --upgrade"):
        open_artefact(folder)


@pytest.mark.parametrize("written", [None, True, "1", 0])
def test_folder_without_format_version_is_not_ours(folder: Path, written: object) -> None:
    (folder / "config.json").write_text(json.dumps({"format": written, "model_type": "bert"}))
    with pytest.raises(ArtefactError, match="no format version"):
        open_artefact(folder)


def test_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ArtefactError, match=r"'test'.*'embedder'"):
        open_artefact(folder, kind="embedder")


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_unreadable_json_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(ArtefactError, match=rf"{name} is damaged"):
        open_artefact(folder)


def test_manifest_cannot_lead_outside(folder: Path) -> None:
    (folder.parent / "secret").write_text("x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="outside its folder"):
        open_artefact(folder)


def test_manifest_must_vouch_for_the_config(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(ArtefactError, match="does not list"):
        open_artefact(folder)


def test_unlisted_file_cannot_be_asked_for(folder: Path) -> None:
    (folder / "extra.onnx").write_bytes(b"unknown")
    with pytest.raises(ArtefactError, match=r"'extra\.onnx'.*lists config\.json"):
        open_artefact(folder).file("extra.onnx")


def test_writing_again_replaces_every_file(folder: Path) -> None:
    write_artefact(folder, CONFIG, {"only": b"1"})
    assert names(folder) == ["config.json", "manifest.json", "only"]


def test_strangers_files_are_never_replaced(folder: Path) -> None:
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtefactError, match=r"thesis\.txt"):
        write_artefact(folder, CONFIG, {"only": b"1"})
    assert open_artefact(folder).read("onnx/model.onnx") == b"graph"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ArtefactError, match="is a file"):
        write_artefact(path, CONFIG, {})
    assert path.read_text() == "mine"


def test_failure_while_writing_leaves_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_artefact(folder).fingerprint

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("merger_plugins._artefact.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_artefact(folder, CONFIG, {"only": b"1"})
    assert open_artefact(folder).fingerprint == before
    assert names(folder.parent) == ["model"]


def test_failure_at_the_last_step_puts_the_old_folder_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = open_artefact(folder).fingerprint, Path.rename

    def fail_for_the_new_folder(path: Path, target: Path) -> Path:
        if path.name == "fresh":
            raise PermissionError("in use")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_folder)
    with pytest.raises(PermissionError, match="in use"):
        write_artefact(folder, CONFIG, {"only": b"1"})
    assert open_artefact(folder).fingerprint == before
    assert names(folder.parent) == ["model"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/../../up", "/etc/passwd", "a\\b", "C:x", "a//b", "config.json"]
)
def test_file_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a file"):
        write_artefact(tmp_path / "model", CONFIG, {name: b""})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "config", [{}, {"kind": 1}, {"kind": "x", "y": {1, 2}}, {"kind": "x", "y": float("nan")}]
)
def test_config_is_json_with_a_kind(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(InputError, match="config of an artefact"):
        write_artefact(tmp_path / "model", config, {})


ARRAYS = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "__metadata__"),
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    max_size=5,
)


@given(ARRAYS)
def test_tensors_round_trip(arrays: dict[str, np.ndarray]) -> None:
    loaded = load_tensors(dump_tensors(arrays))
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].flags.writeable
        np.testing.assert_array_equal(loaded[name], array)


@given(ARRAYS)
def test_safetensors_package_reads_ours_and_we_read_its(arrays: dict[str, np.ndarray]) -> None:
    theirs = pytest.importorskip("safetensors.numpy", reason="the reference implementation is not installed")
    read = theirs.load(dump_tensors(arrays))
    assert read.keys() == arrays.keys()
    back = load_tensors(theirs.save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        np.testing.assert_array_equal(back[name], array.reshape(back[name].shape))


def test_views_and_big_endian_arrays_are_stored_by_value() -> None:
    array = np.arange(12.0).reshape(3, 4)
    loaded = load_tensors(dump_tensors({"view": array.T[::2], "big": array.astype(">f4")}))
    np.testing.assert_array_equal(loaded["view"], array.T[::2])
    np.testing.assert_array_equal(loaded["big"], array)


def test_order_of_the_arrays_does_not_matter() -> None:
    a, b = np.zeros(3, np.float32), np.ones(2, np.int64)
    assert dump_tensors({"a": a, "b": b}) == dump_tensors({"b": b, "a": a})


def test_arrays_are_aligned_to_their_items() -> None:
    data = dump_tensors({"a": np.zeros(3, np.float32), "b": np.zeros(2), "c": np.zeros(1, np.int64)})
    size = int.from_bytes(data[:8], "little")
    for entry in json.loads(data[8 : 8 + size]).values():
        assert (8 + size + entry["data_offsets"][0]) % (4 if entry["dtype"] == "F32" else 8) == 0


@pytest.mark.parametrize("array", [np.zeros(2, np.float16), np.array(["text"]), np.array([{}], object)])
def test_other_types_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"'x'.*float32, float64 or int64"):
        dump_tensors({"x": array})


def tensor_file(header: object, body: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "header claims"),
        (b"\x02\x00\x00", "header claims"),
        ((2**63).to_bytes(8, "little") + b"{}", "header claims"),
        (tensor_file("{"), "no JSON object"),
        (tensor_file("[]"), "no JSON object"),
        (tensor_file("[" * 100_000), "no JSON object"),
        (tensor_file('{"x": 1, "x": 2}'), "twice"),
        (tensor_file({"x": 1}), "described by 1"),
        (tensor_file({"x": entry("F16")}, b"1234"), "'F16'"),
        (tensor_file({"x": entry(shape=[-1])}, b"1234"), r"\[-1\]"),
        (tensor_file({"x": entry(shape=[True])}, b"1234"), "True"),
        (tensor_file({"x": entry(shape="1")}, b"1234"), "'1'"),
        (tensor_file({"x": entry(offsets=[0])}, b"1234"), r"offsets \[0\]"),
        (tensor_file({"x": entry(offsets=[0, 8])}, b"1234"), "bytes 0 to 8"),
        (tensor_file({"x": entry(shape=[2])}, b"1234"), "cannot lie"),
        (tensor_file({"x": entry(shape=[0, 2**70], offsets=[0, 0])}), "has the shape"),
        (tensor_file({"x": entry(shape=[1] * 65)}, b"1234"), "has the shape"),
        (tensor_file({"x": entry(), "y": entry()}, b"1234"), "overlap"),
        (tensor_file({"x": entry(offsets=[4, 8])}, b"12345678"), "gap"),
        (tensor_file({"x": entry()}, b"12345"), "end at byte 4 of 5"),
        (pickle.dumps({"x": 1}), "header claims"),
    ],
)
def test_damaged_tensor_files_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ArtefactError, match=reason):
        load_tensors(data)


@given(st.binary(max_size=200).filter(lambda data: data[8:10] != b"{}"))
def test_random_bytes_are_no_tensors(data: bytes) -> None:
    with pytest.raises(ArtefactError, match="damaged"):
        load_tensors(data)
