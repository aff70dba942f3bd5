"""The questions that the bundled gate was fitted to, the fit, and the folder that ships."""

import random

import numpy as np

from merger_plugins import load_embedder, load_gate
from merger_plugins.conversation import BUNDLED_GATE
from merger_plugins.mergers.loading import bundled
from onnx_export.follow_up import PRIOR, SETTINGS, logistic
from onnx_export.questions import dependent, independent, topical_phrases

ARTICLE = "The bone marrow makes blood. A bone marrow transplant replaces bone marrow in the United Kingdom. "


def test_questions_are_whole_and_name_their_topic_or_do_not() -> None:
    leaning = list(dependent(random.Random(0), 300))
    standing = list(independent(random.Random(0), 300, ["Zanzibar"], ["bone marrow"]))
    assert not any("{" in text for _, text in leaning + standing)
    assert not any("Zanzibar" in text or "marrow" in text for _, text in leaning)
    assert all("Zanzibar" in text or "marrow" in text for _, text in standing)
    assert len({kind for kind, _ in leaning}) == 4
    assert len({kind for kind, _ in standing}) == 5
    texts = {text for _, text in leaning}
    assert "Are they treatable?" in texts or "Are those treatable?" in texts
    assert not any(wrong in text for text in texts for wrong in ("Is they", "does they", "they has"))


def test_phrases_are_what_a_text_repeats_and_others_lack() -> None:
    others = ["Many other people often make other things."] * 5
    assert topical_phrases([ARTICLE, *others]) == ["bone marrow"]


def test_the_fit_is_where_the_penalised_loss_is_least() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 5))
    labels = (vectors @ rng.standard_normal(5) + rng.standard_normal(200) > 0).astype(float)
    counts = rng.uniform(0.5, 1.5, 200)
    counts /= counts.sum()

    def loss(weights: np.ndarray, bias: float) -> float:
        logits = vectors @ weights + bias
        return float(counts @ (np.logaddexp(0, logits) - labels * logits) + 0.05 / 2 * weights @ weights)

    weights, bias = logistic(vectors, labels, counts, 0.05)
    for _ in range(50):
        step = 1e-3 * rng.standard_normal(6)
        assert loss(weights + step[:5], bias + step[5]) > loss(weights, bias)


def test_the_folder_that_ships_has_the_settings_of_the_script() -> None:
    gate = load_gate()
    for name in ("half_life", "share", "foreign", "related", "covered", "brevity", "shown"):
        assert getattr(gate, name) == getattr(SETTINGS, name)
    assert gate.need is not None
    assert gate.need.embedder == load_embedder().name
    assert gate.need.weights.shape == (384,)
    card = (bundled(BUNDLED_GATE) / "README.md").read_text(encoding="utf-8")
    assert f"share {SETTINGS.share}, covered {SETTINGS.covered}" in card
    assert f"{PRIOR:g} added" in card
