"""``merger-plugins bench`` and ``compare`` with the bundled embedder, on a few made-up texts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("scipy")
pytest.importorskip("ir_measures")

from merger_plugins.finesse.bench_results import load_bench, save_bench
from tests.finesse.lab import retrieval_data

FIGURES = (
    "bench",
    "--quick",
    "--axis",
    "retrieval",
    "--axis",
    "associativity",
    "--cache",
    "cache",
    "--rival",
    "mean",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a data set, a merger of its own and the vectors that runs keep."""
    home = tmp_path_factory.mktemp("home")
    retrieval_data(home / "data")
    (home / "lab_mergers.py").write_text(
        "import numpy as np\n"
        "from merger_plugins import CalibratedMerger, MeanMerger\n\n"
        "def opening(sample):\n"
        '    """Every document is its first chunk."""\n'
        "    class Opening(MeanMerger):\n"
        "        def _merge_batch(self, batch):\n"
        "            return batch.vectors[:, 0]\n"
        "    return Opening()\n\n"
        "wide = CalibratedMerger(dimension=9)\n"
    )
    (home / "lab_embedders.py").write_text(
        "from tests.finesse.lab import SignedEmbedder\n\n"
        "class Words(SignedEmbedder):\n"
        "    max_seq_length = 300\n\n"
        "words = Words()\n"
    )
    return home


