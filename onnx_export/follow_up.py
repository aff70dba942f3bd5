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

PENALTY = 0.003
"""Times half the squared length of the weights, beside a mean loss: so strong that the weights stay near the
difference between the two kinds' means, and questions unlike any of the frames are told apart as well."""

PRIOR = 1.0
"""Added to the logit: in a conversation, questions that lean on it are the rule."""

SETTINGS = HistoryGate(share=0.7, foreign=1.0, covered=(0.3, 0.6), brevity=0.0)


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
    sides = [len({kind for kind, _ in side}) for side in (leaning, standing)]
    counts = np.array(
        [
            0.5 / number / kinds[kind]
            for side, number in zip((leaning, standing), sides, strict=True)
            for kind, _ in side
        ]
    )
    labels = np.repeat([1.0, 0.0], [len(leaning), len(standing)])
    weights, bias = logistic(vectors.astype(np.float64), labels, counts, PENALTY)
    told = float(counts @ ((vectors @ weights + bias > 0) == (labels > 0)))
    need = QuestionNeed(weights.astype(np.float32), round(bias + PRIOR, 4), embedder.name)
    digest = hashlib.sha256((data / ARTICLES).read_bytes()).hexdigest()[:16]
    card = _CARD.format(
        lines="\n".join(f"| {kind} | {number:,} |" for kind, number in kinds.items()),
        told=told,
        file=ARTICLES,
        digest=digest,
        seed=SEED,
        penalty=PENALTY,
        prior=PRIOR,
        share=SETTINGS.share,
        covered=SETTINGS.covered,
        half_life=SETTINGS.half_life,
    )
    return replace(SETTINGS, need=need).save(out, card=card)


def logistic(
    vectors: NDArray[np.float64], labels: NDArray[np.float64], counts: NDArray[np.float64], penalty: float
) -> tuple[NDArray[np.float64], float]:
    """Penalised logistic regression by Newton's method.

    Args:
        vectors: (n, d).
        labels: (n,) 0 or 1.
        counts: (n,) how much each row counts; they sum to 1.
        penalty: times half the squared length of the weights; the bias is free.

    Returns:
        (d,) weights and the bias.
    """
    rows = np.hstack([vectors, np.ones((len(vectors), 1))])
    penalties = np.append(np.full(vectors.shape[1], penalty), 1e-9)
    solution = np.zeros(rows.shape[1])
    for _ in range(50):
        chance = 0.5 * (1 + np.tanh(rows @ solution / 2))
        slope = rows.T @ (counts * (chance - labels)) + penalties * solution
        curvature = rows.T @ (rows * (counts * chance * (1 - chance))[:, None]) + np.diag(penalties)
        step = np.linalg.solve(curvature, slope)
        solution -= step
        if np.abs(step).max() < 1e-9:
            break
    return solution[:-1], float(solution[-1])


_CARD = """\
# follow-up-all-MiniLM-L6-v2

The bundled gate of follow-up questions: 384 weights and a bias that tell from a question's vector, made by
all-MiniLM-L6-v2, whether it needs its conversation ("How do I apply?") or stands alone ("How do I apply for a
passport?"), and the settings of a `HistoryGate`. No text can be recovered from it. Licence: Apache-2.0.

```python
from merger_plugins import load_gate, merge_question

query = merge_question(question, turns, gate=load_gate())
query.queries    # search with each of them and keep each passage's better score
```

Fitted by logistic regression to English questions made from frames that were written for this project
(`onnx_export/questions.json`). Their topics are titles of Wikipedia articles, and pairs of words that an
article repeats. Each kind counts alike on its side. Of these same questions, weighted so, it tells {told:.1%}
rightly; the frames do not occur in the benchmark, and no question that a person asked was used.

| questions with | number |
|---|---|
{lines}

Settings: share {share}, covered {covered}, half-life {half_life:g} turns, penalty {penalty}, {prior:g} added
to the bias. They, the frames and the penalty were chosen with `benchmarks/conversation.py` in view (MTRAG-UN,
TREC CAsT, XQuAD-en); README.md says what they give. Not for other languages or embedding models.

Articles: {file} (English Wikipedia, CC BY-SA 3.0), SHA-256 {digest}.
Made by `python -m onnx_export follow-up --data FOLDER`, seed {seed}.
"""
