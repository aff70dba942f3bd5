"""Speed beside rivals, the roofline and the curves of `benchmarks.scaling`: a function each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Floats
from benchmarks.scaling_data import DIMENSION, SEED, calibrated, documents, least, medians
from merger_plugins import CalibratedMerger, MeanMerger, RollingMerge, load_embedder, load_merger
from merger_plugins._batching import ITEMS_PER_BATCH, ragged, unit
from merger_plugins._session import default_threads
from merger_plugins.chunking import SentenceChunker
from merger_plugins.mergers.loading import SYNTHESIZER, bundled
from merger_plugins.mergers.onnx import OnnxMerger
from merger_plugins.tree import frontier

CORPUS = Path(__file__).resolve().parents[1] / "merger_plugins" / "demo" / "corpus"
KINDS = {"sections, 1 to 10 chunks": (1, 10), "documents, 1 to 40 chunks": (1, 40)}
KINDS["long documents, 20 to 200 chunks"] = (20, 200)
LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)
DIMENSIONS = (384, 768, 1_024, 1_536, 3_072)
TURNS = (1_000, 10_000, 100_000, 1_000_000)


def beside_rivals(vectors: int) -> dict[str, Any]:
    """Chunk vectors a second of mergers and of what is used in their place, in one process, run in turn."""
    figures: dict[str, Any] = {}
    for kind, (shortest, longest) in KINDS.items():
        sequences = documents(vectors, shortest, longest)
        count = sum(map(len, sequences))
        seconds = medians(_rivals(sequences), rounds=5)
        plain = seconds["numpy: mean of each in a loop"]
        figures[kind] = {
            name: {"vectors a second": round(count / taken), "times numpy's mean": round(taken / plain, 3)}
            for name, taken in seconds.items()
        }
    figures["re-embedding"] = re_embedding()
    return figures


def _rivals(sequences: list[Floats]) -> dict[str, Callable[[], object]]:
    merger, mean = calibrated(sequences), MeanMerger()
    masses = [np.full(len(sequence), 50.0, np.float32) for sequence in sequences]
    as_lists = [sequence.tolist() for sequence in sequences]
    starts = np.cumsum([0, *map(len, sequences[:-1])])
    laid_out = np.concatenate(sequences)

    def numpy_mean() -> Floats:
        return unit(np.stack([sequence.mean(axis=0) for sequence in sequences]))

    def numpy_mean_laid_out() -> Floats:
        return unit(np.add.reduceat(laid_out, starts, axis=0))

    def weighted(rows: list[Any]) -> list[list[float]]:
        made = []
        for chunks, weights in zip(rows, masses, strict=True):
            average = np.average(chunks, axis=0, weights=weights)
            made.append((average / np.linalg.norm(average)).tolist())
        return made

    works: dict[str, Callable[[], object]] = {
        "numpy: mean of each in a loop": numpy_mean,
        "numpy: means of vectors laid end to end": numpy_mean_laid_out,
        "weighted mean of long inputs, as langchain-openai's arithmetic, arrays": lambda: weighted(sequences),
        "the same on lists of floats, as an API answers": lambda: weighted(as_lists),
        **_torch_rivals(sequences),
        "mean merger, merge_many": lambda: mean.merge_many(sequences),
        "calibrated merger, merge_many": lambda: merger.merge_many(sequences),
    }
    return works


def _torch_rivals(sequences: list[Floats]) -> dict[str, Callable[[], object]]:
    import torch

    longest = max(map(len, sequences))
    # Ready-made batches of at most about 50 MB, of similar lengths, as a pooling layer is given them.
    ordered = sorted(sequences, key=len)
    at_once = max(32_768 // longest, 1)
    padded = []
    for start in range(0, len(ordered), at_once):
        some = [torch.from_numpy(sequence) for sequence in ordered[start : start + at_once]]
        vectors = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
        counts = torch.tensor([len(sequence) for sequence in some])
        padded.append((vectors, (torch.arange(vectors.shape[1]) < counts[:, None]).long()))
    tensors = [torch.from_numpy(sequence) for sequence in sequences]

    @torch.inference_mode()
    def loop() -> object:
        means = torch.stack([tensor.mean(0) for tensor in tensors])
        return torch.nn.functional.normalize(means, dim=1)

    @torch.inference_mode()
    def pooling() -> object:
        made = []
        for vectors, mask in padded:
            wide = mask.unsqueeze(-1).expand(vectors.shape).float()
            pooled = (vectors * wide).sum(1) / wide.sum(1).clamp(min=1e-9)
            made.append(torch.nn.functional.normalize(pooled, dim=1))
        return torch.cat(made)

    return {
        "torch: mean of each in a loop": loop,
        "torch: masked mean pooling of ready-made padded batches, as sentence-transformers'": pooling,
    }


def re_embedding() -> dict[str, float]:
    """The demo's chunks through the bundled embedder: tokens and chunks a second."""
    texts = demo_chunks()
    embedder = load_embedder()
    tokens = sum(map(embedder.count_tokens, texts))
    seconds = medians({"embed": lambda: embedder.embed_documents(texts)}, rounds=3)["embed"]
    return {"tokens a second": round(tokens / seconds), "chunks a second": round(len(texts) / seconds)}


