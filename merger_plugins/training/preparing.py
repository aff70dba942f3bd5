"""From a configuration to what is trained on: the embedder, the texts, their shards."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merger_plugins.errors import InputError
from merger_plugins.training.config import TrainingConfig
from merger_plugins.training.data.articles import Chosen, choose_articles, read_articles
from merger_plugins.training.data.bases import Base, open_base
from merger_plugins.training.data.corpus import Corpus
from merger_plugins.training.data.shards import ShardWriter
from merger_plugins.training.network import SynthesizerConfig

Report = Callable[[str, int, int, dict[str, float]], None]
"""Is told what is being done, how much of it is done, how much there is, and figures such as the loss."""

EMBEDDING = "embedding"
"""What a `Report` is told while shards are written, counted in articles; stages have their own names."""

_WIDTH_OF_A_HEAD = 64


def silent(doing: str, done: int, total: int, figures: dict[str, float]) -> None:
    """A `Report` that says nothing."""


@dataclass(frozen=True)
class Prepared:
    """What a training works on.

    Attributes:
        config: its settings.
        base: the embedder.
        chosen: the texts.
        network: what the network is made of.
    """

    config: TrainingConfig
    base: Base
    chosen: Chosen
    network: SynthesizerConfig

    @property
    def writer(self) -> ShardWriter:
        """Writes the shards."""
        folder = Path(self.config.shards) if self.config.shards else Path(self.config.output) / "data"
        return ShardWriter(folder, self.base, self.config.data.shards, self.config.seed)

    def corpora(self, report: Report = silent) -> tuple[Corpus, Corpus]:
        """The embedded texts: those to train on, and those held out. Embeds what was not embedded before.

        Raises:
            InputError: texts are too short, or the embedder's vectors cannot be used.
            TrainingError: no space is left, or a shard is damaged.
        """
        total = len(self.chosen.training) + len(self.chosen.held_out)
        done = 0

        def advance(articles: int) -> None:
            nonlocal done
            done += articles
            report(EMBEDDING, done, total, {})

        writer = self.writer
        held_out = writer.write(self.chosen.held_out, advance)
        training = writer.write(self.chosen.training, advance)
        return Corpus.load(training), Corpus.load(held_out)


def prepare(config: TrainingConfig, embedder: Any = None) -> Prepared:
    """Open the embedder, read the texts, and look whether the settings can be used; embeds one text.

    Args:
        config: the settings.
        embedder: an embedding object in place of the one that the settings name.

    Raises:
        InputError: a setting cannot be used, or there are too few texts.
        DocumentError: a source cannot be read.
    """
    base = open_base(
        config.embedder if embedder is None else embedder,
        max_tokens=config.max_tokens,
        texts_at_once=config.texts_at_once,
    )
    network = network_config(config, base.dimension)
    chosen = choose_articles(
        read_articles(config.texts),
        seed=config.seed,
        max_articles=config.data.max_articles,
        balance=config.data.balance,
        held_out=config.data.held_out,
        min_characters=config.data.min_characters,
    )
    return Prepared(config, base, chosen, network)


def network_config(config: TrainingConfig, dimension: int) -> SynthesizerConfig:
    """The network of these settings for vectors of this dimension, with heads of about 64 unless it says.

    Raises:
        InputError: the settings fit no network, or another dimension.
    """
    settings = dict(config.network)
    name = settings.pop("named", "small")
    stated = settings.setdefault("d_model", dimension)
    if stated != dimension:
        raise InputError(
            f"network.d_model is {stated}, and the embedder's vectors have {dimension} dimensions."
        )
    settings.setdefault("ppe_dim", min(16, dimension - dimension % 2))
    if name == "small" and not {"nhead", "nhead_dims", "layer_dims"} & set(settings):
        settings["nhead"] = _heads(dimension)
    known = set(inspect.signature(SynthesizerConfig).parameters) - {"kwargs"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise InputError(f"There is no setting network.{unknown[0]}. Known are: {', '.join(sorted(known))}.")
    try:
        return SynthesizerConfig.named(name, **settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"network fits no synthesizer: {error}") from error


def _heads(dimension: int) -> int:
    divisors = [heads for heads in range(1, dimension + 1) if dimension % heads == 0]
    return min(divisors, key=lambda heads: abs(dimension / heads - _WIDTH_OF_A_HEAD))
