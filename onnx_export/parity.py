"""``python -m onnx_export parity``: the bundled embedder against the float32 torch model, on real texts."""

import gzip
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from merger_plugins._artefact import CARD, open_artefact
from merger_plugins._session import CPU, Session, SessionConfig, create_session
from merger_plugins.embedders import minilm
from merger_plugins.embedders.minilm import MiniLMEmbedder
from onnx_export.card import embedder_card
from onnx_export.reference import TEXTS
from onnx_export.source import SHA256, Source

LIMIT = MiniLMEmbedder.max_tokens
_EDGES = ((1, 8), (9, 32), (33, 128), (129, LIMIT - 2))
_BUDGETS = (1024, 4096)
_ROUNDS = 10
_ATTEMPTS = 1000


@dataclass(frozen=True)
class Sample:
    """A passage of a real text.

    Attributes:
        text: the passage.
        ids: its token ids by the original tokenizer, the special ones included.
    """

    text: str
    ids: list[int]

    @property
    def tokens(self) -> int:
        """Number of tokens without the special ones."""
        return len(self.ids) - 2


class Original:
    """The torch model in float32, with mean pooling and unit length."""

    def __init__(self, source: Source) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(source.folder)
        self._model = AutoModel.from_pretrained(source.folder).float().eval()

    def tokenize(self, text: str, *, truncate: bool = True) -> list[int]:
        """Token ids with the special ones, up to 512 of them where truncated."""
        ids: list[int] = self._tokenizer(text, truncation=truncate, max_length=LIMIT, verbose=False)[
            "input_ids"
        ]
        return ids

    def cut(self, text: str, tokens: int) -> str:
        """The part of a text that its first `tokens` tokens cover."""
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoding["offset_mapping"][:tokens]
        return text[: offsets[-1][1]] if offsets else ""

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """(b, t), (b, t) -> (b, 384)."""
        with torch.inference_mode():
            kept = torch.from_numpy(mask)
            states = self._model(input_ids=torch.from_numpy(ids), attention_mask=kept).last_hidden_state
            mean = (states * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
            vectors: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    def embed(self, sequences: Iterable[list[int]]) -> NDArray[np.float32]:
        """One run a sequence, so that nothing is ever padded."""
        return np.concatenate([self.run(*_padded([ids])) for ids in sequences])


def measure(
    source: Source, data: Path, *, results: Path, reference: Path, texts: int, seed: int, threads: int
) -> dict[str, Any]:
    """Compare, and write the result file, the test fixture and the model card.

    Args:
        source: the original model.
        data: a folder of ``*.jsonl.gz`` files whose lines have a ``text``.
        results: where the result file goes.
        reference: where the fixture of `TEXTS` and their torch vectors goes.
        texts: number of passages.
        seed: chooses the passages.
        threads: CPU threads of either side, for the speed.
    """
    torch.set_num_threads(threads)
    original, ours = Original(source), MiniLMEmbedder(threads=threads, providers=(CPU,))
    artefact = open_artefact(minilm.FOLDER)
    session = create_session(artefact.file("model.onnx"), SessionConfig((CPU,), threads))
    tokenizer = Tokenizer.from_buffer(artefact.read("tokenizer.json"))

    files = sorted(data.glob("*.jsonl.gz"))
    documents = [_texts(path) for path in files]
    rng = np.random.default_rng(seed)
    samples = _sample(documents, original, np.geomspace(1, LIMIT - 2, texts).round().astype(int), rng)
    expected = original.embed(sample.ids for sample in samples)
    arranged = _arrangements(ours, session, samples, rng)
    cosines = np.min([np.sum(vectors * expected, axis=1) for vectors in arranged.values()], axis=0)
    spread = max(float(np.abs(vectors - arranged["alone"]).max()) for vectors in arranged.values())
    lengths = np.array([sample.tokens for sample in samples])
    long = _sample(documents, original, rng.integers(LIMIT, 2 * LIMIT, 50), rng)
    truncated = ours.embed_documents([sample.text for sample in long])
    truncated_expected = original.embed(original.tokenize(sample.text) for sample in long)

    result = {
        "what": "merger_plugins all-MiniLM-L6-v2 (8 bits, ONNX) against the float32 torch model",
        "command": f"python -m onnx_export parity --texts {texts} --seed {seed} --threads {threads}",
        "fingerprint": artefact.fingerprint,
        "bytes": sum(path.stat().st_size for path in artefact.path.iterdir() if path.name != CARD),
        "source_sha256": SHA256,
        "seed": seed,
        "data": [
            {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in files
        ],
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "cosine": _summary(cosines),
        "by_length": [
            {"tokens": f"{low} to {high}", **_summary(cosines[(lengths >= low) & (lengths <= high)])}
            for low, high in _EDGES
        ],
        "by_file": {path.name: _summary(cosines[number :: len(files)]) for number, path in enumerate(files)},
        "truncated": _summary(np.sum(truncated * truncated_expected, axis=1)),
        "batching": {"ways": list(arranged), "largest_difference": spread},
        "tokenizer": {
            "texts": len(samples),
            "identical": sum(tokenizer.encode(sample.text).ids == sample.ids for sample in samples),
        },
        "throughput": _throughput(original, session, samples, threads),
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "machine": platform.machine()},
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("numpy", "torch", "transformers", "onnxruntime", "tokenizers")
            },
        },
    }
    _write(results, json.dumps(result, indent=2) + "\n")
    vectors = original.embed(original.tokenize(text) for text in TEXTS)
    fixture = {
        "source_sha256": SHA256,
        "texts": TEXTS,
        "vectors": [[round(float(value), 5) for value in vector] for vector in vectors],
    }
    _write(reference, json.dumps(fixture, ensure_ascii=False) + "\n")
    _write(minilm.FOLDER / "README.md", embedder_card(result))
    return result