def demo_chunks() -> list[str]:
    """The chunks of the demo's documents."""
    files = sorted(file for file in CORPUS.iterdir() if file.suffix in (".md", ".txt"))
    splitter = SentenceChunker()
    return [chunk.text for file in files for chunk in splitter.split(file.read_text(encoding="utf-8"))]


def machine() -> dict[str, float]:
    """What this machine reaches: the best of several runs of a large product and of large copies."""
    side = 3_072
    rng = np.random.default_rng(SEED)
    left, right = rng.standard_normal((2, side, side), dtype=np.float32)
    product = np.empty_like(left)
    seconds = least(lambda: np.matmul(left, right, out=product), rounds=5)
    source, target = rng.standard_normal((2, 64_000_000), dtype=np.float32)

    def copy() -> None:
        cuts = np.linspace(0, len(source), default_threads() + 1).astype(int)
        parts = [slice(*cut) for cut in pairwise(cuts)]
        threads = [threading.Thread(target=np.copyto, args=(target[p], source[p])) for p in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return {
        "matrix GFLOP/s": round(2 * side**3 / seconds / 1e9, 1),
        "memory GB/s": round(2 * source.nbytes / least(copy, rounds=5) / 1e9, 1),
        "threads": default_threads(),
    }


def roofline(vectors: int) -> dict[str, Any]:
    """The stages of a calibrated `merge_many`: time, operations, bytes, and the share of what is attainable.

    Attainable is the smaller of the matrix rate and of bandwidth times operations a byte; peaks are the best
    of several runs before and after the stages, the stages' times medians. Bytes are those that a stage
    cannot do without: its input read once, its output written once.
    """
    sequences = documents(vectors, *KINDS["documents, 1 to 40 chunks"])
    merger = calibrated(sequences)
    before = machine()
    laid_out = ragged(sequences)
    ready = merger._ready(laid_out.vectors)
    prepared = type(laid_out)(ready, laid_out.masses, laid_out.lengths, laid_out.rows)
    roots = np.stack([sequence[0] for sequence in sequences])
    seconds = medians(
        {
            "whole": lambda: merger.merge_many(sequences),
            "check and lay out": lambda: ragged(sequences),
            "whiten": lambda: [merger._ready(part.vectors) for part in laid_out.parts(ITEMS_PER_BATCH)],
            "solve and map back": lambda: merger._merge_ready(prepared),
            "of which map back": lambda: merger._out(roots),
        },
        rounds=9,
    )
    after = machine()
    peak = max(before["matrix GFLOP/s"], after["matrix GFLOP/s"])
    bandwidth = max(before["memory GB/s"], after["memory GB/s"])
    d, count, merged = DIMENSION, len(ready), len(sequences)
    matrix = 4 * d * d
    grams = float(2 * d * (laid_out.lengths.astype(np.float64) ** 2).sum())
    work = {
        "check and lay out": (2.0 * d * count, 8.0 * d * count),
        "whiten": (2.0 * d * d * count + 8 * d * count, 8.0 * d * count + matrix),
        "solve and map back": (grams + 2.0 * d * d * merged, 4.0 * d * (count + merged) + matrix),
        "of which map back": (2.0 * d * d * merged, 8.0 * d * merged + matrix),
    }
    stages = {}
    for name, (operations, moved) in work.items():
        attainable = min(peak, bandwidth * operations / moved)
        reached = operations / seconds[name] / 1e9
        stages[name] = {
            "ms": round(1e3 * seconds[name], 2),
            "share of merge_many": round(seconds[name] / seconds["whole"], 3),
            "operations a vector": round(operations / count),
            "bytes a vector": round(moved / count),
            "GFLOP/s": round(reached, 1),
            "attainable GFLOP/s": round(attainable, 1),
            "share of the roofline": round(reached / attainable, 3),
        }
    dominant = max((name for name in stages if " of " not in f" {name}"), key=lambda n: seconds[n])
    whole = sum(operations for name, (operations, _) in work.items() if not name.startswith("of "))
    return {
        "vectors": count,
        "matrix GFLOP/s": peak,
        "memory GB/s": bandwidth,
        "merge_many, vectors a second": round(count / seconds["whole"]),
        "merge_many, share of the matrix rate": round(whole / seconds["whole"] / 1e9 / peak, 3),
        "dominant stage": dominant,
        "stages": stages,
    }


def curves(scale: float) -> dict[str, Any]:
    """How time grows with documents, with chunks a document and with the dimension."""
    return {
        "documents": _by_documents(scale),
        "chunks a document": _by_length(int(40_000 * scale)),
        "dimension": _by_dimension(int(20_000 * scale)),
    }


def _by_documents(scale: float) -> dict[str, Any]:
    found = {}
    everything = documents(int(400_000 * scale), 1, 40)
    merger = calibrated(everything[:2_000])
    for count in (10, 100, 1_000, 10_000, len(everything)):
        some = everything[:count]
        rounds = 15 if count < 1_000 else 3
        seconds = medians({"": lambda some=some: merger.merge_many(some)}, rounds=rounds)[""]
        found[len(some)] = {"seconds": seconds, "vectors a second": round(sum(map(len, some)) / seconds)}
    return found


def _by_length(vectors: int) -> dict[str, Any]:
    found = {}
    merger = calibrated(documents(20_000, 1, 40))
    for length in LENGTHS:
        sequences = documents(max(vectors, length), length, length)
        count = length * len(sequences)

        def tree(sequences: list[Floats] = sequences) -> None:
            for sequence in sequences:
                rolling = RollingMerge(merger, history=False)
                rolling.extend(sequence)
                rolling.vector  # noqa: B018

        works: dict[str, Callable[[], object]] = {
            "merge_many": lambda sequences=sequences: merger.merge_many(sequences)
        }
        if length >= 50:
            works["tree, one document at a time"] = tree
        seconds = medians(works, rounds=3)
        found[length] = {name: round(count / taken) for name, taken in seconds.items()}
    return found


def _by_dimension(vectors: int) -> dict[str, Any]:
    found = {}
    for dimension in DIMENSIONS:
        sequences = documents(vectors, 1, 40, dimension=dimension)
        count = sum(map(len, sequences))
        made: list[CalibratedMerger] = []

        def calibrate(sequences: list[Floats] = sequences, made: list[CalibratedMerger] = made) -> None:
            made.append(calibrated(sequences))

        calibrating = medians({"": calibrate}, rounds=1)[""]
        merger = made[-1]
        laid_out = np.concatenate(sequences)
        product = np.empty_like(laid_out)
        seconds = medians(
            {
                "merge": lambda merger=merger, sequences=sequences: merger.merge_many(sequences),
                "product": lambda merger=merger, laid_out=laid_out, product=product: np.matmul(
                    laid_out, merger._whitening, out=product
                ),
            },
            rounds=3,
        )
        found[dimension] = {
            "vectors a second": round(count / seconds["merge"]),
            "whitening product alone, vectors a second": round(count / seconds["product"]),
            "calibrating, seconds": round(calibrating, 2),
        }
    return found


def turns(most: int) -> dict[str, Any]:
    """A rolling merge of each kind, resumed from its state at several lengths: one append and one root."""
    lengths = [turn for turn in TURNS if turn <= most]
    return {
        name: _turns(load_merger(merger), lengths)
        for name, merger in (("mean", "mean"), ("calibrated", None))
    }


def _turns(merger: Any, lengths: list[int]) -> dict[str, Any]:
    if isinstance(merger, CalibratedMerger):
        merger = calibrated(documents(20_000, 1, 40))
    most = lengths[-1]

    def nodes(places: int) -> int:
        return sum(stop - start for start, stop in frontier(places, merger.fanout, lazy=merger._lazy_carry))

    worst = max(range(1, most + 1), key=nodes)
    block = documents(10_000, 10_000, 10_000)[0]
    rolling = RollingMerge(merger, history=False)
    states: dict[int, bytes] = {}
    compact: dict[int, bytes] = {}
    for stop in sorted({*lengths, worst}):
        while rolling.places < stop:
            rolling.extend(block[: stop - rolling.places])
        states[stop], compact[stop] = rolling.state, rolling.compact_state
    rounded = merger.rolling(compact[most]).vector @ merger.rolling(states[most]).vector
    resumed = {length: merger.rolling(states[length]) for length in lengths}

    def step(length: int) -> None:
        for vector in block[:100]:
            resumed[length].append(vector)
            resumed[length].vector  # noqa: B018

    seconds = medians({str(length): lambda length=length: step(length) for length in lengths}, rounds=9)
    micro = {length: round(1e6 * seconds[str(length)] / 100, 1) for length in lengths}
    return {
        "microseconds an append and a root": micro,
        "last over first": round(micro[most] / micro[lengths[0]], 3),
        "state, bytes": {length: len(states[length]) for length in lengths},
        "largest state, bytes": len(states[worst]),
        "largest state, at turn": worst,
        "largest compact state, bytes": len(compact[worst]),
        "cosine of the roots of the compact and the plain state": float(rounded),
    }


def synthesizer(vectors: int) -> dict[str, Any]:
    """The shipped synthesizer beside bare ONNX Runtime sessions that get the same batches ready-made."""
    import onnxruntime

    merger = load_merger(SYNTHESIZER)
    assert isinstance(merger, OnnxMerger)
    sequences = documents(vectors, 1, 10)
    count = sum(map(len, sequences))
    fed: list[dict[str, Any]] = []
    call = merger._call

    def recording(batch: Any, mask: Any, masses: Any) -> Any:
        fed.append({"vectors": batch.copy(), "mask": mask.copy(), "masses": masses.copy()})
        return call(batch, mask, masses)

    merger._call = recording  # type: ignore[method-assign]
    merger.merge_many(sequences)
    merger._call = call  # type: ignore[method-assign]
    model = str(bundled(SYNTHESIZER) / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = default_threads()
    bare = {
        "bare session, its defaults": onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]),
        "bare session, our threads": onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        ),
    }
    works: dict[str, Callable[[], object]] = {"merge_many": lambda: merger.merge_many(sequences)}
    for name, session in bare.items():
        works[name] = lambda session=session: [session.run(["merged"], feed) for feed in fed]
    seconds = medians(works, rounds=5)
    quickest = min(seconds[name] for name in bare)
    return {
        "fingerprint": merger.fingerprint,
        "vectors": count,
        "batches": len(fed),
        "vectors a second": {name: round(count / taken) for name, taken in seconds.items()},
        "share of the bare session": round(quickest / seconds["merge_many"], 3),
    }
