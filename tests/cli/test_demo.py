"""The demo as a whole: what it prints, and that merging does what the table is there to show."""

import json

import pytest

pytest.importorskip("qdrant_client")
pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

from merger_plugins.demo import comparison
from merger_plugins.demo.methods import METHODS


def once(function):
    results = []

    def remembered(*arguments):
        if not results:
            results.append(function(*arguments))
        return results[0]

    return remembered


@pytest.fixture(scope="module")
def sample(invoke):
    """Both forms of the demo on the sample documents, computed once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compare_documents", "compare_turns"):
            patch.setattr(comparison, name, once(getattr(comparison, name)))
        results = [invoke(["demo", *options]) for options in ([], ["--json"])]
    for result in results:
        assert result.exit_code == 0, (result.output, result.exception)
        assert result.stderr == ""
    return results[0].stdout, json.loads(results[1].stdout)


def test_calibration_pays(sample):
    summary = sample[1]["documents"]["summary"]
    assert summary["root"]["document"] >= summary["mean"]["document"]
    for figure in ("document", "passage"):
        assert summary["chunks+root"][figure] >= summary["chunks"][figure]
        assert summary["chunks+root"][figure] >= summary["chunks+mean"][figure]
    chat = sample[1]["chat"]
    assert chat["reciprocal"]["contextual"] >= chat["reciprocal"]["raw"]
    assert chat["first_ten"]["contextual"] >= chat["first_ten"]["raw"]


def test_the_table_prints_the_figures(sample):
    text, document = sample
    for one in document["documents"]["summary"].values():
        for figure in (one["document"], one["passage"]):
            assert figure is None or f"{figure:.3f}" in text
    assert f"{document['chat']['reciprocal']['contextual']:.3f}" in text
    assert sum(line.startswith(("1. ", "2. ", "3. ")) for line in text.splitlines()) == 3


def test_the_tables_are_plain_and_fit(sample):
    assert "\x1b" not in sample[0]
    assert max(map(len, sample[0].splitlines())) <= 110


def test_the_figures_follow_from_the_ranks(sample):
    document = sample[1]["documents"]
    for name in METHODS:
        ranks = [row["ranks"][name]["document"] for row in document["questions"]]
        assert document["summary"][name]["document"] == pytest.approx(sum(1 / r for r in ranks) / len(ranks))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bees.txt").write_text(
        "The bees swarm in May.\n\nHoney is harvested in July, when it is dry."
    )
    (tmp_path / "train.md").write_text("# Train\n\nThe night train leaves at nine.")
    (tmp_path / "chat.jsonl").write_text('{"speaker": "Ann", "text": "The plumber was paid."}\n')
    return tmp_path


def test_a_question_to_files_of_ones_own(folder, invoke):
    arguments = ["demo", "--docs", str(folder), "--question", "When is honey harvested?"]
    result = invoke([*arguments, "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    document = json.loads(result.stdout)
    assert list(document["methods"]) == list(METHODS)
    for method in document["methods"].values():
        assert method["results"][0]["document"] == "bees.txt"
    assert document["methods"]["chunks"]["results"][0]["passage"].startswith("Honey is harvested")
    text = invoke(arguments).stdout
    assert "Documents" in text
    assert "Passages" in text
    assert max(map(len, text.splitlines())) <= 100


def test_bad_files_do_not_stop_it(folder, invoke):
    (folder / "empty.txt").touch()
    result = invoke(["demo", "--docs", str(folder), "--question", "honey"])
    assert result.exit_code == 1
    assert "empty.txt: the file is empty" in result.stderr
    assert "Passages" in result.stdout


def test_nothing_to_search_in(tmp_path, invoke):
    (tmp_path / "docs").mkdir()
    for docs in ("docs", "gone"):
        result = invoke(["demo", "--docs", str(tmp_path / docs), "--question", "honey"])
        assert result.exit_code == 1
        assert "No file could be read" in result.stderr


def test_an_empty_question(folder, invoke):
    result = invoke(["demo", "--docs", str(folder), "--question", " "])
    assert result.exit_code == 1
    assert "The question is empty" in result.stderr
