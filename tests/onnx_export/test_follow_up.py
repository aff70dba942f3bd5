"""The questions that the bundled gate was fitted to, the fit, and the folder that ships."""

import random
from dataclasses import fields

import numpy as np

from merger_plugins import HistoryGate, load_embedder, load_gate
from merger_plugins.conversation import BUNDLED_GATE
from merger_plugins.mergers.loading import bundled
from onnx_export.follow_up import SETTINGS, SLOPE, draw, evenly, quadratic
from onnx_export.questions import dependent, independent, topical_phrases

GATE_SETTINGS = [field.name for field in fields(HistoryGate) if field.name != "need"]
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


def test_the_fit_is_the_quadratic_function_of_the_least_penalised_loss() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((60, 3))
    labels = np.sign(vectors[:, 0] * vectors[:, 1] + vectors[:, 2]) / 2
    counts = rng.uniform(0.5, 1.5, 60)
    counts /= counts.sum()
    products, weights, bias = quadratic(vectors, labels, counts, 0.05)
    np.testing.assert_allclose(products, products.T, atol=1e-9)
    # The kernel's own features: all products of two coordinates, the coordinates, and 1/2.
    features = np.hstack(
        [(vectors[:, :, None] * vectors[:, None, :]).reshape(60, 9), vectors, np.full((60, 1), 0.5)]
    )
    moments = (features * counts[:, None]).T @ features + 0.05 * np.eye(13)
    expected = np.linalg.solve(moments, (features * counts[:, None]).T @ labels)
    found = np.einsum("nd,de,ne->n", vectors, products, vectors) + vectors @ weights + bias
    np.testing.assert_allclose(found, features @ expected, atol=1e-9)


def test_kinds_count_alike_on_their_side() -> None:
    kinds = np.array(["it", "it", "it", "noun", "title", "title"])
    labels = np.array([0.5, 0.5, 0.5, 0.5, -0.5, -0.5])
    np.testing.assert_allclose(evenly(kinds, labels), [1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 4, 1 / 4])
    rows = draw(kinds, 2, np.random.default_rng(0))
    assert sorted(kinds[rows]) == ["it", "it", "noun", "title", "title"]
    assert len(set(rows)) == 5


def test_the_folder_that_ships_has_the_settings_of_the_script() -> None:
    gate = load_gate()
    for name in GATE_SETTINGS:
        assert getattr(gate, name) == getattr(SETTINGS, name)
    assert gate.need is not None
    assert gate.need.embedder == load_embedder().name
    assert gate.need.weights.shape == (384,)
    assert gate.need.products is not None
    assert gate.need.products.shape == (384, 384)
    card = (bundled(BUNDLED_GATE) / "README.md").read_text(encoding="utf-8")
    assert f"share {SETTINGS.share}, covered {SETTINGS.covered}" in card
    assert f"slope {SLOPE:g}" in card
