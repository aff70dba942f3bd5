"""What a GPU makes of the synthesizer, of the largest networks and of the embedder.

Run ``python -m benchmarks.gpu`` on a machine with an NVIDIA GPU, with the extras ``gpu`` and ``train`` (of
onnxruntime and onnxruntime-gpu only the latter). Measured are: the shipped synthesizer on CUDA, as it is and
in mixed precision, beside two threads of the same machine's processor, its results beside the processor's,
which provider runs which part of it, and what happens where memory runs out; the bundled embedder, alone and
with the synthesizer on the device, beside the way through the processor's memory; and, in torch, the network
``card-137m`` in float16 with 4,096 sequences of ten vectors, beside the matrix rate of a large product in the
same run. Writes benchmarks/results/gpu.json. Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.common import write_result
from benchmarks.scaling_data import DIMENSION, SEED, documents, medians
from benchmarks.scaling_parts import demo_chunks
from merger_plugins import load_embedder, load_merger
from merger_plugins._session import CPU, CUDA
from merger_plugins.embedders import MiniLMEmbedder
from merger_plugins.mergers.graphs import MODEL
from merger_plugins.mergers.loading import SYNTHESIZER
from merger_plugins.mergers.onnx import OnnxMerger
from merger_plugins.on_device import TextMerger
from merger_plugins.training.export import narrowed, serialised

VECTORS = 2_000_000
ON_CPU = 20_000
BATCH, WINDOW = 4_096, 10
NETWORK = "card-137m"
SIDE = 8_192

BARS = {
    "synthesizer, times two threads of the processor": 50.0,
    f"{NETWORK}, share of the matrix rate": 0.3,
}


def missing() -> str | None:
    """Why nothing can be measured here; None where there is a GPU."""
    import onnxruntime
    import torch

    reasons = []
    if not torch.cuda.is_available():
        reasons.append(f"torch {torch.__version__} finds no GPU")
    if CUDA not in (offered := onnxruntime.get_available_providers()):
        reasons.append(f"ONNX Runtime {onnxruntime.__version__} offers {', '.join(offered)}")
    return " and ".join(reasons) or None


def synthesizer() -> dict[str, Any]:
    """Vectors a second on CUDA and on two threads of the processor; results, operators, memory."""
    on_gpu, on_cpu = (
        load_merger(SYNTHESIZER, providers=(CUDA, CPU)),
        load_merger(SYNTHESIZER, providers=(CPU,), threads=2),
    )
    assert isinstance(on_gpu, OnnxMerger)
    many, few = documents(VECTORS, 1, WINDOW), documents(ON_CPU, 1, WINDOW)
    with tempfile.TemporaryDirectory() as scratch:
        mixed = in_mixed_precision(on_gpu, Path(scratch), (CUDA, CPU))
        difference = float(np.abs(on_gpu.merge_many(few) - on_cpu.merge_many(few)).max())
        difference_mixed = float(np.abs(mixed.merge_many(few) - on_cpu.merge_many(few)).max())
        mixed_rate = sum(map(len, many)) / medians({"": lambda: mixed.merge_many(many)}, rounds=3)[""]
    rates = {
        "CUDA, mixed precision": mixed_rate,
        "CUDA": sum(map(len, many)) / medians({"": lambda: on_gpu.merge_many(many)}, rounds=3)[""],
        "two threads": sum(map(len, few)) / medians({"": lambda: on_cpu.merge_many(few)}, rounds=3)[""],
    }
    return {
        "fingerprint": on_gpu.fingerprint,
        "vectors a second": {name: round(rate) for name, rate in rates.items()},
        "times": round(rates["CUDA"] / rates["two threads"], 1),
        "largest difference of a number": difference,
        "the same in mixed precision": difference_mixed,
        "providers": list(on_gpu.providers),
        "operators": on_gpu.placement(),
        "vectors in one run": on_gpu._items_per_run,
        "where memory runs out": without_memory(on_gpu, many),
    }


def in_mixed_precision(merger: OnnxMerger, folder: Path, providers: Sequence[str]) -> OnnxMerger:
    """The same graph with its matrix products in float16."""
    path = folder / "mixed.onnx"
    path.write_bytes(serialised(narrowed(onnx.load(merger.path / MODEL), "mixed")))
    return OnnxMerger(path, providers=providers)


def without_memory(merger: OnnxMerger, sequences: list[Any]) -> dict[str, Any]:
    """All at once, though they do not fit: what is said, and how many fit in the end."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("merger_plugins")
    logger.addHandler(handler)
    merger._items_per_run = 1 << 40
    count = 100_000_000 // DIMENSION // WINDOW * 10
    longest = [sequence for sequence in sequences if len(sequence) == WINDOW]
    merged = merger.merge_many([longest[i % len(longest)] for i in range(count)])
    logger.removeHandler(handler)
    return {"sequences": len(merged), "warnings": len(said), "vectors in one run": merger._items_per_run}


