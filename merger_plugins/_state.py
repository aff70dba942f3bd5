"""The saved form of a rolling merge: its open nodes, versioned and checked.

Layout: 4 bytes ``MRGS``, 1 byte version, 4 bytes little-endian length of a JSON header, the header, for each
level its vectors, masses and counts as raw little-endian arrays, and 16 bytes of SHA-256 over all before.
In a compact state, version 2, vectors are a float32 scale each, then integers of 12 bits, two in three bytes.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merger_plugins._nodes import Nodes
from merger_plugins.errors import StateError

VERSION, PLAIN = 2, 1
"""The newest version, of compact states, and that of plain ones, which earlier releases read."""

_MAGIC = b"MRGS"
_PREFIX = struct.Struct("<4sBI")
_DIGEST = 16
_REMEDY = "Build the rolling merge again from the stored chunk vectors."


@dataclass(frozen=True)
class State:
    """What a saved state holds: how many places, and (first index, nodes) of each level, lowest first."""

    places: int
    levels: list[tuple[int, Nodes]]


def dump(
    *,
    fingerprint: str,
    strategy: str,
    fanout: int,
    places: int,
    levels: Sequence[tuple[int, Nodes]],
    compact: bool = False,
) -> bytes:
    """Write a state; a compact one rounds the numbers of a vector to 1/2047 of its largest."""
    header = json.dumps(
        {
            "fingerprint": fingerprint,
            "strategy": strategy,
            "fanout": fanout,
            "places": places,
            "dimension": levels[0][1].vectors.shape[1] if levels else 0,
            "levels": [[first, len(nodes.masses)] for first, nodes in levels],
        }
    ).encode()
    parts = [_PREFIX.pack(_MAGIC, VERSION if compact else PLAIN, len(header)), header]
    for _, nodes in levels:
        parts += [
            _packed(nodes.vectors) if compact else nodes.vectors.astype("<f4").tobytes(),
            nodes.masses.astype("<f4").tobytes(),
            nodes.counts.astype("<i8").tobytes(),
        ]
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()[:_DIGEST]


def load(state: bytes, *, fingerprint: str, strategy: str, fanout: int) -> State:
    """Read a state that the merger with this fingerprint wrote.

    Raises:
        StateError: damaged, of a newer version, or of another merger, strategy or fan-out.
    """
    if len(state) < _PREFIX.size + _DIGEST or state[:4] != _MAGIC:
        raise StateError(f"These {len(state)} bytes are no state of a rolling merge. {_REMEDY}")
    _, version, length = _PREFIX.unpack_from(state)
    if version > VERSION:
        raise StateError(
            f"The state has version {version}, and this release reads up to {VERSION}. "
            "Run: pip install --upgrade merger-plugins"
        )
    if hashlib.sha256(state[:-_DIGEST]).digest()[:_DIGEST] != state[-_DIGEST:]:
        raise StateError(f"The state is damaged: its check sum does not fit. {_REMEDY}")
    header = json.loads(state[_PREFIX.size : _PREFIX.size + length])
    for name, expected in (("fingerprint", fingerprint), ("strategy", strategy), ("fanout", fanout)):
        if header[name] != expected:
            raise StateError(
                f"The state was made with {name} {header[name]!r}, and this merger has {expected!r}. "
                f"Resume it with the merger that made it. {_REMEDY}"
            )
    offset, width = _PREFIX.size + length, header["dimension"]
    levels = []
    for first, size in header["levels"]:
        vectors: NDArray[np.float32]
        if version == PLAIN:
            vectors = np.frombuffer(state, "<f4", size * width, offset).reshape(size, width)
            offset += vectors.nbytes
        else:
            vectors = _unpacked(state, offset, size, width)
            offset += _packed_bytes(size, width)
        masses: NDArray[np.float32] = np.frombuffer(state, "<f4", size, offset)
        offset += masses.nbytes
        counts: NDArray[np.int64] = np.frombuffer(state, "<i8", size, offset)
        offset += counts.nbytes
        levels.append((first, Nodes(vectors.copy(), masses.copy(), counts.copy())))
    return State(header["places"], levels)


_HALF = 2_048
"""A number from -2,047 to 2,047 is written with this added."""


def _packed(vectors: NDArray[np.float32]) -> bytes:
    scales = np.abs(vectors).max(axis=1, initial=0)[:, None] / np.float32(_HALF - 1)
    scales[scales == 0] = 1
    codes = (np.rint(vectors / scales) + _HALF).astype(np.uint16).ravel()
    first, second = np.pad(codes, (0, codes.size % 2)).reshape(-1, 2).T
    triples = np.stack([first & 255, first >> 8 | (second & 15) << 4, second >> 4], axis=1)
    return bytes(scales.astype("<f4").tobytes() + triples.astype(np.uint8).tobytes())


def _unpacked(state: bytes, offset: int, size: int, width: int) -> NDArray[np.float32]:
    scales = np.frombuffer(state, "<f4", size, offset)
    triples = np.frombuffer(
        state, np.uint8, _packed_bytes(size, width) - scales.nbytes, offset + scales.nbytes
    )
    low, middle, high = triples.reshape(-1, 3).astype(np.int16).T
    codes = np.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], axis=1).ravel()[: size * width]
    vectors: NDArray[np.float32] = (codes - _HALF).reshape(size, width) * scales[:, None]
    return vectors


def _packed_bytes(size: int, width: int) -> int:
    return 4 * size + 3 * -(-size * width // 2)
