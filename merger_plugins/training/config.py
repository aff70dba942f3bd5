"""The settings of a training: one file, TOML or JSON, that says all of it."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from merger_plugins.errors import InputError
from merger_plugins.training.data.shards import ShardSettings

RECIPES = Path(__file__).parent / "recipes"

SELF_SUPERVISED, FIVE_TWELVE, TEN = "self_supervised", "five_twelve_to_one", "ten_to_one"
STAGES = (SELF_SUPERVISED, FIVE_TWELVE, TEN)
"""The three-stage protocol, in order."""

DISTANCES = ("cosine", "l1")


@dataclass(frozen=True)
class Stage:
    """What every stage has.

    Attributes:
        steps: updates of the weights.
        batch_size: sequences of an update.
        learning_rate: the highest one, after the warm-up; it falls to zero in a cosine.
        warmup: share of the steps in which it rises.
        weight_decay: of matrices.
        gradient_norm: longer gradients are cut to it.
        ppe_dim: dimensions that positions overwrite; None for half of the vectors' dimension.
        longest: vectors of a sequence at the most; the rest of it is left out.
        save_steps: updates between checkpoints.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    ppe_dim: int | None = 16
    longest: int = 128
    save_steps: int = 500

    def check(self, name: str) -> None:
        """Refuse what no training can use.

        Raises:
            InputError: names the value.
        """
        for number in ("steps", "batch_size", "save_steps"):
            if getattr(self, number) < 1:
                raise InputError(f"{name}.{number} is {getattr(self, number)}; it is a number from 1 on.")
        if self.learning_rate <= 0 or not 0 <= self.warmup < 1 or self.longest < 10:
            raise InputError(
                f"{name} has learning_rate {self.learning_rate}, warmup {self.warmup} and longest "
                f"{self.longest}: they are above 0, a share below 1, and 10 or more."
            )


@dataclass(frozen=True)
class SelfSupervised(Stage):
    """Stage 1, whole articles.

    Attributes:
        vmlm: weight of the loss of masked vectors.
        vnsp: weight of the loss of false histories.
        masked: share of the vectors that are masked.
    """

    ppe_dim: int | None = None
    vmlm: float = 1.0
    vnsp: float = 1.0
    masked: float = 0.15

    def check(self, name: str) -> None:
        """See the base class."""
        super().check(name)
        if not 0 < self.masked < 1 or self.vmlm + self.vnsp <= 0:
            raise InputError(
                f"{name} has masked {self.masked}, vmlm {self.vmlm} and vnsp {self.vnsp}: the first is a "
                "share between 0 and 1, one of the others above 0."
            )


@dataclass(frozen=True)
class FiveTwelveToOne(Stage):
    """Stage 2, single-token chunks and every mixture of them with larger nodes of their tree.

    Attributes:
        distance: ``"cosine"`` or ``"l1"``, of the merged vector from the teacher's.
    """

    learning_rate: float = 1e-3
    distance: str = "cosine"

    def check(self, name: str) -> None:
        """See the base class."""
        super().check(name)
        if self.distance not in DISTANCES:
            raise InputError(f"{name}.distance is {self.distance!r}; it is one of {', '.join(DISTANCES)}.")


@dataclass(frozen=True)
class TenToOne(FiveTwelveToOne):
    """Stage 3, 2 to 10 neighbouring chunks; `longest` is how many vectors nested merges and retrieval take.

    Attributes:
        singles: share of the examples that are one chunk, whose own vector is the teacher's.
        teacher: weight of the distance from the teacher's vectors.
        associativity: weight of the distance between merging merged parts and merging the whole.
        nested_size: sequences of an update that the associativity is measured on.
        beyond: weight of the distance from the mean of the chunks of texts beyond the teacher's context.
        beyond_size: sequences of an update that this is measured on.
        opening: how many times as much the chunks of the first context count in that mean.
        retrieval: weight of telling a query's document from the others of the batch.
        temperature: of that; cosines are divided by it.
        hidden: share of the queries whose own chunk is taken out of the document.
    """

    learning_rate: float = 3e-4
    longest: int = 40
    singles: float = 0.03
    teacher: float = 1.0
    associativity: float = 0.2
    nested_size: int = 16
    beyond: float = 0.0
    beyond_size: int = 16
    opening: float = 1.0
    retrieval: float = 0.0
    temperature: float = 0.05
    hidden: float = 0.5


