"""The public package's scores against ours, and our merger and embedder inside its evaluator."""

# ruff: noqa: E402 - without the package there is nothing to test

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REASON = "finesse-benchmark is installed beside the tests' environment: make finesse-conformance"
package = pytest.importorskip("finesse_benchmark", reason=REASON)

import torch
from finesse_benchmark import cli, scoring

from merger_plugins import MeanMerger, SequenceMerger, load_embedder, load_merger
from merger_plugins.chunking import SentenceChunker
from merger_plugins.finesse import scoring as ours
from merger_plugins.finesse.probes import EmbeddedProbes, Probes, embed_probes
from merger_plugins.finesse.results import verify
from merger_plugins.finesse.run import run_finesse, run_native
from merger_plugins.finesse.settings import FinesseSettings, Indices

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
CORPUS = Path(__file__).parents[2] / "merger_plugins" / "demo" / "corpus"
EXACT = 1e-6
MERGED = 1e-5  # a merger's own promise: what it gives does not depend on its batch beyond that

ENGINES: dict[str, Any] = {}
exec(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0], ENGINES)

Floats = np.ndarray


@pytest.fixture(scope="module")
def chunks() -> list[str]:
    """Chunks of the sample corpus, shuffled."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.[mt]*"))]
    found = [chunk.text for text in texts for chunk in SentenceChunker().split(text) if chunk.tokens >= 20]
    random.Random(0).shuffle(found)
    return found[:300]


@pytest.fixture(scope="module")
def vectors(chunks: list[str]) -> Floats:
    return load_embedder().embed_documents(chunks[:192])


def random_vectors(seed: int, count: int, dimension: int) -> Floats:
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(dimension) * rng.uniform(0, 1)
    return (rng.standard_normal((count, dimension)) + common).astype(np.float32)


def assert_same_scores(syntheses: Floats, singles: Floats) -> None:
    theirs = {
        "chunk_embeddings": list(torch.tensor(singles)),
        "synthesis_embeddings": list(torch.tensor(syntheses)),
    }
    similarity = ours.similarities(syntheses, singles)
    for gap in ours.GAPS:
        written = cli._calculate_rss_scores({len(singles): {"sample_results": [theirs]}}, "merger_mode", gap)
        (scores,) = written["length_scores"].values()
        td, bu = ours.top_down(similarity, gap), ours.bottom_up(similarity, gap)
        assert td == pytest.approx(scores["raw_td"][0], abs=EXACT)
        assert bu == pytest.approx(scores["raw_bu"][0], abs=EXACT)
        # Scaled by 500 and rounded to six digits there.
        assert ours.robust_separation(td, bu) / 500 == pytest.approx(
            scores["rss_scores"][0] / 500, abs=2 * EXACT
        )


@pytest.mark.parametrize("length", [4, 5, 8, 16, 33, 64])
def test_separation_of_random_vectors(length: int) -> None:
    for seed, dimension in enumerate((3, 24, 384, 768)):
        syntheses, singles = np.split(random_vectors(seed, 2 * length, dimension), 2)
        assert_same_scores(syntheses, singles)


@pytest.mark.parametrize("length", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("merger", [MeanMerger(), load_merger()], ids=["mean", "calibrated"])
def test_separation_of_real_vectors(merger: SequenceMerger, length: int, vectors: Floats) -> None:
    for start in (0, length, 2 * length):
        sample = vectors[start : start + length]
        syntheses = merger.merge_many([sample[:stop] for stop in range(1, length + 1)])
        assert_same_scores(syntheses, merger.merge_many(list(sample[:, None])))


def test_order_of_random_and_real_vectors(vectors: Floats) -> None:
    for number, group in enumerate((1, 2, 7, 50)):
        for rows in (random_vectors(number, 2 * group + 1, 96), vectors[: 2 * group + 1]):
            probe, forward, backward = rows[0], rows[1 : group + 1], rows[group + 1 :]
            for gap in ours.GAPS:
                theirs = scoring.calculate_srs_score(
                    *(torch.tensor(probe), list(torch.tensor(forward)), list(torch.tensor(backward))), gap
                )
                assert ours.order_sensitivity(probe, forward, backward, gap) == pytest.approx(
                    theirs, abs=EXACT
                )


def test_position_bias() -> None:
    rng = np.random.default_rng(0)
    lengths = {
        length: [
            {probe: list(rng.normal(0, 30, length - probe + 1)) for probe in range(2, length)}
            for _ in range(3)
        ]
        for length in (4, 7, 12)
    }
    written = {
        length: {"sample_results": [{str(probe): row for probe, row in sample.items()} for sample in samples]}
        for length, samples in lengths.items()
    }
    assert ours.position_bias(lengths.items()) == pytest.approx(cli._calculate_pbi(written), abs=EXACT)


def test_latency_is_counted_alike() -> None:
    counted = scoring.calculate_sample_latency("merger_mode", [3.0, 4.0, 5.0], [0.0, 1.0, 2.0])
    # Every chunk embedded and seen through the merger, then the last synthesis; of that, the synthesis.
    assert counted == {"total_latency": 14.0, "synthesis_latency": 2.0}


# -- inside the evaluator ----------------------------------------------------------------------------------


class RecordingEmbedder(ENGINES["Embedder"]):
    """Our embedder, which keeps the texts that it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: list[str]) -> torch.Tensor:
        self.texts += texts
        return super().encode(texts)


