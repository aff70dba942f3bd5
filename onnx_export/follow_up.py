"""``python -m onnx_export follow-up``: the folder of the bundled gate of follow-up questions."""

import gzip
import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merger_plugins import HistoryGate, QuestionNeed, load_embedder
from onnx_export.questions import dependent, independent, topical_phrases

SEED = 0
PER_KIND = 2000
ARTICLES = "train/wiki_en_articles.jsonl.gz"

PENALTY = 1e-5
"""Of the kernel ridge regression, beside squared errors whose counts sum to 1."""

FITS, PER_FIT = 3, 1000
"""Their mean is taken, each of at most so many questions a kind: one fit of all would take gigabytes."""

SLOPE, MIDDLE = 6.0, -0.5
"""Of the logistic function. The fit gives 0.5 for a question that leans on its conversation and -0.5 for one
that stands alone; people ask neither so plainly, and in a conversation those that lean on it are the rule."""

SETTINGS = HistoryGate(share=0.72, foreign=1.0, covered=(0.35, 0.55), brevity=0.0, doubt=0.04)


def release(data: Path, out: Path) -> Path:
    """Make the questions, embed them, fit the need for a conversation, and write the folder, with a card."""
    with gzip.open(data / ARTICLES, "rt", encoding="utf-8") as handle:
        articles = [json.loads(line) for line in handle]
    titles = [re.sub(r"\s*\(.*?\)", "", row["title"]) for row in articles]
    phrases = topical_phrases([row["text"] for row in articles])
    rng = random.Random(SEED)
    leaning = list(dict.fromkeys(dependent(rng, PER_KIND)))
    standing = list(dict.fromkeys(independent(rng, PER_KIND, titles, phrases)))
    embedder = load_embedder()
    vectors = embedder.embed_documents([text for _, text in leaning + standing])
    kinds = Counter(kind for kind, _ in leaning + standing)
    labels = np.repeat([0.5, -0.5], [len(leaning), len(standing)])
    names = np.array([kind for kind, _ in leaning + standing])
    exact = vectors.astype(np.float64)
    fits = [
        quadratic(exact[rows], labels[rows], evenly(names[rows], labels[rows]), PENALTY)
        for rows in (draw(names, PER_FIT, np.random.default_rng(SEED + fit)) for fit in range(FITS))
    ]
    products = np.mean([fit[0] for fit in fits], axis=0)
    weights = np.mean([fit[1] for fit in fits], axis=0)
    bias = float(np.mean([fit[2] for fit in fits]))
    found = np.einsum("nd,nd->n", exact @ products + weights, exact) + bias
    told = float(evenly(names, labels) @ ((found > 0) == (labels > 0)))
    need = QuestionNeed(
        (SLOPE * weights).astype(np.float32),
        round(SLOPE * (bias - MIDDLE), 4),
        embedder.name,
        (SLOPE * products).astype(np.float32),
    )
    digest = hashlib.sha256((data / ARTICLES).read_bytes()).hexdigest()[:16]
    card = _CARD.format(
        lines="\n".join(f"| {kind} | {number:,} |" for kind, number in kinds.items()),
        told=told,
        file=ARTICLES,
        digest=digest,
        seed=SEED,
        penalty=PENALTY,
        fits=FITS,
        per_fit=PER_FIT,
        slope=SLOPE,
        middle=MIDDLE,
        share=SETTINGS.share,
        covered=SETTINGS.covered,
        doubt=SETTINGS.doubt,
        trusted=SETTINGS.trusted,
        half_life=SETTINGS.half_life,
    )
    return replace(SETTINGS, need=need).save(out, card=card)


def evenly(kinds: NDArray[np.str_], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) how much each question counts: half for each label, in which all kinds count alike; sum 1."""
    counts = np.zeros(len(labels))
    for label in np.unique(labels):
        side = np.unique(kinds[labels == label])
        for kind in side:
            rows = (labels == label) & (kinds == kind)
            counts[rows] = 0.5 / len(side) / rows.sum()
    return counts


def draw(kinds: NDArray[np.str_], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of at most so many questions of each kind."""
    rows = [rng.permutation(np.flatnonzero(kinds == kind))[:most] for kind in np.unique(kinds)]
    return np.concatenate(rows).astype(np.int64)


def quadratic(
    vectors: NDArray[np.float64], labels: NDArray[np.float64], counts: NDArray[np.float64], penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Kernel ridge regression with the kernel (1/2 + x·y)², which gives a quadratic function.

    Args:
        vectors: (n, d).
        labels: (n,) what the function should give.
        counts: (n,) how much each row's squared error counts; they sum to 1.
        penalty: times the squared length of the function.

    Returns:
        P (d, d), w (d,) and b of xᵀ P x + w x + b.
    """
    kernel = (0.5 + vectors @ vectors.T) ** 2
    kernel[np.diag_indices(len(vectors))] += penalty / counts
    duals = np.linalg.solve(kernel, labels)
    return (vectors * duals[:, None]).T @ vectors, duals @ vectors, float(0.25 * duals.sum())


_CARD = """\
# follow-up-all-MiniLM-L6-v2

The bundled gate of follow-up questions: a quadratic function that tells from a question's vector, made by
all-MiniLM-L6-v2, whether it needs its conversation ("How do I apply?") or stands alone ("How do I apply for a
passport?"), and the settings of a `HistoryGate`. No text can be recovered from it. Licence: Apache-2.0.

```python
from merger_plugins import load_gate, merge_question

query = merge_question(question, turns, gate=load_gate())
query.queries    # search with each of them and keep each passage's better score, less query.doubts
```

Fitted by kernel ridge regression to English questions made from frames that were written for this project
(`onnx_export/questions.json`). Their topics are titles of Wikipedia articles, and pairs of words that an
article repeats. Each kind counts alike on its side. Of these same questions, weighted so, it tells {told:.1%}
rightly; the frames do not occur in the benchmark, and no question that a person asked was used.

| questions with | number |
|---|---|
{lines}

The kernel is (1/2 + x·y)², the penalty {penalty:g}; the mean of {fits} fits to at most {per_fit:,} questions
of each kind, which give 0.5 and -0.5 for the two sides; then the logistic function of slope {slope:g} and
middle {middle:g}. Settings: share {share}, covered {covered}, half-life {half_life:g} turns, doubt {doubt},
trusted {trusted}. They, the frames and the fit were chosen with `benchmarks/conversation.py` in view
(MTRAG-UN, TREC CAsT, the first questions and rewrites of both, XQuAD-en, XQuAD-de with foreign history);
README.md says what they give. Not for other languages or embedding models.

Articles: {file} (English Wikipedia, CC BY-SA 3.0), SHA-256 {digest}.
Made by `python -m onnx_export follow-up --data FOLDER`, seed {seed}.
"""
