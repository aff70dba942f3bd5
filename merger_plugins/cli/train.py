"""``merger-plugins train``: a merger for the user's own embedding model, from the user's own texts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from merger_plugins.cli import options
from merger_plugins.cli.output import Advance, Output, running, table

if TYPE_CHECKING:
    from merger_plugins.training.estimate import Estimate
    from merger_plugins.training.evaluation import Figures
    from merger_plugins.training.preparing import Prepared

_DEFAULT_RECIPE = "small"


def command(
    texts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH|hf:NAME",
            help="Texts to train on: JSON lines (also .gz), text files, a folder of them, or a dataset; "
            "may be given several times.",
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER|MODULE:ATTRIBUTE",
            help="The embedding model: the bundled one by default, the folder of a sentence-transformers "
            "model, or the import path of an embedding object.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=3, help="The embedder's context, where it does not tell.")
    ] = None,
    config: Annotated[
        str, typer.Option(metavar="RECIPE|FILE", help="All settings, as TOML or JSON; other options win.")
    ] = _DEFAULT_RECIPE,
    output: Annotated[str | None, typer.Option(metavar="FOLDER", help="Where the run is kept.")] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Only this stage of the three; may be given several times, in order."),
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Weights to start from, such as a stage's final/.")
    ] = None,
    shards: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where embedded texts are kept; runs may share it.")
    ] = None,
    max_articles: Annotated[int | None, typer.Option(min=1, help="Texts to draw at the most.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    estimate_only: Annotated[
        bool, typer.Option("--estimate", help="Say what it would take, and stop.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Train a synthesizer for an embedding model, and compare it on texts that it did not see.

    Says first how long it will take. Interrupted, the same command goes on. Ends with a model folder that
    load_merger reads.
    """
    interrupted = "The same command goes on from the last shard or checkpoint."
    with running("train", as_json=as_json, interrupted=interrupted) as output_:
        from merger_plugins.training.config import read_config
        from merger_plugins.training.estimate import check_space, estimate
        from merger_plugins.training.preparing import prepare
        from merger_plugins.training.train import check_folder, finished, train_prepared

        stated: dict[str, Any] = {
            "texts": texts and [_absolute(text) for text in texts],
            "embedder": embedder,
            "max_tokens": max_tokens,
            "output": output,
            "stages": stage,
            "start": start,
            "shards": shards,
            "seed": seed,
            "data": None if max_articles is None else {"max_articles": max_articles},
        }
        changes = {name: value for name, value in stated.items() if value is not None}
        settings = read_config(config).replace(**changes)
        check_folder(settings)
        trained = finished(settings)
        if trained is None:
            with output_.waiting("reading the texts"):
                prepared = prepare(settings)
            with output_.waiting("measuring how long it will take"):
                expected = estimate(prepared)
            _print_estimate(output_, prepared, expected)
            check_space(expected, Path(settings.output))
            if estimate_only:
                return
            with ExitStack() as bars:
                trained = train_prepared(prepared, report=_Bars(output_, bars))
        output_.document.update(
            folder=str(trained.folder),
            model=str(trained.model),
            figures={name: figures.to_dict() for name, figures in trained.figures.items()},
        )
        output_.print(*_tables(trained.figures))
        output_.print(
            f"Curves: {trained.folder / 'curves.png'}; tensorboard --logdir {trained.folder / 'tensorboard'}",
            f"load_merger({str(trained.model)!r}) reads the merger.",
        )


class _Bars:
    """A bar for each thing that a training does, one after another."""

    def __init__(self, output: Output, bars: ExitStack) -> None:
        self._output, self._bars = output, bars
        self._doing, self._done = "", 0
        self._advance: Advance = lambda _: None

    def __call__(self, doing: str, done: int, total: int, _: dict[str, float]) -> None:
        if doing != self._doing:
            self._bars.close()
            unit = "texts" if doing == "embedding" else "steps"
            self._advance = self._bars.enter_context(self._output.progress(doing, total, unit))
            self._doing, self._done = doing, 0
        self._advance(done - self._done)
        self._done = done


def _absolute(text: str) -> str:
    """The same place for a run that is continued from another folder."""
    from merger_plugins.training.data.articles import HUB

    return text if text.startswith(HUB) else str(Path(text).expanduser().absolute())


def _print_estimate(output: Output, prepared: Prepared, expected: Estimate) -> None:
    chosen, base = prepared.chosen, prepared.base
    languages = ", ".join(f"{name} {count:,}" for name, count in chosen.languages.most_common(8))
    output.document.update(
        embedder=base.name,
        articles={"read": chosen.read, "doubles": chosen.doubles, "too_short": chosen.short}
        | {"training": len(chosen.training), "held_out": len(chosen.held_out)},
        estimate={
            "texts": expected.texts,
            "tokens": expected.tokens,
            "calls": expected.calls,
            "embedding_seconds": round(expected.embedding_seconds, 1),
            "stage_seconds": {name: round(value, 1) for name, value in expected.stage_seconds.items()},
            "disk_bytes": expected.disk,
            "parameters": expected.parameters,
        },
    )
    counted = "" if base.exact else " (counted by another tokenizer)"
    stages = ", ".join(
        f"{name} {expected.steps[name]:,} steps {_duration(seconds)}"
        for name, seconds in expected.stage_seconds.items()
    )
    output.print(
        f"{chosen.read:,} texts read, {chosen.doubles:,} doubles and {chosen.short:,} short ones left out; "
        f"training on {len(chosen.training):,} ({languages}), {len(chosen.held_out):,} held out.",
        f"Embedding with {base.name}: {expected.texts:,} texts, {expected.tokens:,} tokens{counted}, about "
        f"{expected.calls:,} calls, {_duration(expected.embedding_seconds)}.",
        f"Training {expected.parameters / 1e6:.1f} million parameters: {stages}.",
        f"About {_duration(expected.seconds)} in all, as busy as this machine is now, and "
        f"{expected.disk / 1e6:,.0f} MB in {prepared.config.output}.",
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _tables(figures: Mapping[str, Figures]) -> list[Table]:
    counts = sorted({count for found in figures.values() for count in found.by_chunks})
    teacher = table(
        "merger",
        "all",
        *map(str, counts),
        right=["all", *map(str, counts)],
        title="Cosine with the teacher's vector on held-out texts, by number of chunks",
    )
    kinds = sorted({kind for found in figures.values() for kind in found.by_query})
    columns = ["all queries", *kinds, "lost by shuffling", "tree against whole"]
    search = table(
        "merger",
        *columns,
        right=columns,
        title="The right held-out text, one vector each: nDCG@10 by query; order; associativity",
    )
    for name, found in figures.items():
        by_chunks = [f"{found.by_chunks[count]:.3f}" if count in found.by_chunks else "" for count in counts]
        teacher.add_row(name, f"{found.teacher:.3f} ± {found.teacher_error:.3f}", *by_chunks)
        by_query = [f"{found.by_query[kind]:.3f}" if kind in found.by_query else "" for kind in kinds]
        order = f"{found.order:.4f} ± {found.order_error:.4f}"
        retrieval = f"{found.retrieval:.3f} ± {found.retrieval_error:.3f}"
        search.add_row(name, retrieval, *by_query, order, f"{found.associativity:.3f}")
    return [teacher, search]
