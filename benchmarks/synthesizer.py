"""The bundled synthesizer beside the mean and the calibrated merger, on texts that it was not trained on.

Run ``python -m benchmarks.synthesizer``, with the extra ``train`` installed. Measured are: cosine with the
teacher's vector of the same text; what chains and trees far beyond the teacher's context keep of their first
chunks; whether merging merged parts gives what merging the whole gives; what the order of the chunks does;
and retrieval with one vector a document. Writes benchmarks/results/synthesizer.json, or with ``--name NAME``
synthesizer-NAME.json. The first run embeds for some minutes and keeps the vectors in .cache/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    CACHE,
    DEFAULT_DATA,
    Floats,
    load_task,
    ndcg10,
    ndcg10_each,
    revision,
    write_result,
)
from benchmarks.retrieval import tree_roots
from merger_plugins import SequenceMerger, load_merger
from merger_plugins.chunking import SentenceChunker
from merger_plugins.finesse.scoring import separation
from merger_plugins.mergers.loading import SYNTHESIZER
from merger_plugins.mergers.mean import MeanMerger
from merger_plugins.training.config import read_config
from merger_plugins.training.data.articles import Article, read_articles
from merger_plugins.training.data.bases import open_base
from merger_plugins.training.data.corpus import Corpus
from merger_plugins.training.data.pieces import random_tree
from merger_plugins.training.data.shards import SPAN, ShardSettings, ShardWriter
from merger_plugins.training.evaluation import Figures, calibrated_on, evaluate
from merger_plugins.training.preparing import prepare

RECIPE = "release"
TRAINED_ON = ("train/wiki_en_articles.jsonl.gz", "train/us_speeches_en.jsonl.gz")
PAPERS = "eval/covidqa/docs.jsonl.gz"
RETRIEVAL = ("covidqa", "xquad_en", "xquad_de", "xquad_es", "xquad_ru", "xquad_zh")

LENGTHS = (10, 20, 50, 100)
"""Chunks: the teacher's context of 510 tokens holds about ten; twice, five times, ten times that."""

IDEAL = "teacher, then mean"

PROBES = 10
TREES = 200
PROBED, CONTEXTS, PROBE = 1_500, 8, 4
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--model", default=SYNTHESIZER, help="a bundled name or a model folder")
    parser.add_argument("--name", default="", help="part of the result file's name")
    arguments = parser.parse_args()
    data: Path = arguments.data
    synthesizer = load_merger(arguments.model)
    config = read_config(RECIPE).replace(texts=[str(data / name) for name in TRAINED_ON])
    texts = {
        "wikipedia": prepare(config).chosen.held_out,
        "covidqa": list(read_articles([data / PAPERS])),
    }
    figures: dict[str, Any] = {"fingerprint": synthesizer.fingerprint}
    for name, articles in texts.items():
        corpus = embedded(articles)
        mergers = {
            "mean": MeanMerger(),
            "calibrated": calibrated_on(load_merger(), corpus),
            "synthesizer": synthesizer,
        }
        figures[name] = {
            "articles": len(corpus),
            "windows": len(corpus.windows),
            "mergers": {key: rounded(found) for key, found in evaluate(mergers, corpus, seed=SEED).items()},
            "associativity": {key: associativity(merger, corpus) for key, merger in mergers.items()},
            "recognition": {key: recognition(merger, corpus) for key, merger in mergers.items()},
            "passages": passages(mergers, corpus),
            "lengths": lengths(mergers, corpus, openings(articles, corpus)),
        }
        print(name, figures[name], flush=True)
    figures["retrieval"] = {name: retrieval(name, data, synthesizer) for name in RETRIEVAL}
    print(figures["retrieval"], flush=True)
    figures["speed"] = speed(synthesizer, corpus)
    print(figures["speed"], flush=True)
    files = [*TRAINED_ON, PAPERS]
    write_result(
        "synthesizer" + (f"-{arguments.name}" if arguments.name else ""),
        seed=SEED,
        data={file: revision([data / file]) for file in files},
        figures=figures,
    )


def embedded(articles: list[Article]) -> Corpus:
    """Chunks, windows and queries of these articles, up to somewhat more chunks than `LENGTHS` asks for."""
    settings = ShardSettings(max_chunks=LENGTHS[-1] + 10, trees=0)
    writer = ShardWriter(CACHE / "synthesizer", open_base(), settings, SEED)
    return Corpus.load(writer.write(articles, lambda done: print(f"embedded {done} articles", flush=True)))