def embedder() -> dict[str, float]:
    """Tokens a second of the bundled embedder on CUDA, with larger batches than the processor's."""
    texts = demo_chunks() * 10
    on_gpu = MiniLMEmbedder(providers=(CUDA, CPU), batch_tokens=65_536)
    tokens = sum(map(load_embedder().count_tokens, texts))
    seconds = medians({"": lambda: on_gpu.embed_documents(texts)}, rounds=3)[""]
    return {"tokens a second": round(tokens / seconds)}


def documents_of_texts(providers: Sequence[str] = (CUDA, CPU), times: int = 100) -> dict[str, Any]:
    """Chunks a second from texts to merged vectors, all on a device, and by way of the processor's memory."""
    merger = load_merger(SYNTHESIZER, providers=providers)
    whole = TextMerger(merger, MiniLMEmbedder(providers=providers, batch_tokens=65_536))
    chunks = demo_chunks()
    given = [chunks[start : start + WINDOW] for start in range(0, len(chunks), WINDOW)] * times
    masses = [[max(whole.embedder.count_tokens(text), 1) for text in one] for one in given]

    def by_way_of_the_processor() -> Any:
        vectors = whole.embedder.embed_documents([text for one in given for text in one])
        bounds = np.cumsum([len(one) for one in given])[:-1]
        return merger.merge_many(np.split(vectors, bounds), masses=masses)

    found = whole.merge_many(given)
    seconds = medians(
        {"device": lambda: whole.merge_many(given), "processor": by_way_of_the_processor}, rounds=3
    )
    return {
        "largest difference of a number": float(np.abs(found - by_way_of_the_processor()).max()),
        "chunks a second": {name: round(len(chunks) * times / each) for name, each in seconds.items()},
    }


def network(device: str, *, batch: int = BATCH, side: int = SIDE) -> dict[str, Any]:
    """The network in float16 on a device: operations a second, beside those of a large product."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from merger_plugins.training.network import NAMED, Synthesizer, SynthesizerConfig

    torch.manual_seed(SEED)
    model = Synthesizer(SynthesizerConfig(**NAMED[NETWORK], window=WINDOW)).eval().to(device, torch.float16)
    vectors = torch.randn(batch, WINDOW, model.config.d_model, device=device, dtype=torch.float16)
    vectors /= vectors.norm(dim=-1, keepdim=True)
    mask = torch.ones(batch, WINDOW, device=device, dtype=torch.bool)
    masses = mask.half()
    matrix = torch.randn(side, side, device=device, dtype=torch.float16)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            merged = model(vectors, mask, masses).last_hidden_state
        seconds = on_device(device, lambda: model(vectors, mask, masses))
        peak = 2 * side**3 / on_device(device, lambda: matrix @ matrix)
    reached = counter.get_total_flops() / seconds
    return {
        "network": NETWORK,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": "float16, torch",
        "sequences": batch,
        "finite": bool(torch.isfinite(merged).all()),
        "vectors a second": round(batch * WINDOW / seconds),
        "TFLOP/s": round(reached / 1e12, 2),
        "matrix TFLOP/s": round(peak / 1e12, 2),
        "share of the matrix rate": round(reached / peak, 3),
    }


def on_device(device: str, work: Callable[[], object], *, rounds: int = 20) -> float:
    """Median seconds, the device's work waited for."""
    import torch

    def waited() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    taken = []
    for turn in range(rounds + 3):
        waited()
        began = time.perf_counter()
        work()
        waited()
        if turn >= 3:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> int:
    if reason := missing():
        print(
            f"No GPU here: {reason}. Nothing was measured. On a machine with an NVIDIA GPU: "
            "pip install '.[gpu,train]', pip uninstall onnxruntime, pip install --force-reinstall "
            "onnxruntime-gpu, a build of torch with CUDA, then python -m benchmarks.gpu",
            file=sys.stderr,
        )
        return 2
    import torch

    figures: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "network": network("cuda"),
        "synthesizer": synthesizer(),
        "embedder": embedder(),
        "texts": documents_of_texts(),
    }
    found = dict(
        zip(
            BARS,
            (figures["synthesizer"]["times"], figures["network"]["share of the matrix rate"]),
            strict=True,
        )
    )
    figures["bars"] = {
        name: {"measured": found[name], "bar": f">= {bar:g}", "met": bool(found[name] >= bar)}
        for name, bar in BARS.items()
    }
    print(json.dumps(figures, indent=2))
    print(write_result("gpu", seed=SEED, data={"vectors": "synthetic"}, figures=figures))
    return 0 if all(bar["met"] for bar in figures["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
