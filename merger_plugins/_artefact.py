"""Model folders: written whole or not at all, verified when opened, told apart by a fingerprint.

::

    config.json      {"format": 1, "kind": "...", ...}: what this is
    manifest.json    {"files": {name: sha256}}: config.json and every file below
    anything else    weights (safetensors, ONNX), tokenizer.json, ...
    README.md        the model card; not listed, so editing it changes no fingerprint

Nothing here is ever unpickled.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

from merger_plugins.errors import ArtefactError, InputError

FORMAT = 1
"""The version of the folder layout that this package writes, and the newest that it reads."""

CONFIG, MANIFEST, CARD = "config.json", "manifest.json", "README.md"
_UNLISTED = frozenset({MANIFEST, CARD, ".gitattributes"})
_REMEDY = "Download or export it again."


@dataclass(frozen=True)
class Artefact:
    """A model folder whose files are those that its writer wrote.

    Attributes:
        path: the folder.
        config: the contents of config.json.
        fingerprint: 16 hexadecimal digits over the config and every listed file.
        files: the listed files, config.json included, sorted.
    """

    path: Path
    config: dict[str, Any]
    fingerprint: str
    files: tuple[str, ...]

    def file(self, name: str) -> Path:
        """The path of a listed file.

        Raises:
            ArtefactError: the manifest does not list it, so nobody vouches for what it holds.
        """
        if name not in self.files:
            raise ArtefactError(
                f"{self.path / MANIFEST} does not list {name!r}; it lists {', '.join(self.files)}. {_REMEDY}"
            )
        return self.path / name

    def read(self, name: str) -> bytes:
        """The contents of a listed file; raises `ArtefactError` where it is not listed."""
        return self.file(name).read_bytes()


def fingerprint_of(config: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """The fingerprint that `write_artefact` would give, without writing: 16 hexadecimal digits.

    Raises:
        InputError: as `write_artefact`.
    """
    return _fingerprint(_hashes(_contents(config, files)))


def write_artefact(
    folder: str | os.PathLike[str], config: Mapping[str, Any], files: Mapping[str, bytes]
) -> Artefact:
    """Write a model folder, replacing the artefact that was there; a crash leaves no half of one.

    Args:
        folder: where; its parents are made.
        config: JSON values with at least ``kind``; ``format`` is added.
        files: contents by name, with forward slashes below the folder. ``README.md`` is written, not listed.

    Raises:
        InputError: a config that is not JSON or lacks ``kind``, or a file name that leaves the folder.
        ArtefactError: the folder exists and holds files that no artefact put there.
    """
    target = Path(folder)
    contents = _contents(config, files)
    contents[MANIFEST] = _to_json({"files": _hashes(contents)})
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        fresh, previous = Path(scratch, "fresh"), Path(scratch, "previous")
        fresh.mkdir()
        for name, content in contents.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
        if target.exists():
            target.rename(previous)
        try:
            fresh.rename(target)
        except OSError:
            if previous.exists():
                previous.rename(target)
            raise
    return open_artefact(target)


def open_artefact(folder: str | os.PathLike[str], *, kind: str | None = None) -> Artefact:
    """Open a model folder after comparing every file with its hash.

    Args:
        folder: a folder that `write_artefact` wrote.
        kind: the only kind that the caller can use; None for any.

    Raises:
        ArtefactError: the folder or a file is missing, damaged, of a newer format or of another kind;
            the message names the file and the remedy.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ArtefactError(f"There is no model folder at {path}. Check the path, or download it.")
    config = read_json(path / CONFIG)
    written = config.get("format")
    if not isinstance(written, int) or isinstance(written, bool) or written < 1:
        raise ArtefactError(
            f"{path / CONFIG} states no format version, so {path} is no model folder of ours."
        )
    if written > FORMAT:
        raise ArtefactError(
            f"{path} has format {written}, and this version reads up to {FORMAT}. "
            "Run: pip install --upgrade merger-plugins"
        )
    if kind is not None and config.get("kind") != kind:
        raise ArtefactError(f"{path} holds the kind {config.get('kind')!r}, where {kind!r} was expected.")
    listed = read_json(path / MANIFEST).get("files")
    if not isinstance(listed, dict) or CONFIG not in listed:
        raise ArtefactError(f"{path / MANIFEST} does not list the files of its folder. {_REMEDY}")
    for name, expected in listed.items():
        if not _is_inside(name):
            raise ArtefactError(
                f"{path / MANIFEST} lists {name!r}, which is outside its folder. Do not use it."
            )
        _verify(path / name, expected)
    return Artefact(path, config, _fingerprint(listed), tuple(sorted(listed)))


