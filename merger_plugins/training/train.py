"""A whole training: texts in, a model folder and a table out.

::

    OUTPUT/config.json          the settings; another training refuses the folder
    OUTPUT/data/                embedded texts, unless the settings share a folder of them
    OUTPUT/1-self_supervised/   of each stage: checkpoints while it runs, then final/ and log.json
    OUTPUT/tensorboard/         curves of every stage, and OUTPUT/curves.png
    OUTPUT/checkpoint/          the finished network, a Hugging Face folder
    OUTPUT/model/               the same as a model folder, which `load_merger` reads
    OUTPUT/results.json         the final table
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merger_plugins._artefact import FORMAT
from merger_plugins.errors import TrainingError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.mergers.loading import load_merger
from merger_plugins.mergers.mean import MeanMerger
from merger_plugins.mergers.transformers import TransformersMerger
from merger_plugins.training.checkpoint import without_bars
from merger_plugins.training.config import STAGES, TrainingConfig
from merger_plugins.training.curves import draw_curves
from merger_plugins.training.data.bases import BUNDLED
from merger_plugins.training.data.batches import Batches
from merger_plugins.training.data.corpus import Corpus
from merger_plugins.training.data.shards import no_space
from merger_plugins.training.evaluation import Figures, calibrated_on, evaluate
from merger_plugins.training.network import Synthesizer
from merger_plugins.training.preparing import Prepared, Report, prepare, silent
from merger_plugins.training.stages import load_weights, run_stage

CONFIG, CHECKPOINT, MODEL, RESULTS, CURVES = (
    "config.json",
    "checkpoint",
    "model",
    "results.json",
    "curves.png",
)
SYNTHESIZER = "synthesizer"

_FREE = ("output", "threads", "texts_at_once", "shards", "bf16")
"""Settings that a training may be continued with in another form: they change no result that is sought."""


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        folder: of the run.
        model: of the merger; `load_merger` reads it.
        figures: the final table: each merger's on the held-out texts.
    """

    folder: Path
    model: Path
    figures: dict[str, Figures]


def train(config: TrainingConfig, *, embedder: Any = None, report: Report = silent) -> Trained:
    """Train a synthesizer, or go on with a training that was interrupted.

    Args:
        config: the settings.
        embedder: an embedding object in place of the one that the settings name.
        report: is told what is being done.

    Raises:
        InputError: a setting or the texts cannot be used.
        DocumentError: a text cannot be read.
        TrainingError: the folder belongs to another training, the loss is not a number, or no space is left.
    """
    check_folder(config)
    return finished(config) or train_prepared(prepare(config, embedder), report=report)


