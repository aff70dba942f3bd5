"""Rivals by what somebody writes on a command line: a name, a model folder, or an import path."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from merger_plugins._batching import unit
from merger_plugins._importing import imported
from merger_plugins.errors import DimensionError, InputError, MergerError
from merger_plugins.finesse.embedding import Embeddings
from merger_plugins.finesse.rivals import TRUNCATION, Embedded, Merging, Rival, rivals
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.mergers.loading import load_merger

T = TypeVar("T")

_ALIKE = 1e-3
"""Differences of unit vectors' numbers that rounding explains, in float16 too."""

_HOW = (
    "Expected is a SequenceMerger, a Rival, or a function from a list of sequences to a merger; for a "
    "formula of your own, FunctionMerger(name, function) of merger_plugins.finesse.pooling."
)


@dataclass(frozen=True)
class Entry:
    """A rival of a run.

    Attributes:
        rival: what is measured.
        fingerprint: tells its merger from others, on a sample that is always the same, or its embedder; None
            for a rival that has neither of its own.
        output: a hash of what its merger makes of that sample, as somebody's own merger may change and keep
            its fingerprint; None for a rival that does not merge.
        asked: whether the user named it.
    """

    rival: Rival
    fingerprint: str | None
    output: str | None
    asked: bool


def rival_named(name: str) -> Rival:
    """A rival.

    Args:
        name: of a known rival; ``module:attribute``, a `SequenceMerger`, a `Rival`, or a function that makes
            a merger for a list of sequences; otherwise what `load_merger` takes. A calibrated merger without
            statistics of its own is calibrated on each collection; any other one is measured as it is.

    Raises:
        InputError: an import path without such an object, or its code fails.
        ArtefactError: no such merger.
    """
    known = {rival.name: rival for rival in rivals()}
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if colon and attribute and not Path(name).exists():
        return _rival(attribute, imported(module, attribute, what="merger"))
    return _rival(Path(name).name, load_merger(name))


def native_named(name: str, base: Embeddings) -> Rival:
    """An embedder of whole texts as a rival.

    Args:
        name: as `embedder_named` takes it.
        base: the base embedder, beside whose vectors its own are kept.

    Returns:
        The rival "truncation" where it is the base embedder itself.

    Raises:
        InputError: as `Embeddings.named`.
        MissingExtraError: as `embedder_named`.
    """
    found = Embeddings.named(name, base.folder)
    if found.fingerprint == base.fingerprint:
        return rivals([TRUNCATION])[0]
    reads = "context unknown" if found.context is None else f"{found.context:,} tokens"
    return Embedded(f"{found.name}, native", f"{found.name} on the text itself ({reads})", found)


def entry(rival: Rival, dimension: int, *, asked: bool) -> Entry:
    """A rival with its fingerprint.

    Args:
        rival: any.
        dimension: of the vectors to come.
        asked: whether the user named it.

    Raises:
        DimensionError: its merger has another dimension; otherwise as `SequenceMerger.merge`.
        InputError: what it makes is no merger, its code fails, or `merge` is not what the rest of it does.
    """
    rng = np.random.default_rng(0)
    sample = [unit(rng.standard_normal((4, dimension)).astype(np.float32)) for _ in range(3)]
    if rival.dimension not in (dimension, None):
        raise DimensionError(_other_dimension(rival, rival.dimension, dimension))
    merger = _tried(rival.name, lambda: rival.merger(sample))
    if merger is not None and not isinstance(merger, SequenceMerger):
        raise InputError(
            f"{rival.name!r} makes {_kind(merger)} of a list of sequences, and no merger. {_HOW}"
        )
    if merger is not None and merger.dimension not in (dimension, None):
        raise DimensionError(_other_dimension(rival, merger.dimension, dimension))
    if merger is None:
        own = rival.embeddings if isinstance(rival, Embedded) else None
        return Entry(rival, None if own is None else own.fingerprint, None, asked)
    merged = _tried(rival.name, lambda: merger.merge_many(sample))
    alone = _tried(rival.name, lambda: np.stack([merger.merge(sequence) for sequence in sample]))
    if alone.shape != merged.shape or np.abs(alone - merged).max() > _ALIKE:
        raise InputError(
            f"merge and merge_many of {rival.name!r} give different vectors. Both, and the tree, are made of "
            f"the methods that SequenceMerger leaves open; replace those, not merge. {_HOW}"
        )
    merged = np.round(merged, 4) + 0.0  # no minus before a zero
    return Entry(rival, merger.fingerprint, hashlib.sha256(merged.tobytes()).hexdigest()[:16], asked)


def _other_dimension(rival: Rival, own: int | None, dimension: int) -> str:
    return (
        f"The merger {rival.name!r} works in dimension {own}, and the embedder gives {dimension}. "
        "Leave it out, or name a merger for this embedder."
    )


def _tried(name: str, call: Callable[[], T]) -> T:
    """What somebody's own code gives; what it raises as an error that names it."""
    try:
        return call()
    except MergerError:
        raise
    except Exception as error:
        raise InputError(f"The merger {name!r} fails: {error!r}. {_HOW}") from error


def _kind(found: object) -> str:
    return f"an array of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__


def _rival(name: str, found: Any) -> Rival:
    if inspect.isclass(found) and issubclass(found, SequenceMerger | Rival):
        found = _tried(name, found)
    if isinstance(found, Rival):
        return found
    if isinstance(found, CalibratedMerger) and found.statistics is None:
        return Merging(name, repr(found), found.calibrated, dimension=found.dimension)
    if isinstance(found, SequenceMerger):
        return Merging(name, repr(found), lambda _sample: found, dimension=found.dimension)
    if callable(found) and not inspect.isclass(found):
        about = (inspect.getdoc(found) or "a function's merger").partition("\n")[0]
        return Merging(name, about, found)
    what = f"the class {found.__name__}" if inspect.isclass(found) else f"of the type {type(found).__name__}"
    raise InputError(f"{name} is {what}. {_HOW}")