@dataclass(frozen=True)
class DrawnThere(FinesseSettings):
    """Settings whose samples are those that the evaluator drew, not our own."""

    rows: tuple[list[Indices], ...] = field(default=(), compare=False)

    def draw(self, probes: int, length: int) -> list[Indices]:
        rows = self.rows[self.lengths.index(length)]
        assert max(map(max, rows)) < probes
        return rows

    def draw_order(self, probes: int, length: int) -> list[tuple[Indices, Indices]]:
        rows = self.rows[self.order_lengths.index(length)]
        assert max(map(max, rows)) < probes
        return [(row[: length - 1], row[length - 1 :].reshape(self.order_group, -1)) for row in rows]


LENGTHS, SAMPLES, GROUP, TOKENS = (4, 5, 6), 2, 3, 12


def evaluator(mode: str, chunks: Sequence[str], folder: Path) -> tuple[Any, RecordingEmbedder]:
    """The public evaluator with our engines, on these texts."""
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in chunks), encoding="utf-8")
    model = {"name": "ours", "pool_type": "mean", "max_context_length": 512}
    config = package.BenchmarkConfig.model_validate(
        {
            "mode": mode,
            "models": {"merger": model, "base_embedder": model, "native_embedder": model},
            "probe_config": {
                "sequence_length": {"min": LENGTHS[0], "max": LENGTHS[-1]},
                "samples_per_length": SAMPLES,
                "token_per_sample": TOKENS,
                "group_amount": GROUP,
            },
            "datasets": [
                {
                    "path": "json",
                    "split": "train",
                    "text_column": "text",
                    "commit_hash": "",
                    "data_files": str(file),
                }
            ],
            "advanced": {"batch_size": 4},
        }
    )
    embedder = RecordingEmbedder()
    return package.FinesseEvaluator(embedder, ENGINES["Merger"](), config), embedder


def probes_of(texts: Sequence[str]) -> EmbeddedProbes:
    """Texts as probes, each once."""
    unique = tuple(dict.fromkeys(texts))
    count = len(unique)
    languages = ("en",) * count
    return embed_probes(Probes(unique, unique, languages, TOKENS, "", count, 0, 0))


@pytest.fixture(scope="module")
def settings() -> DrawnThere:
    return DrawnThere(LENGTHS, SAMPLES, 0, LENGTHS, SAMPLES, GROUP)


