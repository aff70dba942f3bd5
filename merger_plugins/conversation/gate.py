"""How much of its history a question takes."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from merger_plugins._artefact import dump_tensors, load_tensors, open_artefact, write_artefact
from merger_plugins._batching import as_vector, unit
from merger_plugins._types import Matrix, Vector, VectorLike
from merger_plugins.conversation.masses import check_half_life
from merger_plugins.errors import ArtefactError, DimensionError, InputError
from merger_plugins.mergers.loading import bundled

BUNDLED_GATE = "follow-up-all-MiniLM-L6-v2"
"""The gate that `load_gate` gives by default."""

USUAL_MASS = 10.0
"""Tokens of a question to which `HistoryGate.brevity` does nothing; shorter ones take more, longer less."""

_BRIEFEST, _LONGEST = 2.5, 40.0
_KIND, _TENSORS = "gate", "need.safetensors"
_RANGES = ("related", "covered", "trusted")


@dataclass(frozen=True, eq=False)
class QuestionNeed:
    """How likely a question needs its conversation, told from its vector q: the logistic function of
    qᵀ P q + w q + b.

    "How do I apply?" names no topic; "How do I apply for a passport?" does, and an embedding shows it.

    Attributes:
        weights: w, (d,) float32, for unit vectors.
        bias: b.
        embedder: name of the embedding model whose vectors it reads.
        products: P, (d, d) float32, symmetric; None for none.
    """

    weights: Vector
    bias: float
    embedder: str
    products: Matrix | None = None

    def __call__(self, question: VectorLike) -> float:
        """A probability, from a raw question vector (d,).

        Raises:
            DimensionError: it is of another embedding model.
        """
        vector = unit(as_vector(question, what="question")[None])[0]
        if vector.shape != self.weights.shape:
            raise DimensionError(
                f"question has dimension {len(vector)}, and this gate reads vectors of {self.embedder}, of "
                f"dimension {len(self.weights)}. Pass gate=HistoryGate(...), or embed with {self.embedder}."
            )
        exact = vector.astype(np.float64)
        logit = float(exact @ self.weights.astype(np.float64)) + self.bias
        if self.products is not None:
            logit += float(exact @ self.products.astype(np.float64) @ exact)
        return float(0.5 * (1 + np.tanh(logit / 2)))


@dataclass(frozen=True)
class HistoryGate:
    """How much of its history a question takes.

    With q the question, h the direction of its history and c = q·h, the merged question is q + w h, where w
    is `share`, reduced by up to four factors. A question that already says what its history is about (large
    c) stands alone: w falls from all of it to nothing as c goes through `covered`. A question far from its
    history (c near zero) may have changed the subject: w rises from `foreign` of it to all of it as c goes
    through `related`. The shortest questions leave most unsaid: w is scaled by (10 / tokens)^`brevity`. And
    where there is a `need`, w is scaled by the probability that the question needs its conversation.

    Where the history may be foreign, the merged question should not displace what the question finds by
    itself: `doubt` is taken from its scores while c is below `trusted`, and less and less of it as c goes
    through.

    `load_gate` gives the gate trained for all-MiniLM-L6-v2. The defaults here read nothing but cosines and
    token counts; their ranges were chosen for all-MiniLM-L6-v2 as well. Where unrelated texts have a cosine
    of 0.7, as in the E5 family, choose others.

    Attributes:
        half_life: age at which a turn counts half, in turns unless `merge_question` is given other ages.
        share: length of the history's part beside a question of length 1.
        foreign: part of `share` for a question far from its history.
        related, covered: (from, to), cosines.
        brevity: 0 where the question's tokens do not matter.
        shown: the cosine that a query may have with a passage already shown.
        doubt: a cosine, taken from the scores of the merged question; 0 for none.
        trusted: (from, to), cosines.
        need: from the question's vector; None for cosines alone.

    Raises:
        InputError: a value is out of range.
    """

    half_life: float = 3.0
    share: float = 0.6
    foreign: float = 0.5
    related: tuple[float, float] = (0.05, 0.15)
    covered: tuple[float, float] = (0.15, 0.7)
    brevity: float = 0.25
    shown: float = 0.4
    doubt: float = 0.0
    trusted: tuple[float, float] = (0.3, 0.35)
    need: QuestionNeed | None = None

    def __post_init__(self) -> None:
        check_half_life(self.half_life)
        for name in ("share", "foreign", "brevity", "shown", "doubt"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; it lies between 0 and 1.")
        for name in _RANGES:
            low, high = getattr(self, name)
            if not -1 <= low < high <= 1:
                raise InputError(f"{name} is {(low, high)}; it takes two cosines, the lower one first.")

    def weight(self, cosine: float, mass: float | None = None, question: VectorLike | None = None) -> float:
        """Length of the history's part beside a question of length 1.

        Args:
            cosine: of the question with its history.
            mass: the question's tokens; None where they are not known.
            question: (d,) its raw vector, for `need`.

        Raises:
            InputError: there is a `need`, and no question.
        """
        alone = (self.covered[1] - cosine) / (self.covered[1] - self.covered[0])
        near = (cosine - self.related[0]) / (self.related[1] - self.related[0])
        trust = self.foreign + (1 - self.foreign) * min(max(near, 0.0), 1.0)
        brevity = 1.0 if mass is None else (USUAL_MASS / min(max(mass, _BRIEFEST), _LONGEST)) ** self.brevity
        weight = self.share * min(max(alone, 0.0), 1.0) * trust * brevity
        if self.need is None:
            return weight
        if question is None:
            raise InputError("This gate judges the question's vector; pass it as question=.")
        return weight * self.need(question)

    def doubts(self, cosine: float) -> float:
        """What is taken from the merged question's scores, a cosine.

        Args:
            cosine: of the question with its history.
        """
        low, high = self.trusted
        return self.doubt * min(max((high - cosine) / (high - low), 0.0), 1.0)

    def save(self, folder: str | os.PathLike[str], *, card: str | None = None) -> Path:
        """Write a gate with a `need` as a model folder, which `load_gate` reads.

        Raises:
            InputError: it has no `need`, so its settings are all there is to keep.
            ArtefactError: the folder holds something else.
        """
        if self.need is None:
            raise InputError("This gate has no need; its settings say all, so there is nothing to save.")
        settings = {name: getattr(self, name) for name in _SETTINGS}
        if not np.isfinite(self.half_life):
            settings["half_life"] = None
        config = {
            "kind": _KIND,
            "embedder": self.need.embedder,
            "dimension": len(self.need.weights),
            "bias": self.need.bias,
            "settings": settings,
        }
        tensors = {"weights": self.need.weights.astype(np.float32)}
        if self.need.products is not None:
            tensors["products"] = self.need.products.astype(np.float32)
        files = {_TENSORS: dump_tensors(tensors)}
        return write_artefact(
            folder, config, files if card is None else {**files, "README.md": card.encode()}
        ).path


_SETTINGS = [field.name for field in fields(HistoryGate) if field.name != "need"]


def load_gate(name_or_path: str | os.PathLike[str] | None = None) -> HistoryGate:
    """The gate trained for an embedding model.

    Args:
        name_or_path: None for the bundled one, for all-MiniLM-L6-v2; the name of a bundled gate; or a folder
            that `HistoryGate.save` wrote.

    Raises:
        ArtefactError: nothing there, damaged, of a newer version, or no gate.
    """
    if name_or_path is None:
        return _bundled()
    folder = Path(name_or_path)
    if not folder.is_dir() and isinstance(name_or_path, str) and bundled(name_or_path).is_dir():
        folder = bundled(name_or_path)
    return _read(folder)


@lru_cache(maxsize=1)
def _bundled() -> HistoryGate:
    return _read(bundled(BUNDLED_GATE))


def _read(folder: Path) -> HistoryGate:
    artefact = open_artefact(folder, kind=_KIND)
    config = artefact.config
    tensors, dimension = load_tensors(artefact.read(_TENSORS)), config.get("dimension")
    weights, products = tensors.get("weights"), tensors.get("products")
    if weights is None or weights.shape != (dimension,) or not np.isfinite(weights).all():
        raise ArtefactError(f"{folder / _TENSORS} does not hold {dimension} weights. Get it again.")
    if products is not None:
        if products.shape != (dimension, dimension) or not np.isfinite(products).all():
            raise ArtefactError(
                f"{folder / _TENSORS} does not hold {dimension} rows of products. Get it again."
            )
        products = products.astype(np.float32)
    try:
        settings: dict[str, Any] = dict(config["settings"])
        if settings.get("half_life", 0) is None:
            settings["half_life"] = float("inf")
        for name in _RANGES:
            if name in settings:
                settings[name] = tuple(settings[name])
        need = QuestionNeed(
            weights.astype(np.float32), float(config["bias"]), str(config["embedder"]), products
        )
        return HistoryGate(**settings, need=need)
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise ArtefactError(
            f"{folder} holds settings that are no gate's: {error!r}. Get it again."
        ) from error