@dataclass(frozen=True)
class DataConfig(ShardSettings):
    """Which texts, beside what is made of them.

    Attributes:
        max_articles: texts drawn at the most; None for all.
        balance: a language of n texts gets a share in proportion to n ** balance.
        held_out: share of the texts that is not trained on.
        min_characters: shorter texts are left out.
    """

    max_articles: int | None = None
    balance: float = 0.5
    held_out: float = 0.1
    min_characters: int = 400

    @property
    def shards(self) -> ShardSettings:
        """Only what the contents of a shard depend on."""
        names = [each.name for each in dataclasses.fields(ShardSettings)]
        return ShardSettings(**{name: getattr(self, name) for name in names})

    def __post_init__(self) -> None:
        self.shards  # noqa: B018 - checks itself


@dataclass(frozen=True)
class TrainingConfig:
    """All of a training.

    Attributes:
        texts: what to train on, as `read_articles` takes it.
        output: the folder of the run: checkpoints, curves, ``model``, ``results.json``.
        embedder: as `open_base` takes it.
        max_tokens: the embedder's context, where it does not tell.
        texts_at_once: texts of one embedding call.
        shards: folder of the embedded texts; None for ``data`` inside the output. Runs may share one.
        seed: of everything that is drawn.
        threads: CPU threads of the network; None leaves it to torch.
        bf16: 16-bit arithmetic in the network; None for on a GPU that has it.
        stages: which stages, in their order.
        start: a folder of weights to start from; None for fresh ones.
        network: a name in ``named``, or parameters of `SynthesizerConfig`, or both.
    """

    texts: tuple[str, ...] = ()
    output: str = "synthesizer"
    embedder: str | None = None
    max_tokens: int | None = None
    texts_at_once: int = 256
    shards: str | None = None
    seed: int = 0
    threads: int | None = None
    bf16: bool | None = None
    stages: tuple[str, ...] = STAGES
    start: str | None = None
    network: dict[str, Any] = field(default_factory=lambda: {"named": "small"})
    data: DataConfig = field(default_factory=DataConfig)
    self_supervised: SelfSupervised = field(default_factory=SelfSupervised)
    five_twelve_to_one: FiveTwelveToOne = field(default_factory=FiveTwelveToOne)
    ten_to_one: TenToOne = field(default_factory=TenToOne)

    def __post_init__(self) -> None:
        unknown = [name for name in self.stages if name not in STAGES]
        if unknown or not self.stages or len(set(self.stages)) != len(self.stages):
            raise InputError(
                f"stages is {list(self.stages)}; it takes some of {', '.join(STAGES)}, each once."
            )
        for name in self.stages:
            self.stage(name).check(name)

    def stage(self, name: str) -> Stage:
        """The settings of a stage."""
        found: Stage = getattr(self, name)
        return found

    def replace(self, **changes: Any) -> TrainingConfig:
        """A copy with other values; a mapping for ``data`` or a stage changes only what it names.

        Raises:
            InputError: an unknown setting.
        """
        values: dict[str, Any] = {}
        for name, value in changes.items():
            mine = getattr(self, name, None)
            if isinstance(value, Mapping) and dataclasses.is_dataclass(mine):
                value = _build(type(mine), {**asdict(mine), **value}, name)  # type: ignore[arg-type]
            values[name] = value
        present = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        changed: TrainingConfig = _build(TrainingConfig, {**present, **values}, "")
        return changed

    def to_json(self) -> str:
        """The settings as JSON; `read_config` reads it."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def read_config(source: str | Path) -> TrainingConfig:
    """Read a configuration.

    Args:
        source: a ``.toml`` or ``.json`` file, or the name of a recipe of this package, such as ``"small"``.
            What it leaves out keeps its default.

    Raises:
        InputError: there is no such file or recipe, or it holds an unknown setting or a value out of range.
    """
    path = Path(source)
    if not path.suffix:
        path = RECIPES / f"{source}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise InputError(
            f"There is no configuration {str(source)!r}. Pass a TOML or JSON file, or one of: {known}."
        )
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold settings by name.")
    return TrainingConfig().replace(**values)


def _build(kind: type[Any], values: Mapping[str, Any], name: str) -> Any:
    known = {each.name for each in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        where = f"{name}." if name else ""
        raise InputError(f"There is no setting {where}{unknown[0]}. Known are: {', '.join(sorted(known))}.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(
            f"A setting of {name or 'the training'} has a value of another kind: {error}."
        ) from error
