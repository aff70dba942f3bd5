"""``python -m onnx_export synthesizer``: the folder of the bundled synthesizer, from a finished training.

The whole way, FOLDER being the data's::

    TEXTS="--texts FOLDER/train/wiki_en_articles.jsonl.gz --texts FOLDER/train/us_speeches_en.jsonl.gz"
    merger-plugins train --config release $TEXTS --output RUN
    merger-plugins train --config release-end $TEXTS --start RUN/checkpoint --output END
    python -m onnx_export synthesizer --run END     # the graph, with a card that has no figures yet
    python -m benchmarks.synthesizer --data FOLDER
    python -m onnx_export synthesizer --run END     # the same graph, figures in its card
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merger_plugins import TransformersMerger, load_merger
from merger_plugins.mergers.loading import SYNTHESIZER

FIGURES = Path("benchmarks/results/synthesizer.json")
PRECISION = "float16"
LICENCE = "Apache-2.0"
ROWS = ("mean", "calibrated", "synthesizer")


def release(run: Path, out: Path) -> Path:
    """Export a training's checkpoint and write the bundled folder, with a card."""
    results, config = _training(run)
    before = [_training(Path(config["start"]).parent)] if config["start"] else []
    with tempfile.TemporaryDirectory() as scratch:
        named = TransformersMerger(run / "checkpoint", device="cpu").save(Path(scratch, SYNTHESIZER))
        folder = TransformersMerger(named, device="cpu").export(
            out, precision=PRECISION, embedder=results["embedder"]["name"], licence=LICENCE
        )
    card = folder / "README.md"
    card.write_text(
        _CARD.format(**_about(results, before, config), figures=_figures(folder)), encoding="utf-8"
    )
    return folder


def _training(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a training says of itself, and its settings."""
    results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    config: dict[str, Any] = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return results, config


def _about(
    results: Mapping[str, Any],
    before: list[tuple[dict[str, Any], dict[str, Any]]],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """What the card says; `before` is the training that this one went on from."""
    network = ", ".join(f"{name} {value}" for name, value in config["network"].items() if name != "named")
    return {
        "name": SYNTHESIZER,
        "parameters": f"{results['parameters']:,}",
        "precision": PRECISION,
        "licence": LICENCE,
        "articles": f"{results['training']['articles']:,}",
        "chunks": f"{results['training']['chunks']:,}",
        "held_out": results["held_out"]["articles"],
        "seed": config["seed"],
        "first": "".join(
            f"\nThe first recipe saw {found['chunks']:,} chunks of {found['articles']:,}."
            for found in (part["training"] for part, _ in before)
        ),
        "beyond": _beyond(config["ten_to_one"]),
        "network": network or "the defaults of `SynthesizerConfig`",
        "stages": "\n".join(
            _stage(name, part[name])
            for part in (*(settings for _, settings in before), config)
            for name in part["stages"]
        ),
    }


def _beyond(stage: Mapping[str, Any]) -> str:
    if not stage["beyond"]:
        return ""
    return (
        " Text longer than the model's context has no such vector: there it was trained\ntowards the mean of "
        f"all chunks, those of the first context counting {stage['opening']:g} times."
    )


def _stage(name: str, stage: Mapping[str, Any]) -> str:
    return f"| {name} | {stage['steps']:,} | {stage['batch_size']} | {stage['learning_rate']:g} |"


def _figures(folder: Path) -> str:
    """The card's figures, where the result file is of this very model."""
    measured = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else None
    if measured is None or measured["figures"]["fingerprint"] != load_merger(folder).fingerprint:
        return _UNMEASURED
    figures = measured["figures"]
    sets = {"held-out Wikipedia": figures["wikipedia"], "COVID-QA's papers": figures["covidqa"]}
    fidelity = "\n".join(
        f"| {title}, {row} | {found['teacher']:.3f} | {found['by_chunks']['2']:.3f} | "
        f"{found['by_chunks']['10']:.3f} | {part['associativity'][row]['mean']:.3f} | "
        f"{found['order']:.4f} ± {found['order_error']:.4f} | "
        f"{part['recognition'][row]['mean']:.4f} ± {part['recognition'][row]['error']:.4f} |"
        for title, part in sets.items()
        for row in ROWS
        for found in [part["mergers"][row]]
    )
    kept = "\n".join(
        f"| {title}, {way} | "
        + " | ".join(
            f"{part['lengths'][way][length]['synthesizer']['mean']:.3f} "
            f"({part['lengths'][way][length]['mean']['mean']:.3f})"
            for length in ("10", "20", "50", "100")
        )
        + " |"
        for title, part in sets.items()
        for way in ("tree", "chain")
    )
    retrieval = "\n".join(
        f"| {name} | "
        + " | ".join(f"{found['ndcg@10'][row]:.3f}" for row in ("mean", "calibrated, at once", "synthesizer"))
        + " |"
        for name, found in figures["retrieval"].items()
    )
    return _MEASURED.format(fidelity=fidelity, kept=kept, retrieval=retrieval)


_UNMEASURED = "\nNot measured yet: `python -m benchmarks.synthesizer`, then the last command below.\n"

_MEASURED = """
Cosine with the teacher's vector, which is the embedding of the same text in one piece, for 2 to 10 chunks;
cosine of a random tree of 100 chunks with the whole; the teacher's cosine lost by shuffling, and how much
better a sequence is recognised than the same sequence reversed (both 0 for a mean):

| texts, merger | 2 to 10 chunks | 2 chunks | 10 chunks | trees | lost by shuffling | recognition |
|---|---|---|---|---|---|---|
{fidelity}

Mean cosine of the merged vector with the first ten chunks, the mean's in brackets, when so many chunks are
merged in a tree, or one after another:

| texts | 10 chunks | 20 | 50 | 100 |
|---|---|---|---|---|
{kept}

The right document by a question, one vector a document, nDCG@10. **It does not replace the calibrated
merger where questions are asked**, and `load_merger()` gives that one:

| set | mean | calibrated | synthesizer |
|---|---|---|---|
{retrieval}

Data, versions, hardware: `benchmarks/results/synthesizer.json`.
"""

_CARD = """\
---
license: apache-2.0
language: en
base_model: sentence-transformers/all-MiniLM-L6-v2
library_name: merger-plugins
tags: [embeddings, retrieval, onnx]
---
# {name}

A trained network that merges the chunk vectors of all-MiniLM-L6-v2, in reading order, into the vector that
the model would give their whole text. {parameters} parameters, weights as {precision}, computed in float32.

```python
from merger_plugins import load_merger

load_merger("{name}").merge(vectors, masses=tokens)  # (n, 384), (n,) -> (384,)
```

Up to ten vectors at once; more go through the 10-ary tree. Made for English, and for chunks of about 50
tokens.{beyond}
{figures}
## How it was made

By the recipes `release` and `release-end` (`merger_plugins/training/recipes`), seed {seed}: {articles}
English articles and speeches with {chunks} chunks (Wikipedia, CC BY-SA 3.0, and public domain),
embedded by the bundled all-MiniLM-L6-v2; {held_out} more were held out.{first}
No text can be read from the weights. Licence: {licence}. Network: {network}.

| stage | steps | batch | learning rate |
|---|---|---|---|
{stages}

What else was tried: `onnx_export/EXPERIMENTS.md`. Commands: `onnx_export/synthesizer.py`.
"""