@pytest.fixture
def run(run, home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    return run


@pytest.fixture
def measured(run):
    own = ("--task", "data/eval/woods")
    return json.loads(run(*FIGURES, *own, "--merger", "centred mean", "--json").stdout)["file"]


def test_a_run_prints_tables_and_keeps_a_file(run, measured):
    result = run(*FIGURES, "--task", "data/eval/woods", "--merger", "centred mean")
    assert "woods" in result.stdout
    assert "centred mean" in result.stdout
    assert f"Kept in {measured}." in result.stdout
    assert "[2/2] associativity, woods: " in result.stderr
    assert result.stderr.count("(earlier)") == 2  # measured by the fixture
    document = load_bench(Path(measured))
    assert document.complete
    assert [rival["asked"] for rival in document.run["rivals"]] == [True, False]
    files = document.run["tasks"][0]["files"]
    assert files == [
        "docs.jsonl.gz",
        "queries.jsonl.gz",
        "qrels.jsonl.gz",
    ]  # and not where this machine has them


def test_two_runs_are_compared(run, measured):
    both = json.loads(
        run("compare", measured, measured, "--against", "mean", "--rival", "centred mean", "--json").stdout
    )
    assert {each["rival"] for each in both["differences"]} == {"centred mean"}
    assert {each["axis"] for each in both["differences"]} == {"retrieval", "associativity"}
    assert "associativity, woods" in run("compare", measured, measured).stdout
    other = json.loads(run(*FIGURES, "--task", "data/eval/woods", "--seed", "1", "--json").stdout)["file"]
    assert "other settings: " in run("compare", measured, other, code=1).stderr
    same = (*FIGURES, "--task", "data/eval/woods", "--merger", "centred mean")
    seeded = json.loads(run(*same, "--seed", "1", "--json").stdout)["file"]
    ranked = json.loads(run("compare", measured, seeded, "--ranking", "--json").stdout)
    assert {(each["axis"], len(each["first"])) for each in ranked["rankings"]} == {
        ("retrieval", 2),
        ("associativity", 2),
    }
    shown = run("compare", measured, seeded, "--ranking").stdout
    assert "Of 2 pairs, " in shown
    assert (
        "leave --against out"
        in run("compare", measured, other, "--ranking", "--against", "mean", code=1).stderr
    )
    Path("broken.json").write_text(Path(measured).read_text().replace("0.9", "0.8"))
    assert "was edited or damaged" in run("compare", measured, "broken.json", code=1).stderr


def test_a_missed_baseline_exits_with_1(run, measured):
    same = (*FIGURES, "--task", "data/eval/woods", "--merger", "centred mean")
    assert "None of" in run(*same, "--baseline", measured).stdout
    stored = load_bench(Path(measured))
    name = "associativity, woods"
    records = tuple(
        record if record.low is None else replace(record, value=record.value + 0.3, low=record.low + 0.3)
        for record in stored.steps[name].records
    )
    higher = replace(stored, steps=stored.steps | {name: replace(stored.steps[name], records=records)})
    save_bench(higher, Path("higher.json"))
    missed = run(*same, "--baseline", "higher.json", "--json", code=1)
    assert "associativity, woods, centred mean: cosine with the whole, nodes is" in missed.stderr
    assert "0.3000 below the baseline's" in missed.stderr
    falls = json.loads(missed.stdout)["baseline"]["falls"]
    assert {fall["rival"] for fall in falls} == {"centred mean", "mean"}


def test_an_own_merger_takes_part(run):
    found = json.loads(
        run(*FIGURES, "--task", "data/eval/woods", "--merger", "lab_mergers:opening", "--json").stdout
    )
    assert {record["rival"] for record in found["records"]} == {"opening", "mean"}


def test_a_merger_that_nothing_could_be_measured_of_exits_with_1(run):
    own = ("--task", "data/eval/woods", "--merger", "centred mean")
    result = run("bench", "--quick", "--axis", "extrapolation", "--cache", "cache", *own, code=1)
    assert "6 documents of woods have 4 chunks" in result.stderr
    assert "centred mean could be measured on nothing" in result.stderr


def test_another_embedder(run):
    own = ("--task", "data/eval/woods", "--embedder", "lab_embedders:words")
    result = run("bench", "--quick", "--axis", "retrieval", "--cache", "cache", *own, "--json")
    found = json.loads(result.stdout)
    reason = "it works in dimension 384, and the embedder gives 24"
    assert f"skipped: the rival synthesizer: {reason}" in found["skipped"]
    assert {"mean", "calibrated", "truncation"} <= {record["rival"] for record in found["records"]}
    said = load_bench(Path(found["file"])).run["embedder"]
    assert (said["name"], said["dimension"], said["context"]) == ("lab_embedders:words", 24, 300)
    assert len(said["fingerprint"]) == 16
    again = run(*FIGURES, *own, "--merger", "synthesizer", code=1)
    assert "'synthesizer' works in dimension 384, and the embedder gives 24" in again.stderr
    assert "reads 300 tokens at the most" in run(*FIGURES, *own, "--max-tokens", "301", code=1).stderr
    gone = run(*FIGURES, "--task", "data/eval/woods", "--embedder", "lab_embedders:none", code=1)
    assert "'lab_embedders:none' cannot be imported" in gone.stderr
    bundled = json.loads(run(*FIGURES, "--task", "data/eval/woods", "--json").stdout)["file"]
    other = json.loads(run(*FIGURES, *own, "--json").stdout)["file"]
    assert "The files have other embedder: " in run("compare", bundled, other, code=1).stderr


def test_an_embedder_of_whole_texts(run):
    native = ("--native", "lab_embedders:words", "--native", "all-MiniLM-L6-v2")
    found = json.loads(run(*FIGURES, "--task", "data/eval/woods", *native, "--json").stdout)
    run_of = load_bench(Path(found["file"])).run
    # The bundled embedder is the base embedder: on whole texts that is truncation, and not a second row.
    assert [(row["name"], row["asked"]) for row in run_of["rivals"]] == [
        ("lab_embedders:words, native", True),
        ("truncation", True),
        ("mean", False),
    ]
    stored = {r["rival"]: r["value"] for r in found["records"] if r["metric"] == "MB a thousand documents"}
    assert stored == pytest.approx({"lab_embedders:words, native": 0.096, "truncation": 1.536, "mean": 1.536})


def test_what_would_fail_in_the_end_is_refused_at_once(run, measured):
    own = (*FIGURES, "--task", "data/eval/woods", "--output", "never")
    other = run(*own, "--seed", "1", "--baseline", measured, code=1).stderr
    assert "The files have other settings" in other
    assert "finesse.seed is 0 in one and 1 in the other" in other
    assert "{" not in other
    assert "--report is 'data', a folder" in run(*own, "--report", "data", code=1).stderr
    assert "there is no such folder" in run(*FIGURES, "--data", "nowhere", code=1).stderr
    assert not Path("never").exists()


def test_an_edited_result_can_be_measured_again(run):
    own = (*FIGURES, "--task", "data/eval/woods", "--output", "edited")
    path = Path(json.loads(run(*own, "--json").stdout)["file"])
    path.write_text(path.read_text().replace("0.9", "0.8"))
    assert "--fresh, or delete the file" in run(*own, code=1).stderr
    run(*own, "--fresh")


def test_what_cannot_be_measured_is_said(run):
    wide = run(*FIGURES, "--task", "data/eval/woods", "--merger", "lab_mergers:wide", code=1)
    assert "'wide' works in dimension 9, and the embedder gives 384" in wide.stderr
    gone = run(*FIGURES, "--task", "covidqa", "--data", "data", code=1)
    assert "covidqa needs eval/covidqa/docs.jsonl.gz" in gone.stderr
    assert "is no task, and no folder here" in run(*FIGURES, "--task", "squad", code=1).stderr


def test_without_data_the_sample_documents_are_measured_on(run):
    nothing = run("bench", "--quick", "--axis", "follow-ups", "--rival", "mean", "--cache", "cache", code=1)
    assert "the sample documents are measured on" in nothing.stderr
    assert "None of the tasks demo-articles, demo serves the axes follow-ups" in nothing.stderr
