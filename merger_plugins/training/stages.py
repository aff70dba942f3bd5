"""One stage of a training: Hugging Face's Trainer over the batches and objectives of that stage."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from merger_plugins.errors import TrainingError
from merger_plugins.training import losses
from merger_plugins.training.config import FiveTwelveToOne, SelfSupervised, Stage, TenToOne
from merger_plugins.training.data.batches import Batch, Batches
from merger_plugins.training.data.shards import no_space
from merger_plugins.training.network import Synthesizer
from merger_plugins.training.preparing import Report, silent

FINAL, LOG = "final", "log.json"
"""In a stage's folder: its weights when it is finished, and what was logged on the way."""

_STATE = "trainer_state.json"  # written last: a checkpoint that has it is whole
_LOGS = 100


def run_stage(
    network: Synthesizer,
    batches: Batches,
    folder: Path,
    *,
    seed: int,
    bf16: bool | None = None,
    report: Report = silent,
) -> Synthesizer:
    """Train through one stage, from its last checkpoint on if it has one; nothing where it is finished.

    Args:
        network: what the stage begins with; trained in place.
        batches: of the stage.
        folder: of its checkpoints, its weights and its log.
        seed: of dropout.
        bf16: 16-bit arithmetic; None for on a GPU that has it.
        report: is told each step and its loss.

    Returns:
        The trained network, on the CPU.

    Raises:
        TrainingError: the loss or its gradient is not a number, no space is left, or the folder's weights are
            of another network.
    """
    stage = batches.stage
    set_ppe(network, stage)
    if (folder / FINAL).is_dir():
        load_weights(network, folder / FINAL)
        return network
    trainer = _StageTrainer(network, batches, _arguments(stage, folder, seed, bf16), report)
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        trainer.finish(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, TrainingError):
            raise
        _remove_torn(folder)
        if isinstance(error, OSError):
            raise no_space(error, folder) from error
        size = 4 * sum(parameter.nbytes for parameter in network.parameters())
        if shutil.disk_usage(folder).free < size:  # torch and safetensors report a full disk as their own
            raise TrainingError(
                f"No space is left for a checkpoint of about {size / 1e6:,.0f} MB in {folder} ({error}). "
                "Make room and give the same command again: it goes on from the last checkpoint."
            ) from error
        raise
    trainer.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    network.to("cpu")
    return network


def set_ppe(network: Synthesizer, stage: Stage) -> None:
    """Let positions overwrite as many dimensions as the stage says; that is no part of the weights."""
    size = (
        network.config.d_model // 2 if stage.ppe_dim is None else min(stage.ppe_dim, network.config.d_model)
    )
    network.config.ppe_dim = max(size - size % 2, 2)


def load_weights(network: Synthesizer, folder: Path) -> None:
    """Read weights that `save_pretrained` wrote.

    Raises:
        TrainingError: they are missing, damaged, or of another architecture.
    """
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"The weights in {folder} cannot be read: {error}.") from error
    except RuntimeError as error:
        raise TrainingError(
            f"The weights in {folder} are of another architecture than this training's network: {error}. "
            "Give the network settings that they were trained with, or start without them."
        ) from error


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{_STATE}") if path.stat().st_size]
    newest = max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)
    return None if newest is None else str(newest)


