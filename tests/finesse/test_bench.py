"""A run on every axis: what it keeps, what it refuses, and two of them beside each other."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from merger_plugins import MeanMerger, SequenceMerger
from merger_plugins._batching import unit
from merger_plugins.errors import (
    DataError,
    DimensionError,
    DocumentError,
    InputError,
    ResultError,
)
from merger_plugins.finesse.bench import Bench, chosen_rivals, dimension_of
from merger_plugins.finesse.bench_results import BenchResult, Step, load_bench, save_bench
from merger_plugins.finesse.comparing import compare_runs, judge, main_figures
from merger_plugins.finesse.embedding import Embeddings, revision
from merger_plugins.finesse.fits import Fits
from merger_plugins.finesse.laboratory import Laboratory, smaller
from merger_plugins.finesse.metrics import paired
from merger_plugins.finesse.naming import Entry, entry, native_named, rival_named
from merger_plugins.finesse.plan import AXES, BenchSettings, chosen_tasks, settings, steps
from merger_plugins.finesse.pooling import FunctionMerger, PooledMerger, RisingMerger, first_and_mean
from merger_plugins.finesse.rankings import compare_rankings
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.report import dissect_bench
from merger_plugins.finesse.results import verify
from merger_plugins.finesse.rivals import Embedded, EveryChunk, Merging, Sample, rivals
from merger_plugins.finesse.scoring import similarities, top_down
from merger_plugins.finesse.settings import FinesseSettings
from merger_plugins.finesse.tasks import Task, tasks_of_folder
from tests.finesse.lab import (
    WORDS,
    SignedEmbedder,
    conversation_data,
    retrieval_data,
    sentence,
    source,
    written,
)

SMALL = BenchSettings(
    per_count=4,
    trees=5,
    repeats=2,
    finesse=FinesseSettings(
        lengths=(3, 4), samples=2, timed=1, order_lengths=(3,), order_samples=2, order_group=2
    ),
)
MINE = Merging("mine", "a test's", lambda _sample: first_and_mean())


class StoppedError(Exception):
    pass


def articles(data: Path, count: int = 12) -> Task:
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"a{n}", "text": sentence(rng, WORDS[4 * n :][:8], 70), "lang": "en"} for n in range(count)
    ]
    files = [written(data / "train" / "articles.jsonl.gz", rows)]
    return Task(
        "notes", "articles", ("train/articles.jsonl.gz",), revision(files), "", "", "en", "ours", "here"
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Task]]:
    folder = tmp_path_factory.mktemp("data")
    return folder, [articles(folder), *conversation_data(folder), retrieval_data(folder)]


def planned(
    data: tuple[Path, list[Task]], *, sizes: BenchSettings = SMALL, rivals: tuple[str, ...] = ("mean",)
) -> Bench:
    words = source(data[0])
    entries = chosen_rivals([MINE], dimension_of(words), quick=False, names=rivals)
    return Bench(sizes, data[1], words, entries)


@pytest.fixture(scope="module")
def whole(
    data: tuple[Path, list[Task]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[BenchResult, Path]:
    path = tmp_path_factory.mktemp("whole") / "run.json"
    with pytest.warns(UserWarning, match="not independent"):
        return planned(data, rivals=("mean", "every chunk")).measure(path), path


def test_every_axis_is_measured_with_intervals(whole: tuple[BenchResult, Path]):
    result, path = whole
    assert {record.axis for record in result.records} == set(AXES) - {"extrapolation"}
    # Six documents are too few for extrapolation: said, not hidden.
    skipped = result.steps["extrapolation, woods"].skipped
    assert skipped in result.reasons
    assert "6 documents of woods have 4 chunks, and 10 are needed" in str(skipped)
    assert result.complete
    for record in result.records:
        if record.each is not None and record.n > 4:  # fewer may be of one document, which tells no spread
            assert record.low is not None, record
            assert record.high is not None, record
            assert record.low - 1e-9 <= record.value <= record.high + 1e-9, record
    assert set(result.finesse) == {"mine", "mean"}  # what does not merge has no FINESSE
    assert len(main_figures(result.records)) > 20
    assert json.loads(path.read_text())["run"]["rivals"][0]["asked"] is True


def test_a_file_gives_back_what_was_measured(whole: tuple[BenchResult, Path]):
    result, path = whole
    read = load_bench(path)
    assert read.scores_hash == result.scores_hash
    assert list(read.steps) == list(result.steps)
    for found, record in zip(read.records, result.records, strict=True):
        assert found.value == pytest.approx(record.value, abs=1e-6)
        if record.each is not None:
            assert found.each is not None
            np.testing.assert_allclose(found.each, record.each, rtol=1e-6, atol=1e-7)
    assert read.finesse["mine"].scores_hash == result.finesse["mine"].scores_hash
    with pytest.raises(ResultError, match="result of the benchmark 'bench'"):
        verify(path)


def test_an_interrupted_run_goes_on(data: tuple[Path, list[Task]], tmp_path: Path):
    data = (data[0], [task for task in data[1] if task.name == "woods"])
    sizes = replace(SMALL, axes=("retrieval", "associativity", "order"))
    straight = planned(data, sizes=sizes).measure(tmp_path / "straight.json")

    def stop(name: str, done: int, total: int, step: object) -> None:
        if done == 1 and step is None:
            raise StoppedError

    path = tmp_path / "run.json"
    with pytest.raises(StoppedError):
        planned(data, sizes=sizes).measure(path, stop)
    halted = load_bench(path)
    assert len(halted.steps) == 1
    assert not halted.complete
    measured: list[str] = []
    resumed = planned(data, sizes=sizes).measure(
        path, lambda name, *rest: measured.append(name) if rest[-1] is None else None
    )
    assert measured == list(straight.steps)[1:]
    assert resumed.scores_hash == straight.scores_hash
    again = planned(data, sizes=sizes)
    assert again.path(tmp_path) == planned(data, sizes=sizes).path(tmp_path)
    assert again.path(tmp_path) != planned(data, sizes=replace(sizes, seed=1)).path(tmp_path)
    with pytest.raises(ResultError, match="another run: its settings differ"):
        planned(data, sizes=replace(sizes, seed=1)).measure(path)


def test_an_axis_without_data_is_said(data: tuple[Path, list[Task]]):
    woods = [task for task in data[1] if task.name == "woods"]
    bench = planned((data[0], woods), sizes=replace(SMALL, axes=("retrieval", "follow-ups")))
    assert bench.skipped == ("skipped: follow-ups: no data set of the kind it needs",)


def test_an_edited_file_is_refused(whole: tuple[BenchResult, Path], tmp_path: Path):
    document = json.loads(whole[1].read_text())
    document["steps"]["retrieval, woods"]["records"][0]["value"] = 0.123
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(document))
    with pytest.raises(ResultError, match="was edited or damaged"):
        load_bench(edited)
    with pytest.raises(ResultError, match="There is no result file"):
        load_bench(tmp_path / "none.json")


def test_a_merger_of_another_dimension_is_refused_at_once():
    foreign = Merging("foreign", "", lambda _: MeanMerger().calibrated([np.eye(7, dtype=np.float32)]))
    with pytest.raises(DimensionError, match=r"'foreign' works in dimension 7, and the embedder gives 51"):
        chosen_rivals([foreign], 51, quick=True)
    with pytest.raises(InputError, match="'mean' is the name of a known rival"):
        chosen_rivals([Merging("mean", "", lambda _: first_and_mean())], 51, quick=True)


def test_a_merger_that_fails_stops_the_run(data: tuple[Path, list[Task]], tmp_path: Path):
    def nothing(vectors: np.ndarray, mask: np.ndarray, masses: np.ndarray) -> np.ndarray:
        return vectors[:, 0] * (np.nan if len(vectors) > 3 else 1)  # more documents than it is tried on

    bad = Merging("bad", "", lambda _: PooledMerger("bad", nothing))
    words = source(data[0])
    entries = chosen_rivals([bad], dimension_of(words), quick=False, names=["mean"])
    with pytest.raises(InputError):
        Bench(replace(SMALL, axes=("retrieval",)), data[1][-1:], words, entries).measure(
            tmp_path / "run.json"
        )


def test_a_merger_that_was_changed_is_another_run():
    def entries(place: int) -> list[Entry]:
        merger = PooledMerger("own", lambda vectors, *_: vectors[:, place])
        return chosen_rivals([Merging("own", "", lambda _: merger)], 51, quick=True, names=["mean"])

    first, second = entries(0), entries(1)
    assert first[0].fingerprint == second[0].fingerprint
    assert first[0].output != second[0].output
    assert first[1] == second[1]


def test_a_pair_of_runs_is_compared_item_by_item(whole: tuple[BenchResult, Path]):
    result, path = whole
    found = compare_runs(result, result, rivals=["mine"], against="mean")
    against_itself = compare_runs(load_bench(path), load_bench(path), against="mean")
    assert {each.rival.partition(": ")[0] for each in against_itself.differences} == {"mine", "every chunk"}
    ways = {each.rival for each in found.differences if each.axis == "follow-ups"}
    assert len(found.differences) < len(compare_runs(result, result, everything=True).differences)
    assert ways == {"mine: history", "mine: all turns"}
    mine, mean = (
        next(
            r
            for r in result.records
            if (r.axis, r.task, r.rival, r.metric) == ("retrieval", "woods", name, "ndcg@10")
        )
        for name in ("mine", "mean")
    )
    assert mine.each is not None
    assert mean.each is not None
    test = paired(mine.each, mean.each, mine.groups)
    one = next(
        each
        for each in found.differences
        if (each.axis, each.task, each.metric) == ("retrieval", "woods", "ndcg@10")
    )
    assert (one.difference, one.low, one.p) == pytest.approx((test.difference, test.low, test.p))
    assert all(each.p is None for each in found.differences if each.axis == "cost")
    with pytest.raises(ResultError, match="no rival 'other'"):
        compare_runs(result, result, rivals=["other"])


def test_runs_that_cannot_be_compared_are_refused(whole: tuple[BenchResult, Path]):
    result, _ = whole
    other = replace(result, run=result.run | {"settings": result.run["settings"] | {"trees": 7}})
    with pytest.raises(ResultError, match="other settings: trees is 5 in one and 7 in the other"):
        compare_runs(result, other)
    tasks = [task | {"revision": "0" * 16} for task in result.run["tasks"]]
    with pytest.raises(ResultError, match="other revisions of"):
        judge(result, replace(result, run=result.run | {"tasks": tasks}))


def ranked(seed: int, values: dict[str, NDArray[np.float64]]) -> BenchResult:
    """A run of one figure over eight items for each rival."""
    records = tuple(
        Record.of("retrieval", "woods", name, "ndcg@10", each, seed=seed) for name, each in values.items()
    )
    run = {
        "settings": {
            "seed": seed,
            "axes": ["retrieval"],
            "trees": 5,
            "finesse": {"seed": seed, "samples": 2},
        },
        "embedder": {"name": "words", "fingerprint": "f"},
        "tasks": [],
        "rivals": [{"name": name} for name in values],
    }
    step = Step("retrieval", "woods", 1.0, records)
    return BenchResult(run, steps={"retrieval, woods": step}, complete=True)


def test_the_order_of_rivals_under_two_seeds():
    low, high = np.linspace(0.1, 0.3, 8), np.linspace(0.6, 0.8, 8)
    noise = np.array([0.2, -0.2] * 4)
    first = ranked(0, {"a": high, "b": low, "c": low + noise - 0.01, "only": low})
    second = ranked(1, {"a": low, "c": low + noise + 0.01, "b": high})
    (found,) = compare_rankings(first, second).rankings
    assert (found.first, found.second) == (("a", "b", "c"), ("b", "c", "a"))
    assert set(found.swapped) == {("a", "b"), ("a", "c")}
    # That c is above a in the second run is noise; that b is, is not.
    assert found.contradicted == (("a", "b"),)
    assert found.tau is not None
    assert found.tau < 0
    (same,) = compare_rankings(first, ranked(5, {"a": high, "c": low - 0.1, "b": low})).rankings
    assert (same.first[0], same.second, same.contradicted) == ("a", ("a", "b", "c"), ())
    (two,) = compare_rankings(first, second, rivals=["a", "c"]).rankings
    assert two.first == ("a", "c")
    with pytest.raises(ResultError, match="seed is 0 in one and 1 in the other"):
        compare_runs(first, second)
    other = replace(second, run=second.run | {"settings": second.run["settings"] | {"trees": 7}})
    with pytest.raises(ResultError, match="trees is 5 in one and 7 in the other"):
        compare_rankings(first, other)
    with pytest.raises(ResultError, match="no figure of the same two rivals"):
        compare_rankings(first, second, rivals=["a"])


def better(result: BenchResult, name: str, gain: float) -> BenchResult:
    """The same run with one step's figures higher."""
    step = result.steps[name]
    records = tuple(
        record if record.low is None else replace(record, value=record.value + gain, low=record.low + gain)
        for record in step.records
    )
    return replace(result, steps=result.steps | {name: replace(step, records=records)})


