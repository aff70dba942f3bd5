"""What a training will take, measured on a sample of its own texts before it starts."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from merger_plugins._types import Matrix, Vector
from merger_plugins.embedders import MiniLMEmbedder
from merger_plugins.errors import TrainingError
from merger_plugins.training.data.articles import Article
from merger_plugins.training.data.bases import Base
from merger_plugins.training.data.corpus import Corpus
from merger_plugins.training.data.shards import ShardWriter, Texts, texts_of
from merger_plugins.training.preparing import Prepared
from merger_plugins.training.stages import set_ppe, stage_loss, to_tensors
from merger_plugins.training.train import fresh_network, stage_batches

_SAMPLE = 24
_TIMED_TEXTS = 32
_TIMED_STEPS = 2
_BYTES_OF_A_WEIGHT = 12  # a checkpoint has the weight and two moments of it


@dataclass(frozen=True)
class Estimate:
    """What is ahead.

    Attributes:
        articles: to embed; those in finished shards are left out.
        texts: to embed: chunks, windows, trees and queries.
        tokens: in them.
        calls: of the embedder.
        embedding_seconds: all of that.
        steps: of each stage.
        stage_seconds: of each stage, on this machine as busy as it is now.
        disk: bytes of shards and checkpoints.
        parameters: of the network.
    """

    articles: int
    texts: int
    tokens: int
    calls: int
    embedding_seconds: float
    steps: dict[str, int]
    stage_seconds: dict[str, float]
    disk: int
    parameters: int

    @property
    def seconds(self) -> float:
        """From beginning to end, but for the export."""
        return self.embedding_seconds + sum(self.stage_seconds.values())


def estimate(prepared: Prepared) -> Estimate:
    """Embed a few texts of a sample and make a few steps on random vectors, then extrapolate.

    Raises:
        InputError: no text of the sample has two chunks.
    """
    config, base, writer = prepared.config, prepared.base, prepared.writer
    chosen = prepared.chosen
    groups = [*writer.groups(chosen.held_out), *writer.groups(chosen.training)]
    waiting = [article for group in groups if not writer.path(group).exists() for article in group]
    sample = (waiting or chosen.training)[:_SAMPLE]
    texts = texts_of(sample, base, config.data.shards, config.seed)
    scale = len(waiting) / len(sample)
    characters = sum(map(len, _all(texts)))
    tokens = sum(map(base.count_tokens, _all(texts)))
    parameters = fresh_network(prepared).num_parameters()
    vectors = scale * texts.count
    return Estimate(
        articles=len(waiting),
        texts=round(vectors),
        tokens=round(scale * tokens),
        calls=_calls(texts, base, scale, len(groups)),
        embedding_seconds=scale * characters * _seconds_of_a_character(texts, base) if waiting else 0.0,
        steps={name: config.stage(name).steps for name in config.stages},
        stage_seconds=_stage_seconds(prepared, sample),
        disk=round(2 * vectors * base.dimension) + 3 * _BYTES_OF_A_WEIGHT * parameters,
        parameters=parameters,
    )


def check_space(expected: Estimate, folder: Path) -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        TrainingError: the file system of the folder has less room than the estimate says.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < expected.disk:
        raise TrainingError(
            f"The training needs about {expected.disk / 1e6:,.0f} MB, and {there} has {free / 1e6:,.0f} MB "
            "left. Make room, or choose another output and shards."
        )


def _all(texts: Texts) -> list[str]:
    return [*texts.chunks, *texts.windows, *set(texts.leaves), *texts.nodes, *texts.queries]


def _calls(texts: Texts, base: Base, scale: float, shards: int) -> int:
    """Each kind of text has calls of its own in each shard."""
    kinds = [len(texts.chunks), len(texts.windows), len(set(texts.leaves)), len(texts.nodes)]
    if isinstance(base.embedder, MiniLMEmbedder):
        kinds.append(len(texts.queries))
        queries = 0
    else:
        queries = round(scale * len(texts.queries))
    files = max(round(shards * min(scale, 1)), 1)
    return queries + files * sum(math.ceil(scale * kind / files / base.texts_at_once) for kind in kinds)


def _seconds_of_a_character(texts: Texts, base: Base) -> float:
    timed = [*texts.chunks[:_TIMED_TEXTS], *texts.windows[: _TIMED_TEXTS // 8]]
    base.embed(timed[:1])  # what loading takes is no part of it
    began = time.perf_counter()
    base.embed(timed)
    return (time.perf_counter() - began) / max(sum(map(len, timed)), 1)


class _Noise:
    """Random vectors: a step takes as long with them as with those of a model."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._rng = np.random.default_rng(0)

    def embed_documents(self, texts: Sequence[str]) -> Matrix:
        return self._rng.standard_normal((len(texts), self._dimension)).astype(np.float32)

    def embed_query(self, _: str) -> Vector:
        vector: Vector = self.embed_documents([""])[0]
        return vector


def _stage_seconds(prepared: Prepared, sample: Sequence[Article]) -> dict[str, float]:
    config, base = prepared.config, prepared.base
    noise = Base("noise", _Noise(base.dimension), base.room, base.count_tokens, base.exact)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = {}
    with tempfile.TemporaryDirectory() as scratch:
        writer = ShardWriter(Path(scratch), noise, config.data.shards, config.seed)
        corpus = Corpus.load(writer.write(sample))
    for name in config.stages:
        stage = config.stage(name)
        network = fresh_network(prepared).to(device)
        set_ppe(network, stage)
        batches = stage_batches(prepared, corpus, name)
        taken = []
        for step in range(_TIMED_STEPS + 1):
            began = time.perf_counter()
            batch = {key: tensor.to(device) for key, tensor in to_tensors(batches.batch(step)).items()}
            loss, _ = stage_loss(network, stage, batch)
            loss.backward()
            loss.item()  # a GPU is waited for
            taken.append(time.perf_counter() - began)
        seconds[name] = stage.steps * sum(taken[1:]) / _TIMED_STEPS
    return seconds