def check_folder(config: TrainingConfig) -> None:
    """Refuse a folder that holds something else.

    Raises:
        TrainingError: a training with other settings, or other files.
    """
    folder = Path(config.output)
    path = folder / CONFIG
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TrainingError(f"{path} is damaged: {error}. Train into another folder.") from error
        differing = _differences(before, json.loads(config.to_json()))
        if differing:
            raise TrainingError(
                f"{folder} holds a training with other settings: {'; '.join(differing)}. Give the same "
                "settings to go on with it, or train into another folder."
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TrainingError(f"{folder} holds files of something else. Train into another folder.")


def finished(config: TrainingConfig) -> Trained | None:
    """What the run's folder holds, where the training is finished.

    Raises:
        TrainingError: its table is damaged.
    """
    folder = Path(config.output)
    if not (folder / RESULTS).is_file():
        return None
    try:
        rows = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["figures"]
        figures = {name: Figures.from_dict(row) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{folder / RESULTS} is damaged ({error!r}). Delete it: the same command makes it again."
        ) from error
    return Trained(folder, folder / MODEL, figures)


def train_prepared(prepared: Prepared, *, report: Report = silent) -> Trained:
    """As `train`, of what `prepare` gave; after `check_folder`, and where `finished` gives None."""
    config = prepared.config
    folder = Path(config.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(config.to_json(), encoding="utf-8")
    except OSError as error:
        raise no_space(error, folder) from error
    if config.threads:
        torch.set_num_threads(config.threads)
    training, held_out = prepared.corpora(report)
    with without_bars():
        return _trained(prepared, training, held_out, report)


def _trained(prepared: Prepared, training: Corpus, held_out: Corpus, report: Report) -> Trained:
    config, folder = prepared.config, Path(prepared.config.output)
    network, stages = train_stages(prepared, training, report)
    try:
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
        network.eval().save_pretrained(folder / CHECKPOINT)
        model = TransformersMerger(folder / CHECKPOINT).export(folder / MODEL, embedder=prepared.base.name)
        figures = evaluate(table_mergers(prepared, held_out, load_merger(model)), held_out, seed=config.seed)
        _write_results(prepared, network.num_parameters(), training, held_out, figures)
        draw_curves(stages, folder / CURVES)
    except OSError as error:
        raise no_space(error, folder) from error
    return Trained(folder, model, figures)


def train_stages(
    prepared: Prepared, corpus: Corpus, report: Report = silent
) -> tuple[Synthesizer, dict[str, Path]]:
    """Go through the stages; returns the network and each stage's folder by its name.

    Raises:
        InputError: the texts have nothing for a stage.
        TrainingError: as `run_stage`.
    """
    config = prepared.config
    network = fresh_network(prepared)
    stages: dict[str, Path] = {}
    for name in config.stages:
        stages[name] = Path(config.output) / f"{STAGES.index(name) + 1}-{name}"
        batches = stage_batches(prepared, corpus, name)
        run_stage(network, batches, stages[name], seed=config.seed, bf16=config.bf16, report=report)
    return network, stages


def stage_batches(prepared: Prepared, corpus: Corpus, name: str) -> Batches:
    """The batches of a stage.

    Raises:
        InputError: the texts have nothing for it.
    """
    config = prepared.config
    return Batches(
        corpus,
        name,
        config.stage(name),
        shares=prepared.chosen.shares,
        seed=config.seed,
        window=prepared.network.window,
    )


def fresh_network(prepared: Prepared) -> Synthesizer:
    """The network before its first stage: new weights from the seed, or those of ``start``.

    Raises:
        TrainingError: those are of another architecture.
    """
    config = prepared.config
    torch.manual_seed(config.seed)
    network = Synthesizer(prepared.network)
    if config.start:
        load_weights(network, Path(config.start))
    return network


def table_mergers(
    prepared: Prepared, held_out: Corpus, synthesizer: SequenceMerger | None
) -> dict[str, SequenceMerger]:
    """What the final table compares: the mean, the calibrated merger, and what was trained, if it was yet."""
    bundled = prepared.base.name == BUNDLED
    closed = load_merger() if bundled else CalibratedMerger(dimension=prepared.base.dimension)
    mergers = {"mean": MeanMerger(), "calibrated": calibrated_on(closed, held_out)}
    return mergers | ({SYNTHESIZER: synthesizer} if synthesizer else {})


def _write_results(
    prepared: Prepared, parameters: int, training: Corpus, held_out: Corpus, figures: Mapping[str, Figures]
) -> None:
    results = {
        "format": FORMAT,
        "embedder": {"name": prepared.base.name, "dimension": prepared.base.dimension},
        "parameters": parameters,
        "training": {"articles": len(training), "chunks": len(training.chunks)},
        "held_out": {
            "articles": len(held_out),
            "chunks": len(held_out.chunks),
            "windows": len(held_out.windows),
            "queries": len(held_out.queries),
        },
        "figures": {name: found.to_dict() for name, found in figures.items()},
    }
    path = Path(prepared.config.output) / RESULTS
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two settings, by name, both values stated."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in {**before, **now}
            if name or key not in _FREE
            for difference in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == now else [f"{name} was {before!r} and is now {now!r}"]