def test_a_baseline_is_met_or_missed(whole: tuple[BenchResult, Path], tmp_path: Path):
    result, path = whole
    met = judge(load_bench(path), result)
    assert met.judged > 50
    assert (met.falls, met.missing) == ((), ())
    save_bench(better(result, "fidelity, woods", 0.5), tmp_path / "higher.json")
    missed = judge(result, load_bench(tmp_path / "higher.json"))
    assert {fall.record.axis for fall in missed.falls} == {"fidelity"}
    assert "0.5000 below the baseline's" in str(missed.falls[0])
    # Costs and order have no better; a figure that the run lacks is not passed over.
    assert judge(result, better(result, "cost, talk", 10.0)).falls == ()
    lacking = replace(
        result, steps={name: step for name, step in result.steps.items() if step.axis != "retrieval"}
    )
    assert "were not measured" in judge(lacking, result).missing[0]


class Reader(SignedEmbedder):
    """Reads whole texts, of up to 330 tokens."""

    max_seq_length = 330


@pytest.fixture(scope="module")
def native(
    data: tuple[Path, list[Task]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bench, BenchResult]:
    words = source(data[0])
    reader = Embedded("reader, native", "", Embeddings(Reader(), name="reader", fingerprint="r1"))
    entries = chosen_rivals([reader], dimension_of(words), quick=False, names=["mean", "truncation"])
    sizes = replace(SMALL, axes=("finesse", "retrieval"))
    bench = Bench(sizes, [data[1][0], data[1][-1]], words, entries)
    with pytest.warns(UserWarning, match="not independent"):
        return bench, bench.measure(tmp_path_factory.mktemp("native") / "run.json")


def test_an_embedder_of_whole_texts_takes_part(native: tuple[Bench, BenchResult]):
    bench, result = native
    rows = {row["name"]: (row["fingerprint"], row["output"]) for row in bench.run["rivals"]}
    assert rows["reader, native"] == ("r1", None)
    assert rows["truncation"] == (None, None)
    found = {
        record.rival: record
        for record in result.records
        if (record.axis, record.metric) == ("retrieval", "MB a thousand documents")
    }
    # One vector of its own 24 dimensions a document, beside the base embedder's 51.
    assert found["reader, native"].value == pytest.approx(24 * 4 / 1e3)
    assert found["mean"].value == pytest.approx(51 * 4 / 1e3)
    # Probes of 50 bundled tokens may be 70 of its own: 4 x 70 + 100 is more than it reads.
    run = result.finesse["reader, native"]
    assert run.benchmark == "finesse-native"
    assert list(run.lengths) == [3]
    sentence = "4 chunks of 70 tokens may not fit a context of 330"
    assert f"skipped: finesse, reader, native: {sentence}" in result.reasons
    # Nobody knows how much the base embedder reads.
    assert "WordEmbedder does not tell how many tokens" in str(result.steps["finesse, truncation"].skipped)
    texts = {task.name: task for task in bench.tasks}["notes"].load(bench.laboratory.source)
    assert isinstance(texts, list)
    probes, fitting = bench.laboratory.probes(bench.tasks[0], SMALL.finesse)
    sample = fitting.draw(len(probes), 3)[0]
    grown = [" ".join(probes.probes.texts[row] for row in sample[: stop + 1]) for stop in range(3)]
    vectors = unit(Reader().embed_documents(grown).astype(np.float32))
    chunks = unit(Reader().embed_documents([probes.probes.texts[row] for row in sample]).astype(np.float32))
    assert run.lengths[3].td["q1q3"][0] == pytest.approx(top_down(similarities(vectors, chunks)), abs=1e-5)


def test_averages_over_other_lengths_are_not_put_beside_each_other(native: tuple[Bench, BenchResult]):
    shown = {
        (record.rival, record.metric, record.at)
        for record in main_figures(native[1].records)
        if record.axis == "finesse"
    }
    for metric in ("finesse", "rss"):
        assert ("mean", metric, None) in shown
        assert ("reader, native", metric, None) not in shown
        assert {("reader, native", metric, 3), ("mean", metric, 3)} <= shown
        assert ("mean", metric, 4) not in shown


def test_samples_in_native_mode_are_taken_apart(native: tuple[Bench, BenchResult]):
    bench, result = native
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples, _ = dissect_bench(bench, result)
    assert {(one.merger, one.length) for one in samples} == {("mean", 3), ("mean", 4), ("reader, native", 3)}
    for one in samples:
        scored = result.finesse[one.merger].lengths[one.length]
        assert one.td["q1q3"].mean() == pytest.approx(scored.td["q1q3"][0], abs=1e-6)


def test_embedders_of_whole_texts_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_embedders.py").write_text(
        "from tests.finesse.test_bench import Reader\n\nreader = Reader()\n\n"
        "def other():\n    return Reader(most_words=9)\n"
    )
    monkeypatch.chdir(tmp_path)
    base = Embeddings.named("own_embedders:reader", tmp_path)
    found = native_named("own_embedders:other", base)
    assert (found.name, found.about) == (
        "own_embedders:other, native",
        "own_embedders:other on the text itself (330 tokens)",
    )
    assert native_named("own_embedders:reader", base) is rivals(["truncation"])[0]