def associativity(merger: SequenceMerger, corpus: Corpus) -> dict[str, Any]:
    """Cosine between the root of a random tree over 100 chunks, 2 to 10 children a node, and `merge`."""
    rng = np.random.default_rng(SEED)
    long = long_enough(corpus)
    cosines = []
    for article in rng.choice(long, TREES).tolist():
        vectors, masses = corpus.sequence(article, LENGTHS[-1])
        tree = random_tree(len(vectors), rng)
        nodes: dict[int, tuple[Floats, float]] = {}
        children: dict[int, list[int]] = {}
        for node in range(len(tree.start) - 1, -1, -1):
            inside = children.pop(node, [])[::-1]
            if inside:
                parts = [nodes.pop(child) for child in inside]
                sums = np.array([mass for _, mass in parts], np.float32)
                nodes[node] = (
                    merger.merge(np.stack([part for part, _ in parts]), masses=sums),
                    float(sums.sum()),
                )
            else:
                place = int(tree.start[node])
                nodes[node] = vectors[place], float(masses[place])
            children.setdefault(int(tree.parent[node]), []).append(node)
        cosines.append(float(nodes[0][0] @ merger.merge(vectors, masses=masses)))
    return {
        "articles": len(long),
        "trees": TREES,
        "mean": round(float(np.mean(cosines)), 4),
        "worst": round(float(np.min(cosines)), 4),
    }


def recognition(merger: SequenceMerger, corpus: Corpus) -> dict[str, float]:
    """Sequence Recognition Sensitivity by medians, which is 0 for a mean.

    How much nearer a merged probe is to merges that begin with it than to merges that begin with it reversed.
    Probe and what follows, from another article, have four chunks each; every probe meets `CONTEXTS` of them.
    """
    rng = np.random.default_rng(SEED)
    long = np.flatnonzero(corpus.lengths >= PROBE)

    def span(article: int) -> Floats:
        start = int(corpus.articles[article]) + int(rng.integers(corpus.lengths[article] - PROBE + 1))
        return corpus.chunks[start : start + PROBE].astype(np.float32)

    gaps = []
    for _ in range(PROBED):
        one, *others = rng.choice(long, 1 + CONTEXTS, replace=False).tolist()
        probe, contexts = span(one), [span(article) for article in others]
        straight = [np.concatenate([probe, context]) for context in contexts]
        turned = [np.concatenate([probe[::-1], context]) for context in contexts]
        own, *rest = merger.merge_many([probe, *straight, *turned])
        cosines = np.stack(rest) @ own
        gaps.append(separation(cosines[:CONTEXTS], cosines[CONTEXTS:], "q2q2"))
    error = float(np.std(gaps) / np.sqrt(PROBED))
    return {"mean": round(float(np.mean(gaps)), 5), "error": round(error, 5)}


def passages(mergers: Mapping[str, SequenceMerger], corpus: Corpus) -> dict[str, Any]:
    """nDCG@10 of the right window of 2 to 10 chunks by a few words from its inside; the teacher's as well.

    What the teacher's vectors find is what a merger finds that hits them exactly.
    """
    starts, counts = corpus.window_start, corpus.window_count
    gold = np.searchsorted(starts, corpus.query_chunk, side="right") - 1
    inside = (corpus.query_kind == SPAN) & (gold >= 0)
    inside &= corpus.query_chunk < (starts + counts)[gold]
    gold, queries = gold[inside], corpus.queries[inside].astype(np.float32)
    rows = [slice(int(start), int(start + count)) for start, count in zip(starts, counts, strict=True)]
    sequences = [corpus.chunks[part].astype(np.float32) for part in rows]
    masses = [corpus.tokens[part] for part in rows]
    found = {name: merger.merge_many(sequences, masses=masses) for name, merger in mergers.items()}
    found["teacher"] = corpus.windows.astype(np.float32)
    relevant = gold[:, None] == np.arange(len(rows))
    result: dict[str, Any] = {"windows": len(rows), "queries": len(gold)}
    for name, vectors in found.items():
        gains = ndcg10_each(queries @ vectors.T, relevant)
        error = float(gains.std() / np.sqrt(len(gains)))
        result[name] = [round(float(gains.mean()), 4), round(error, 4)]
    return result


def openings(articles: list[Article], corpus: Corpus) -> Floats:
    """(a, d): the teacher's vectors of the first ten chunks of the articles that `lengths` takes.

    Where ten do not lie within its context, of as many as do.
    """
    base = open_base()
    chunker = SentenceChunker(ShardSettings().chunk_tokens, base.count_tokens)
    by_id = {article.id: article.text for article in articles}
    texts = []
    for article in long_enough(corpus):
        text = by_id[corpus.ids[article]]
        chunks = [chunk for chunk in chunker.split(text) if chunk.tokens <= base.room][:PROBES]
        while base.count_tokens(text[chunks[0].start : chunks[-1].end]) > base.room:
            chunks.pop()
        texts.append(text[chunks[0].start : chunks[-1].end])
    return base.embed(texts)


def long_enough(corpus: Corpus) -> list[int]:
    """The articles that `lengths` takes."""
    found: list[int] = np.flatnonzero(corpus.lengths >= LENGTHS[-1]).tolist()
    return found