def _texts(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _sample(
    documents: Sequence[Sequence[str]], original: Original, lengths: Iterable[int], rng: np.random.Generator
) -> list[Sample]:
    """Passages of exactly the wanted lengths in tokens, from random places, each file used equally often."""
    samples = []
    for number, length in enumerate(rng.permutation(list(lengths)).tolist()):
        candidates = documents[number % len(documents)]
        for _ in range(_ATTEMPTS):
            document = candidates[int(rng.integers(len(candidates)))]
            start = document.find(" ", int(rng.integers(len(document)))) + 1
            text = original.cut(document[start : start + 12 * length + 20], length)
            ids = original.tokenize(text, truncate=False)
            # A document can be too short, and a word that was cut can be tokenised in another way.
            if len(ids) - 2 == length:
                samples.append(Sample(text, ids))
                break
        else:
            raise SystemExit(f"File {number % len(documents)} of the data has no passage of {length} tokens.")
    return samples


def _arrangements(
    ours: MiniLMEmbedder, session: Session, samples: Sequence[Sample], rng: np.random.Generator
) -> dict[str, NDArray[np.float32]]:
    """The same texts alone, in batches of similar length, and in batches of any length padded to 512."""
    mixed = np.empty((len(samples), ours.dimension), np.float32)
    for rows in np.array_split(rng.permutation(len(samples)), -(-len(samples) // 8)):
        ids, mask = _padded([samples[row].ids for row in rows], LIMIT)
        mixed[rows] = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    return {
        "alone": np.stack([ours.embed_query(sample.text) for sample in samples]),
        "similar lengths": ours.embed_documents([sample.text for sample in samples]),
        "any lengths, padded to 512": mixed,
    }


def _throughput(
    original: Original, session: Session, samples: Sequence[Sample], threads: int
) -> dict[str, Any]:
    """Tokens a second of both models over the same padded batches.

    The two take turns batch by batch, and of each batch's rounds the fastest counts, so that whatever else
    the machine does falls on both alike and mostly drops out. Either side gets its better batch size.
    """

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> object:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})

    figures = {}
    for name, sequences in {
        "chunks of 50 tokens": [[*s.ids[:51], s.ids[-1]] for s in samples if len(s.ids) >= 52][:120],
        "passages of 1 to 510 tokens": [s.ids for s in samples][:120],
    }.items():
        fastest = dict.fromkeys(("ours", "torch"), float("inf"))
        for budget in _BUDGETS:
            seconds = dict.fromkeys(fastest, 0.0)
            for rows in minilm.similar_lengths([len(ids) for ids in sequences], budget):
                batch = _padded([sequences[row] for row in rows])
                turns = [(_time(run, *batch), _time(original.run, *batch)) for _ in range(_ROUNDS)]
                for side, taken in zip(seconds, zip(*turns, strict=True), strict=True):
                    seconds[side] += min(taken)
            fastest = {side: min(fastest[side], seconds[side]) for side in fastest}
        tokens = sum(map(len, sequences))
        rates = {side: round(tokens / taken) for side, taken in fastest.items()}
        figures[name] = {
            "sequences": len(sequences),
            **rates,
            "ratio": round(fastest["torch"] / fastest["ours"], 3),
        }
    return {
        "threads": threads,
        "batch_tokens": _BUDGETS,
        "rounds": _ROUNDS,
        "load_average": os.getloadavg(),
        "texts": figures,
    }


def _time(run: Callable[..., object], ids: NDArray[np.int64], mask: NDArray[np.int64]) -> float:
    start = time.perf_counter()
    run(ids, mask)
    return time.perf_counter() - start


def _padded(sequences: Sequence[list[int]], width: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ids = np.zeros((len(sequences), max(width, *map(len, sequences))), np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask


def _summary(cosines: NDArray[np.float32]) -> dict[str, Any]:
    return {
        "texts": len(cosines),
        "min": round(float(cosines.min()), 6),
        "mean": round(float(cosines.mean()), 6),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
