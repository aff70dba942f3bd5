"""COVID-QA through the objects of LangChain and LlamaIndex, before and after: nDCG@10, equality, overhead.

Run ``python -m benchmarks.frameworks --data FOLDER``. The application stores each paragraph as one chunk,
with langchain-qdrant, langchain-chroma, or LlamaIndex's stores for both; its retriever finds 10 passages,
whose documents, each once, are the documents found. Afterwards the collection is back-filled, with contextual
vectors in the companion, and our retrievers are asked. Each answer is compared with the library's own.

An adapter's overhead is what its retriever takes where the library answers at once, with what it answered
before, less what the host takes for a retriever that embeds the question and has its documents, or makes
its nodes of what the database answered. It stands beside the time of the host's own retriever: the same
question, vector, store and number of hits, measured in turns, processor time, of each question the least of
some rounds. LlamaIndex's postprocessor has its nodes and the database's answers ready, and what the library
itself would do with them is taken off. Run it with OPENBLAS_NUM_THREADS=1. Every sixth question is asked.
Embeddings are kept in .cache/ and looked up by text, and every look-up is counted. Writes
benchmarks/results/frameworks-langchain.json and frameworks-llama-index.json; --framework makes one of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import DEFAULT_DATA, Floats, write_result
from benchmarks.framework_apps import (
    SET,
    Answer,
    App,
    Ask,
    Corpus,
    langchain_app,
    llama_app,
    load,
)

TIMED = 30
EVERY = 6
ROUNDS = 5
SAME = 1e-6
"""How far scores through an adapter may be from the library's."""


def ndcg10(rank: int | None) -> float:
    return 0.0 if rank is None or rank >= 10 else float(1 / np.log2(rank + 2))


def quality(corpus: Corpus, answers: Sequence[Answer]) -> dict[str, float]:
    """nDCG@10 of the right paragraph, and of the right document."""
    passages, documents = [], []
    for gold, answer in zip(corpus.gold, answers, strict=True):
        ids = [point_id for point_id, _, _ in answer]
        names = list(dict.fromkeys(name for _, name, _ in answer))
        right, where = corpus.ids[gold], corpus.documents[gold]
        passages.append(ndcg10(ids.index(right) if right in ids else None))
        documents.append(ndcg10(names.index(where) if where in names else None))
    return {"passages": round(float(np.mean(passages)), 4), "documents": round(float(np.mean(documents)), 4)}


def asked(corpus: Corpus, ask: Ask) -> tuple[list[Answer], float]:
    """The answers to all questions, and how often each was embedded."""
    before = corpus.looked.queries
    answers = [ask(question) for question in corpus.questions]
    return answers, (corpus.looked.queries - before) / len(corpus.questions)


def difference(ours: Sequence[Answer], direct: Sequence[Answer]) -> dict[str, Any]:
    """Whether the adapter gives the same points in the same order, and how far scores differ at the most."""
    same = all([a[0] for a in x] == [b[0] for b in y] for x, y in zip(ours, direct, strict=True))
    pairs = [(a, b) for x, y in zip(ours, direct, strict=True) for a, b in zip(x, y, strict=False)]
    largest = max((abs(a[2] - b[2]) for a, b in pairs), default=0.0)
    return {"same points": same, "largest difference of scores": float(f"{largest:.2g}")}


@contextmanager
def answers_ready(methods: Sequence[tuple[Any, str]]) -> Iterator[None]:
    """Let these methods of objects give what they gave to their first call."""

    def kept(function: Callable[..., Any]) -> Callable[..., Any]:
        answers: list[Any] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            if not answers:
                answers.append(function(*args, **kwargs))
            return answers[0]

        return call

    for owner, name in methods:
        setattr(owner, name, kept(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in methods:
            delattr(owner, name)


def seconds(app: App, mode: str, questions: Sequence[str]) -> Floats:
    """(3,) seconds of the processor a question, of each question the least of some rounds.

    Of the host's own retriever; of ours, where all answers are ready; of the host's object in its place.
    """
    least = np.full((len(questions), 3), np.inf)
    for row, question in enumerate(questions):
        timed = app.timed(mode, question)
        with answers_ready(timed.ready):
            timed.ours()
            for _ in range(ROUNDS):
                for column, call in enumerate((None, timed.ours, timed.frame)):
                    times = [time.process_time()]
                    app.before(question)  # before each, as it leaves little in the processor's caches
                    times.append(time.process_time())
                    if call is not None:
                        call()
                        times.append(time.process_time())
                    least[row, column] = min(least[row, column], times[-1] - times[-2])
    return least.mean(axis=0)


def figures_of(corpus: Corpus, app: App) -> dict[str, Any]:
    answers, calls = asked(corpus, app.before)
    figures: dict[str, Any] = {"before": {**quality(corpus, answers), "embedding calls a question": calls}}
    timed = corpus.questions[:TIMED]
    for mode, ours in app.after.items():
        answers, calls = asked(corpus, ours)
        row: dict[str, Any] = {**quality(corpus, answers), "embedding calls a question": calls}
        direct, _ = asked(corpus, app.direct[mode])
        host, adapter, frame = seconds(app, mode, timed).tolist()
        row |= difference(answers, direct) | {
            "host_ms": round(1e3 * host, 3),
            "adapter_ms": round(1e3 * adapter, 3),
            "the same without it_ms": round(1e3 * frame, 3),
            "overhead over host": round((adapter - frame) / host, 4),
        }
        figures[mode] = row
    return figures


APPS: dict[str, Callable[[Corpus, str, Path], App]] = {"langchain": langchain_app, "llama-index": llama_app}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with eval/covidqa")
    parser.add_argument("--questions", type=int, help="only the first ones, and write no result file")
    parser.add_argument("--framework", choices=[*APPS], help="only this one")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no data at {options.data}; pass --data", file=sys.stderr)
        return 0
    corpus = load(options.data)
    asked_for = slice(0, options.questions and EVERY * options.questions, EVERY)
    corpus = replace(corpus, questions=corpus.questions[asked_for], gold=corpus.gold[asked_for])
    strange = []
    for framework in [options.framework] if options.framework else APPS:
        figures: dict[str, Any] = {"paragraphs": len(corpus.texts), "questions": len(corpus.questions)}
        for engine in ("qdrant", "chroma"):
            with tempfile.TemporaryDirectory() as folder:
                figures[engine] = rows = figures_of(corpus, APPS[framework](corpus, engine, Path(folder)))
            print(f"\n{framework}, {engine}")
            for mode, row in rows.items():
                print(f"  {mode:<30} {row}", flush=True)
                same = mode == "before" or (
                    row["same points"] and row["largest difference of scores"] <= SAME
                )
                strange += [] if same else [f"{framework}, {engine}, {mode}"]
        if options.questions is None:
            data = {SET: corpus.revision}
            path = write_result(f"frameworks-{framework}", seed=None, data=data, figures=figures)
            print(f"\nwritten to {path.relative_to(path.parents[2])}")
    if strange:
        print(f"not what the library answers: {'; '.join(strange)}", file=sys.stderr)
    return len(strange) > 0


if __name__ == "__main__":
    sys.exit(main())