def test_mergers_are_made_once_for_a_sample(data: tuple[Path, list[Task]], tmp_path: Path):
    made: list[int] = []

    def make(sample: Sample) -> SequenceMerger:
        made.append(sum(map(len, sample)))
        return first_and_mean()

    mine = [
        Merging("mine", "", make),
        Merging("turned", "", make, around=RisingMerger),
        EveryChunk("chunks", "", make),
    ]
    words = source(data[0])
    entries = chosen_rivals(mine, dimension_of(words), quick=False, names=["mean"])
    tried = len(made)
    sizes = replace(SMALL, axes=("retrieval", "fidelity", "associativity", "order"))
    bench = Bench(sizes, data[1][-1:], words, entries)
    result = bench.measure(tmp_path / "run.json")
    assert len(made) == tried + 1
    values = {
        r.rival: r.value for r in result.records if (r.axis, r.metric) == ("fidelity", "teacher cosine")
    }
    assert values["mine"] != values["turned"]
    # Of the same chunks in other documents, and to time it, it is made anew.
    loaded = bench.laboratory.collection(data[1][-1])
    fits = Fits(samples=1)
    for sample in (loaded.sequences(), [loaded.chunks], [loaded.chunks], loaded.sequences()):
        fits.remembering(mine[0]).merger(sample)
    assert len(made) == tried + 4
    bench.laboratory.cost(data[1][-1], repeats=1)
    assert len(made) == tried + 6  # of the two that merge