def stage_loss(
    network: Synthesizer, stage: Stage, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its parts by name."""
    merged = network(batch["vectors"], batch["mask"], batch["masses"]).pooler_output
    inputs = batch["vectors"], batch["mask"], batch["masses"]
    parts: dict[str, tuple[float, Tensor]] = {}
    if isinstance(stage, SelfSupervised):
        if stage.vmlm:
            parts["vmlm"] = stage.vmlm, losses.vmlm(network, *inputs, batch["masked"], merged)
        if stage.vnsp:
            parts["vnsp"] = stage.vnsp, losses.vnsp(network, merged, batch["follows"])
    elif isinstance(stage, FiveTwelveToOne):
        weight = stage.teacher if isinstance(stage, TenToOne) else 1.0
        parts["teacher"] = weight, losses.distance(merged, batch["teacher"], stage.distance)
    if isinstance(stage, TenToOne):
        if stage.associativity:
            nested = [batch[f"nested_{name}"] for name in ("vectors", "mask", "masses", "parts", "other")]
            parts["associativity"] = stage.associativity, losses.associativity(network, *nested)
        if stage.beyond:
            long = [batch[f"beyond_{name}"] for name in ("vectors", "mask", "masses", "parts")]
            found = losses.distance(losses.merge_parts(network, *long), batch["beyond_target"])
            parts["beyond"] = stage.beyond, found
        if stage.retrieval:
            whole = [batch[f"retrieval_{name}"] for name in ("vectors", "mask", "masses", "parts")]
            found = losses.retrieval(
                batch["retrieval_queries"],
                losses.merge_parts(network, *whole),
                batch["retrieval_articles"],
                stage.temperature,
            )
            parts["retrieval"] = stage.retrieval, found
    total = torch.stack([weight * loss for weight, loss in parts.values()]).sum()
    return total, {name: loss.detach() for name, (_, loss) in parts.items()}


def to_tensors(batch: Batch) -> dict[str, Tensor]:
    """The arrays of a batch as tensors on the CPU, sharing memory."""
    return {name: torch.from_numpy(array) for name, array in batch.items()}


class _Steps(Dataset[dict[str, Tensor]]):
    """Batches as a data set of which every item is a whole batch."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return {"step": torch.tensor(step)} | to_tensors(self._batches.batch(step))


class _StageTrainer(Trainer):
    def __init__(
        self, network: Synthesizer, batches: Batches, arguments: TrainingArguments, report: Report
    ) -> None:
        logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
        folder = Path(arguments.output_dir)
        self.network, self.batches = network, batches
        self._parts: dict[str, list[Tensor]] = {}
        self._writer = SummaryWriter(str(folder.parent / "tensorboard" / folder.name))
        super().__init__(
            model=network,
            args=arguments,
            train_dataset=_Steps(batches),
            data_collator=_only,
            callbacks=[TensorBoardCallback(self._writer), _Reporting(batches.name, report)],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False

    def finish(self, folder: Path) -> None:
        """Write the weights and the log, then let the checkpoints go."""
        partial = folder / f"{FINAL}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.network.save_pretrained(partial)
        (folder / LOG).write_text(json.dumps(self.state.log_history, indent=1), encoding="utf-8")
        partial.rename(folder / FINAL)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        total, parts = stage_loss(model, self.batches.stage, inputs)
        for name, loss in parts.items():
            self._parts.setdefault(name, []).append(loss)
        return total

    def training_step(self, model: Any, inputs: dict[str, Tensor], *arguments: Any, **options: Any) -> Tensor:
        step = int(inputs.pop("step"))
        loss: Tensor = super().training_step(model, inputs, *arguments, **options)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        length = torch.nn.utils.get_total_norm(gradients)
        if not (math.isfinite(float(loss)) and math.isfinite(float(length))):
            self._stop(step, float(loss), float(length))
        return loss

    def _stop(self, step: int, loss: float, length: float) -> None:
        """The weights are those of the step before, but are not saved: they led here."""
        checkpoint = last_checkpoint(Path(self.args.output_dir))
        kept = f"The last good checkpoint is {checkpoint}" if checkpoint else "There is no checkpoint yet"
        articles = self.batches.names(step)
        listed = ", ".join(articles[:10]) + (f" and {len(articles) - 10} more" if len(articles) > 10 else "")
        raise TrainingError(
            f"Stage {self.batches.name}, step {step + 1}: the loss is {loss} and its gradient's length "
            f"{length}. The batch is of the articles {listed}. {kept}. Look at these texts, or lower the "
            "stage's learning_rate and train into another folder."
        )

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        means = {name: float(torch.stack(found).mean()) for name, found in self._parts.items()}
        self._parts.clear()
        super().log({**logs, **means}, *arguments, **options)

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class _Reporting(TrainerCallback):
    def __init__(self, name: str, report: Report) -> None:
        self._name, self._report = name, report
        self._figures: dict[str, float] = {}

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        self._figures = {name: value for name, value in (logs or {}).items() if name == "loss"}

    def on_step_end(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        self._report(self._name, state.global_step, state.max_steps, self._figures)


def _only(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return items[0]


def _arguments(stage: Stage, folder: Path, seed: int, bf16: bool | None) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # one item of the data set is a batch
        max_steps=stage.steps,
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(stage.warmup * stage.steps),
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.gradient_norm,
        bf16=(cuda and torch.cuda.is_bf16_supported()) if bf16 is None else bf16,
        use_cpu=not cuda,
        logging_steps=max(stage.steps // _LOGS, 1),
        logging_first_step=True,
        save_steps=stage.save_steps,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        seed=seed,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # the objectives call the network itself, not a parallel copy
    return arguments


def _remove_torn(folder: Path) -> None:
    """Take away a checkpoint that was being written: it has no state, and would only take space."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / _STATE).is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)
