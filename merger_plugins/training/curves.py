"""The curves of a training as one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from merger_plugins._extras import require
from merger_plugins.training.stages import LOG

PARTS = ("loss", "teacher", "associativity", "beyond", "retrieval", "vmlm", "vnsp")


def draw_curves(stages: dict[str, Path], picture: Path) -> Path:
    """Draw loss, its parts and the learning rate of each stage; returns the picture.

    Args:
        stages: folder of each finished stage by name, in order.
        picture: a PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures = require("matplotlib.figure", extra="train", purpose="Drawing curves", package="matplotlib")
    figure = figures.Figure(figsize=(5.0 * len(stages), 6.0), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False, height_ratios=(3, 1))
    for column, (name, folder) in enumerate(stages.items()):
        logged: list[dict[str, Any]] = json.loads((folder / LOG).read_text(encoding="utf-8"))
        upper, lower = axes[:, column]
        for part in PARTS:
            points = [(row["step"], row[part]) for row in logged if part in row]
            if points:
                upper.plot(*zip(*points, strict=True), label=part)
        rates = [(row["step"], row["learning_rate"]) for row in logged if "learning_rate" in row]
        lower.plot(*zip(*rates, strict=True))
        upper.set_title(name)
        upper.legend()
        lower.set_xlabel("step")
        lower.set_ylabel("learning rate")
    figure.savefig(picture, dpi=100)
    return picture