def _contents(config: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, bytes]:
    if not isinstance(config.get("kind"), str):
        raise InputError(f"The config of an artefact needs a 'kind', a string; it has {sorted(config)}.")
    for name in files:
        if not _is_inside(name) or name in (CONFIG, MANIFEST):
            raise InputError(f"{name!r} cannot name a file of an artefact: choose a relative name inside it.")
    try:
        return {CONFIG: _to_json({**config, "format": FORMAT}), **files}
    except (TypeError, ValueError) as error:
        raise InputError(f"The config of an artefact must be JSON: {error}.") from error


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and str(path) == name
        and not path.is_absolute()
        and ".." not in path.parts
        and not any(sign in name for sign in "\\:\0")
    )


def _hashes(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {
        name: hashlib.sha256(data).hexdigest() for name, data in contents.items() if name not in _UNLISTED
    }


def _fingerprint(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{name}\0{hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path, remedy: str = _REMEDY) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        ArtefactError: it is missing, damaged or holds something else; with the remedy.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing. {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is damaged: {error}. {remedy}") from error
    if not isinstance(value, dict):
        raise ArtefactError(f"{path} is damaged: it holds no JSON object. {remedy}")
    return value


def _verify(path: Path, expected: object) -> None:
    try:
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ArtefactError(f"{path} is missing. {_REMEDY}") from error
    if found != expected:
        raise ArtefactError(
            f"{path} is damaged: its SHA-256 is {found}, where {expected} was written. {_REMEDY}"
        )


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtefactError(
            f"{target} is a file, where a model folder is to be written. Choose another path."
        )
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    listed: set[str] = set()
    if MANIFEST in present:
        files = read_json(target / MANIFEST).get("files")
        listed = set(files) if isinstance(files, dict) else set()
    foreign = sorted(present - listed - _UNLISTED)
    if foreign:
        raise ArtefactError(
            f"{target} holds files that are no part of a model folder: {', '.join(foreign[:5])}. "
            "Choose another folder, or move them away."
        )


# The safetensors layout (huggingface/safetensors, format description in its README, 2022): eight bytes with
# the length of the header, a JSON header {name: {dtype, shape, data_offsets}}, the arrays without gaps.

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000


def dump_tensors(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as the bytes of a safetensors file; equal arrays give equal bytes.

    Args:
        tensors: float32, float64 or int64 arrays of any shape by name.

    Raises:
        InputError: another type of array, or a reserved name.
    """
    header: dict[str, dict[str, Any]] = {}
    parts: list[bytes] = []
    offset = 0
    # The widest types first, so that every array starts at a multiple of its item's size.
    for name, array in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _CODES or name == "__metadata__":
            raise InputError(
                f"The array {name!r} of {array.dtype} cannot be stored: float32, float64 or int64 can."
            )
        data = array.astype(dtype).tobytes()
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def load_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file, as copies that may be written to.

    Args:
        data: the whole file; only float32, float64 and int64 arrays are read.

    Raises:
        ArtefactError: the layout is violated anywhere, or an array has another type.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(len(data) - 8, _MAX_HEADER):
        _refuse(f"its header claims {size} bytes of {len(data)}")
    try:
        header = json.loads(data[8 : 8 + size], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _refuse(f"its header is no JSON object: {error}")
    if not isinstance(header, dict):
        _refuse("its header is no JSON object")
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + size :]
    arrays: dict[str, NDArray[Any]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, (start, stop) = _entry(name, entry, len(body))
        try:
            array = np.frombuffer(body[start:stop], dtype).reshape(shape)
        except (ValueError, OverflowError) as error:
            _refuse(f"{name!r} has the shape {shape}: {error}")
        arrays[name] = array.astype(dtype.newbyteorder("="))
        spans.append((start, stop))
    expected = 0
    for start, stop in sorted(spans):
        if start != expected:
            _refuse(f"its arrays overlap or leave a gap at byte {expected}")
        expected = stop
    if expected != len(body):
        _refuse(f"its arrays end at byte {expected} of {len(body)}")
    return arrays


def _entry(name: str, entry: object, available: int) -> tuple[np.dtype[Any], list[int], tuple[int, int]]:
    if not isinstance(entry, dict):
        _refuse(f"{name!r} is described by {entry!r}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    dtype = _DTYPES.get(str(entry.get("dtype")))
    if dtype is None:
        _refuse(f"{name!r} has the type {entry.get('dtype')!r}, and only {', '.join(_DTYPES)} are read")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        _refuse(f"{name!r} has the shape {shape!r} and the offsets {offsets!r}")
    start, stop = offsets
    if not start <= stop <= available or stop - start != math.prod(shape) * dtype.itemsize:
        _refuse(f"{name!r} of shape {shape} and type {entry['dtype']} cannot lie in bytes {start} to {stop}")
    return dtype, shape, (start, stop)


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _refuse(reason: str) -> NoReturn:
    raise ArtefactError(f"The safetensors data is damaged: {reason}. {_REMEDY}")