def test_mergers_are_found_by_name_folder_and_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert rival_named("every chunk").name == "every chunk"
    MeanMerger().save(tmp_path / "saved")
    assert isinstance(rival_named(str(tmp_path / "saved")).merger([]), MeanMerger)
    (tmp_path / "own_mergers.py").write_text(
        "from merger_plugins import MeanMerger\n\ndef fitted(sample):\n"
        '    """Fitted to the sample."""\n    return MeanMerger().calibrated(sample)\n\n'
        "plain = MeanMerger()\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert rival_named("own_mergers:fitted").about == "Fitted to the sample."
    assert isinstance(rival_named("own_mergers:plain").merger([]), MeanMerger)
    with pytest.raises(InputError, match="number is of the type int"):
        rival_named("own_mergers:number")
    with pytest.raises(InputError, match="cannot be imported"):
        rival_named("own_mergers:nothing")


OWN_MISTAKES = {
    "array": ("def array(sample):\n    return np.median(sample, axis=0)", "makes an array of shape"),
    "Duck": (
        "class Duck:\n    def merge(self, vectors):\n        return vectors[0]",
        "Duck is the class Duck",
    ),
    "Unfinished": (
        "class Unfinished(SequenceMerger):\n    def merge(self, vectors):\n        return vectors[0]",
        "fails: TypeError.*abstract",
    ),
    "Wanting": (
        "class Wanting(MeanMerger):\n    def __init__(self, size):\n        pass",
        "fails: TypeError.*size",
    ),
    "failing": ("def failing(sample):\n    raise KeyError('stones')", "'failing' fails: KeyError.'stones'"),
    "Beside": (
        "class Beside(MeanMerger):\n    def merge(self, vectors, **_):\n        return vectors[0]",
        "merge and merge_many of 'Beside' give different vectors",
    ),
    "narrow": ("narrow = FunctionMerger('narrow', lambda v, m: v[0, :3])", r"shape \(3,\) for vectors"),
    "empty": ("empty = FunctionMerger('empty', lambda v, m: v[0] * np.nan)", "merges to NaN or infinity"),
}


@pytest.mark.parametrize("name", OWN_MISTAKES)
def test_a_merger_of_ones_own_that_cannot_be_measured_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code, message = OWN_MISTAKES[name]
    (tmp_path / f"mistake_{name}.py").write_text(
        "import numpy as np\nfrom merger_plugins import MeanMerger, SequenceMerger\n"
        f"from merger_plugins.finesse.pooling import FunctionMerger\n\n{code}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message):
        entry(rival_named(f"mistake_{name}:{name}"), 8, asked=True)


def test_a_module_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in {"torn": "def (", "hasty": "1 / 0"}.items():
        (tmp_path / f"{name}.py").write_text(code)
        with pytest.raises(InputError, match=f"The merger '{name}:mine' cannot be imported: .*Error"):
            rival_named(f"{name}:mine")


def test_a_function_of_one_sequence_is_a_merger():
    median = FunctionMerger("median", lambda vectors, _: np.median(vectors, axis=0))
    last = FunctionMerger("last", lambda vectors, masses: vectors[-1] * masses[-1])
    rng = np.random.default_rng(0)
    sequences = [rng.standard_normal((count, 8)).astype(np.float32) for count in (3, 1, 7)]
    for row, vectors in zip(median.merge_many(sequences), sequences, strict=True):
        expected = np.median(unit(vectors), axis=0)
        assert np.allclose(row, expected / np.linalg.norm(expected), atol=1e-6)
    assert np.allclose(last.merge_many(sequences), unit(np.stack([s[-1] for s in sequences])), atol=1e-6)
    assert entry(Merging("median", "", lambda _: median), 8, asked=True).output


def test_a_folder_is_a_data_set(tmp_path: Path):
    made = retrieval_data(tmp_path)
    folder = tmp_path / "eval" / "woods"
    (task,) = tasks_of_folder(folder)  # too few documents for FINESSE
    assert (task.name, task.revision) == ("woods", made.revision)
    assert task.collection(source(Path("elsewhere"))).documents == 6
    written(folder / "qrels.jsonl.gz", [{"query_id": "q0", "doc_id": "d0", "passage": 0}])
    with pytest.raises(DocumentError, match=r"queries.* line 2: no line of qrels names the question 'q1'"):
        tasks_of_folder(folder)[0].load(source(tmp_path))
    rows = [{"id": f"d{n}", "text": f"{WORDS[n]} {WORDS[n + 1]}"} for n in range(16)]
    written(folder / "docs.jsonl.gz", rows)
    assert [task.kind for task in tasks_of_folder(folder)] == ["articles", "retrieval"]
    (folder / "qrels.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"holds no qrels\.jsonl"):
        tasks_of_folder(folder)


def test_plans():
    assert {task.kind for task in chosen_tasks([], quick=True)} == {"articles", "retrieval", "follow-ups"}
    assert settings(quick=True).finesse.probes <= 640
    lab = Laboratory(source(Path()), ())
    names = [step.name for step in steps(BenchSettings(), chosen_tasks([], quick=False), lab)]
    assert {"robustness: languages, xquad_en", "robustness: chunks, xquad_en", "cost, covidqa"} <= set(names)
    assert "retrieval, convqa_mtragun" in names
    assert smaller(FinesseSettings(), 16).probes <= 16
    assert smaller(FinesseSettings(), 5_000) == FinesseSettings()
    with pytest.raises(InputError, match="'speed' is no axis"):
        settings(quick=True, axes=["speed"])
    with pytest.raises(InputError, match="'squad' is no task"):
        chosen_tasks(["squad"], quick=True)
