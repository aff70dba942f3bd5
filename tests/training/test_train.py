"""The stages, run for real on a tiny network: what they learn, how they stop, how they go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="install the extra train")
for _package in ("accelerate", "tensorboard", "matplotlib"):
    pytest.importorskip(_package, reason="install the extra train")

from merger_plugins import load_merger  # noqa: E402
from merger_plugins.errors import InputError, TrainingError  # noqa: E402
from merger_plugins.training.config import RECIPES, TenToOne, TrainingConfig, read_config  # noqa: E402
from merger_plugins.training.data.batches import Batches  # noqa: E402
from merger_plugins.training.data.corpus import Corpus  # noqa: E402
from merger_plugins.training.estimate import check_space, estimate  # noqa: E402
from merger_plugins.training.network import Synthesizer, SynthesizerConfig  # noqa: E402
from merger_plugins.training.preparing import network_config, prepare  # noqa: E402
from merger_plugins.training.stages import FINAL, LOG, last_checkpoint, run_stage  # noqa: E402
from merger_plugins.training.train import train  # noqa: E402
from tests.training import toy  # noqa: E402

TINY = {
    "network": {"num_layers": 1, "dropout": 0.1},
    "data": {"chunk_tokens": 20, "tree_tokens": 24, "articles_per_shard": 16},
    "self_supervised": {"steps": 4, "batch_size": 8, "longest": 12},
    "five_twelve_to_one": {"steps": 4, "batch_size": 8, "longest": 16},
    "ten_to_one": {"steps": 80, "batch_size": 32, "retrieval": 0.02, "beyond": 0.2, "learning_rate": 3e-3},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training")
    rows = [
        {"id": f"a{i}", "title": f"subject{i}word1", "lang": "en" if i % 3 else "de", "text": toy.article(i)}
        for i in range(40)
    ]
    (path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def settings(folder: Path) -> TrainingConfig:
    return TrainingConfig().replace(
        texts=(str(folder / "texts.jsonl"),),
        embedder="tests.training.toy:embeddings",
        max_tokens=toy.CONTEXT + 2,
        shards=str(folder / "shards"),
        output=str(folder / "run"),
        **TINY,
    )


@pytest.fixture(scope="module")
def corpus(settings: TrainingConfig) -> Corpus:
    return prepare(settings).corpora()[0]


def stage_of(corpus: Corpus, **changes: object) -> Batches:
    stage = replace(TenToOne(steps=6, batch_size=8, save_steps=2), **changes)  # type: ignore[arg-type]
    return Batches(corpus, "ten_to_one", stage, shares={"en": 1.0, "de": 1.0}, seed=0)


def fresh(**settings: object) -> Synthesizer:
    torch.manual_seed(0)
    return Synthesizer(SynthesizerConfig(d_model=toy.DIMENSION, num_layers=1, nhead=2, **settings))


def weights(network: Synthesizer) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def test_the_three_stages_end_with_a_merger_that_beats_the_mean(settings: TrainingConfig) -> None:
    seen = []
    trained = train(settings, report=lambda doing, done, total, _: seen.append((doing, done, total)))
    assert list(dict.fromkeys(doing for doing, _, _ in seen)) == ["embedding", *settings.stages]
    assert seen[-1] == ("ten_to_one", 80, 80)
    mean, ours = trained.figures["mean"], trained.figures["synthesizer"]
    assert ours.teacher > mean.teacher + 3 * ours.teacher_error
    assert abs(mean.order) < 1e-6 < ours.order - 3 * ours.order_error  # the teacher weighs early chunks more
    merger = load_merger(trained.model)
    vectors = np.random.default_rng(0).standard_normal((25, toy.DIMENSION)).astype(np.float32)
    assert np.linalg.norm(merger.merge(vectors)) == pytest.approx(1, abs=1e-5)

    results = json.loads((trained.folder / "results.json").read_text())
    assert results["figures"]["synthesizer"]["teacher"] == ours.teacher
    assert results["held_out"]["articles"] == 4
    assert (trained.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((trained.folder / "tensorboard").glob("*/events*"))) == 3
    logged = json.loads((trained.folder / "3-ten_to_one" / LOG).read_text())
    assert {"teacher", "associativity", "beyond", "retrieval", "loss", "learning_rate"} <= set(logged[0])
    assert np.mean([row["teacher"] for row in logged[:10]]) > np.mean(
        [row["teacher"] for row in logged[-11:-1]]
    )
    assert not list(trained.folder.glob("*/checkpoint-*"))

    assert train(settings) == trained  # everything is there: nothing is made again
    with pytest.raises(TrainingError, match=r"ten_to_one\.steps was 80 and is now 81"):
        train(settings.replace(ten_to_one={"steps": 81}))


def test_a_stage_goes_on_exactly_where_it_was_interrupted(tmp_path: Path, corpus: Corpus) -> None:
    whole = run_stage(fresh(), stage_of(corpus), tmp_path / "whole", seed=0)

    def interrupt(_: str, done: int, __: int, ___: dict[str, float]) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(fresh(), stage_of(corpus), tmp_path / "halved", seed=0, report=interrupt)
    assert last_checkpoint(tmp_path / "halved") == str(tmp_path / "halved" / "checkpoint-4")
    (tmp_path / "halved" / "checkpoint-5").mkdir()  # torn: it has no state
    steps = []
    halved = run_stage(
        fresh(), stage_of(corpus), tmp_path / "halved", seed=0, report=lambda _, done, *__: steps.append(done)
    )
    assert steps == [5, 6]
    for name, array in weights(whole).items():
        np.testing.assert_allclose(weights(halved)[name], array, atol=1e-7, err_msg=name)
    finished = run_stage(fresh(), stage_of(corpus), tmp_path / "halved", seed=0)
    assert all(np.array_equal(weights(finished)[name], array) for name, array in weights(halved).items())


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, corpus: Corpus
) -> None:
    broken = replace(corpus, windows=corpus.windows.copy())
    batches = stage_of(broken, singles=0.0, associativity=0.0)
    drawn = [batches._draw(np.random.default_rng([0, 2, step]), 8) for step in range(6)]
    fatal = next(iter(set(drawn[4].tolist()) - {row for early in drawn[:4] for row in early.tolist()}))
    broken.windows[fatal] = np.nan
    with pytest.raises(TrainingError, match=r"step 5: the loss is nan") as caught:
        run_stage(fresh(), batches, tmp_path, seed=0)
    assert corpus.ids[corpus.window_article[fatal]] in str(caught.value)
    assert str(tmp_path / "checkpoint-4") in str(caught.value)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    kept = Synthesizer.from_pretrained(tmp_path / "checkpoint-4")
    assert all(torch.isfinite(parameter).all() for parameter in kept.parameters())


def test_16_bit_arithmetic_trains_as_well(tmp_path: Path, corpus: Corpus) -> None:
    trained = [
        run_stage(fresh(), stage_of(corpus, steps=4, retrieval=0.1), tmp_path / str(bf16), seed=0, bf16=bf16)
        for bf16 in (False, True)
    ]
    assert all(parameter.dtype == torch.float32 for parameter in trained[1].parameters())
    losses = [json.loads((tmp_path / name / LOG).read_text())[3]["loss"] for name in ("False", "True")]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert losses[0] != losses[1]  # the first step's are equal: an untrained network is the mean, exactly


def test_weights_of_another_architecture_are_refused(tmp_path: Path, settings: TrainingConfig) -> None:
    fresh(ffn_dims=[24]).save_pretrained(tmp_path / "other")
    with pytest.raises(TrainingError, match="another architecture"):
        train(settings.replace(start=str(tmp_path / "other"), output=str(tmp_path / "run")))
    with pytest.raises(TrainingError, match="cannot be read"):
        train(settings.replace(start=str(tmp_path / "missing"), output=str(tmp_path / "run2")))


def test_ppe_differs_between_stages_with_the_same_weights(tmp_path: Path, corpus: Corpus) -> None:
    network = run_stage(fresh(), stage_of(corpus, ppe_dim=None, steps=2), tmp_path / "1", seed=0)
    assert network.config.ppe_dim == toy.DIMENSION // 2
    assert (
        run_stage(network, stage_of(corpus, ppe_dim=4, steps=2), tmp_path / "2", seed=0).config.ppe_dim == 4
    )
    assert json.loads((tmp_path / "2" / FINAL / "config.json").read_text())["ppe_dim"] == 4


def test_the_estimate_counts_what_is_embedded_then(tmp_path: Path, settings: TrainingConfig) -> None:
    source = toy.Toy()
    prepared = prepare(settings.replace(output=str(tmp_path / "run"), shards=str(tmp_path / "data")), source)
    expected = estimate(prepared)
    before = source.texts, source.calls
    prepared.corpora()
    assert expected.texts == pytest.approx(source.texts - before[0], rel=0.25)
    assert expected.calls == pytest.approx(source.calls - before[1], rel=0.25)
    assert set(expected.stage_seconds) == set(settings.stages)
    assert expected.seconds > 0
    nothing = estimate(prepared)
    assert (nothing.articles, nothing.texts, nothing.calls, nothing.embedding_seconds) == (0, 0, 0, 0.0)
    check_space(expected, tmp_path / "not" / "there")
    with pytest.raises(TrainingError, match="needs about 1,000,000,000,000 MB"):
        check_space(replace(expected, disk=10**18), tmp_path)


def test_configurations(tmp_path: Path) -> None:
    for recipe in RECIPES.glob("*.toml"):
        read = read_config(recipe.stem)
        assert network_config(read, 384).d_model == 384
        (tmp_path / "same.json").write_text(read.to_json())
        assert read_config(tmp_path / "same.json") == read
    (tmp_path / "bad.toml").write_text("[ten_to_one]\nstep = 3\n")
    with pytest.raises(InputError, match=r"no setting ten_to_one\.step\. Known are: .*steps"):
        read_config(tmp_path / "bad.toml")
    with pytest.raises(InputError, match=r"one of: .*small"):
        read_config("huge")
    for change, complaint in (
        ({"stages": ["ten"]}, "it takes some of self_supervised"),
        ({"ten_to_one": {"steps": 0}}, "ten_to_one.steps is 0"),
        ({"data": {"chunk_tokens": 0}}, "chunk_tokens is 0"),
        ({"five_twelve_to_one": {"distance": "l2"}}, "it is one of cosine, l1"),
    ):
        with pytest.raises(InputError, match=complaint):
            TrainingConfig().replace(**change)
    with pytest.raises(InputError, match=r"no setting network\.layers"):
        network_config(TrainingConfig(network={"layers": 3}), 384)
    with pytest.raises(InputError, match="d_model is 384, and the embedder's vectors have 256"):
        network_config(TrainingConfig(network={"d_model": 384}), 256)
    assert network_config(TrainingConfig(), 1000).nhead == 20
    assert network_config(TrainingConfig(), 7).ppe_dim == 6