def lengths(mergers: Mapping[str, SequenceMerger], corpus: Corpus, teacher: Floats) -> dict[str, Any]:
    """Cosine of merged passages of each of `LENGTHS` with their first ten chunks, each chunk's mean.

    ``tree`` merges as `merge` does; ``chain`` merges what there is with the next chunk, one after another.
    The row `IDEAL` is a merger that arrives at the teacher's vector of the first ten chunks exactly, and goes
    on from there as the mean.
    """
    sequences = [corpus.sequence(article, LENGTHS[-1]) for article in long_enough(corpus)]
    first = np.stack([vectors[:PROBES] for vectors, _ in sequences])
    first /= np.linalg.norm(first, axis=2, keepdims=True)
    begun = [
        (np.concatenate([[root], vectors[PROBES:]]), np.append(masses[:PROBES].sum(), masses[PROBES:]))
        for root, (vectors, masses) in zip(teacher, sequences, strict=True)
    ]
    found: dict[str, Any] = {"articles": len(sequences)}
    for name, merger in (*mergers.items(), (IDEAL, MeanMerger())):
        ready = begun if name == IDEAL else sequences
        less = PROBES - 1 if name == IDEAL else 0
        chains = chained(merger, ready, [length - less for length in LENGTHS])
        for length in LENGTHS:
            roots = merger.merge_many(
                [vectors[: length - less] for vectors, _ in ready],
                masses=[part[: length - less] for _, part in ready],
            )
            for way, merged in (("tree", roots), ("chain", chains[length - less])):
                cosines = np.einsum("apd,ad->ap", first, merged).mean(axis=0)
                row = found.setdefault(way, {}).setdefault(str(length), {})
                row[name] = {
                    "mean": round(float(cosines.mean()), 4),
                    "least": round(float(cosines.min()), 4),
                    "each": [round(float(value), 4) for value in cosines],
                }
    return found


def chained(
    merger: SequenceMerger, sequences: list[tuple[Floats, Floats]], lengths: Sequence[int]
) -> dict[int, Floats]:
    """Roots at each of these lengths where every vector is merged with the root of all before."""
    roots = [vectors[0] for vectors, _ in sequences]
    held = [float(masses[0]) for _, masses in sequences]
    kept: dict[int, Floats] = {1: np.stack(roots)}
    for place in range(1, max(lengths)):
        pairs = [
            np.stack([root, vectors[place]]) for root, (vectors, _) in zip(roots, sequences, strict=True)
        ]
        masses = [
            np.array([sum_, part[place]], np.float32) for sum_, (_, part) in zip(held, sequences, strict=True)
        ]
        roots = list(merger.merge_many(pairs, masses=masses))
        held = [float(part.sum()) for part in masses]
        if place + 1 in lengths:
            kept[place + 1] = np.stack(roots)
    return kept


def retrieval(name: str, data: Path, synthesizer: SequenceMerger) -> dict[str, Any]:
    """nDCG@10 of the right document, one vector each, raw query vectors; the mean's rows first."""
    task = load_task(name, data)
    sequences, masses = task.sequences(), task.sequence_masses()
    calibrated = load_merger().calibrated(sequences)
    roots = {
        "truncation": task.truncated,
        "mean": MeanMerger().merge_many(sequences, masses=masses),
        "calibrated, at once": calibrated.merge_many(sequences, masses=masses),
        "calibrated, tree": tree_roots(task, calibrated),
        "synthesizer": synthesizer.merge_many(sequences, masses=masses),
    }
    roots["calibrated + synthesizer"] = roots["calibrated, tree"] + roots["synthesizer"]
    roots["calibrated + mean"] = roots["calibrated, tree"] + roots["mean"]
    gold = task.gold
    relevant = gold[:, None] == np.arange(task.documents)
    best = ndcg10_each(task.queries @ roots["calibrated, at once"].T, relevant)
    result: dict[str, Any] = {
        "documents": task.documents,
        "queries": len(gold),
        "ndcg@10": {},
        "against calibrated": {},
    }
    for key, vectors in roots.items():
        scores = task.queries @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
        result["ndcg@10"][key] = round(ndcg10(scores, gold), 4)
        difference = ndcg10_each(scores, relevant) - best
        error = float(difference.std() / np.sqrt(len(difference)))
        result["against calibrated"][key] = [round(float(difference.mean()), 4), round(error, 4)]
    return result


def speed(synthesizer: SequenceMerger, corpus: Corpus) -> dict[str, Any]:
    """Milliseconds a thousand merges of ten chunks, each merger's best of five in turns."""
    count = min(len(corpus.chunks) // 10, 1_000)
    sequences = np.split(corpus.chunks[: 10 * count].astype(np.float32), count)
    mergers = {"mean": MeanMerger(), "calibrated": load_merger(), "synthesizer": synthesizer}
    best = dict.fromkeys(mergers, np.inf)
    for _ in range(6):
        for name, merger in mergers.items():
            began = time.perf_counter()
            merger.merge_many(sequences)
            best[name] = min(best[name], time.perf_counter() - began)
    scale = 1e6 / len(sequences)
    return {
        "ms_per_1000": {name: round(seconds * scale, 2) for name, seconds in best.items()},
        "chunks_per_second": {name: round(10 * len(sequences) / seconds) for name, seconds in best.items()},
    }


def rounded(found: Figures) -> dict[str, Any]:
    """The figures, to four digits."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): short(inner) for key, inner in value.items()}
        return round(value, 4)

    return {key: short(value) for key, value in found.to_dict().items()}


if __name__ == "__main__":
    main()