@pytest.mark.filterwarnings("ignore:The mean cosine between probes")
def test_our_merger_in_the_evaluator(chunks: list[str], tmp_path: Path, settings: DrawnThere) -> None:
    public, embedder = evaluator("merger_mode", chunks, tmp_path)
    raw = public.merger_run()["raw_results"]["length_results"]
    embedded = [text for text in embedder.texts if "warm-up dummy" not in text]
    probes = probes_of(embedded)
    # The evaluator embeds the chunks of one sample after the other.
    row = {text: number for number, text in enumerate(probes.probes.texts)}
    numbers = iter([row[text] for text in embedded])
    rows = tuple([np.array([next(numbers) for _ in range(n)]) for _ in range(SAMPLES)] for n in LENGTHS)
    result = run_finesse(ENGINES["Merger"].merger, probes, replace(settings, order_lengths=(), rows=rows))
    written = cli._calculate_rss_scores(raw, "merger_mode")["length_scores"]
    for length, scores in result.lengths.items():
        assert scores.td["q1q3"] == pytest.approx(written[length]["raw_td"], abs=MERGED)
        assert scores.bu["q1q3"] == pytest.approx(written[length]["raw_bu"], abs=MERGED)
        for sample, drawn in zip(raw[length]["sample_results"], rows[LENGTHS.index(length)], strict=True):
            last = ENGINES["Merger"].merger.merge(probes.vectors[drawn])
            np.testing.assert_allclose(sample["synthesis_embeddings"][-1], last, atol=MERGED)
            assert_same_scores(
                torch.stack(sample["synthesis_embeddings"]).numpy(),
                torch.stack(sample["chunk_embeddings"]).numpy(),
            )


@pytest.mark.filterwarnings("ignore:The mean cosine between probes")
def test_order_in_the_evaluator(chunks: list[str], tmp_path: Path, settings: DrawnThere) -> None:
    public, embedder = evaluator("merger_mode", chunks, tmp_path)
    raw = public.merger_run_srs()["raw_results"]["length_results"]
    embedded = [text for text in embedder.texts if "warm-up dummy" not in text]
    probes = probes_of(embedded)
    row = {text: number for number, text in enumerate(probes.probes.texts)}
    numbers = iter([row[text] for text in embedded])
    rows = tuple(
        [np.array([next(numbers) for _ in range(n - 1 + GROUP * (n - 2))]) for _ in range(SAMPLES)]
        for n in LENGTHS
    )
    result = run_finesse(ENGINES["Merger"].merger, probes, replace(settings, lengths=(), rows=rows))
    for gap in ours.GAPS:
        written = cli._calculate_srs_scores(raw, eval_mode=gap)
        for length, order in result.orders.items():
            theirs = written["length_scores"][length]["sample_results"]
            for sample, expected in zip(order.samples[gap], theirs, strict=True):
                assert {str(probe) for probe in sample} == set(expected)
                for probe, places in sample.items():
                    np.testing.assert_allclose(places, expected[str(probe)], atol=1000 * MERGED)
        assert result.average[gap]["srs"] == pytest.approx(
            np.mean(written["all_individual_scores"]), abs=1000 * MERGED
        )


@pytest.mark.filterwarnings("ignore:The mean cosine between probes")
def test_our_embedder_in_native_mode(chunks: list[str], tmp_path: Path, settings: DrawnThere) -> None:
    public, embedder = evaluator("native_mode", chunks, tmp_path)
    raw = public.native_run()["raw_results"]["length_results"]
    embedded = [text for text in embedder.texts if "warm-up dummy" not in text]
    # For each sample its chunks, then the growing text, whose first piece is the first chunk.
    order = iter(embedded)
    samples = []
    for length in LENGTHS:
        for _ in range(SAMPLES):
            samples.append([next(order) for _ in range(length)])
            grown = [next(order) for _ in range(length)]
            assert grown == [" ".join(samples[-1][: stop + 1]) for stop in range(length)]
    probes = probes_of([text for sample in samples for text in sample])
    row = {text: number for number, text in enumerate(probes.probes.texts)}
    found = iter(samples)
    rows = tuple([np.array([row[text] for text in next(found)]) for _ in range(SAMPLES)] for _ in LENGTHS)
    result = run_native(probes, replace(settings, order_lengths=(), rows=rows))
    written = cli._calculate_rss_scores(raw, "native_mode")["length_scores"]
    for length, scores in result.lengths.items():
        assert scores.td["q1q3"] == pytest.approx(written[length]["raw_td"], abs=MERGED)
        assert scores.bu["q1q3"] == pytest.approx(written[length]["raw_bu"], abs=MERGED)


@pytest.mark.filterwarnings("ignore:The mean cosine between probes")
def test_the_lines_of_the_readme(
    chunks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [" ".join(chunks[start : start + 3]) for start in range(0, len(chunks), 3)]
    monkeypatch.chdir(tmp_path)
    Path("articles.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (_, lines) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(lines, dict(ENGINES))
    assert "'finesse'" in capsys.readouterr().out
    assert verify("result.json", merger=ENGINES["Merger"].merger).complete
