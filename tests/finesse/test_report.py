import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from merger_plugins import MeanMerger
from merger_plugins.errors import EmptyInputError, InputError, ResultError
from merger_plugins.finesse.bench_results import BenchResult, Step, save_bench
from merger_plugins.finesse.report import dissect, write
from merger_plugins.finesse.report.figures import limits, low_is_good
from merger_plugins.finesse.results import FinesseResult, verify
from merger_plugins.finesse.scoring import bottom_up, finesse, similarities, top_down
from merger_plugins.finesse.settings import FinesseSettings
from merger_plugins.finesse.synthesis import MergerSynthesis
from tests.finesse import pages
from tests.finesse.pages import HOSTILE, MERGERS, PROBES, SETTINGS


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pages.page(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def runs(page: Path) -> dict[str, FinesseResult]:
    return {name: verify(page.parent / f"{name}.json") for name in MERGERS}


class Parsed(HTMLParser):
    """Tags and texts as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, text: str) -> None:
        tag = self.tags[-1][0] if self.tags else ""
        self.texts[tag] = self.texts.get(tag, "") + text


def test_figures_are_those_of_the_result_files(page: Path, runs: dict[str, FinesseResult]) -> None:
    shown = {
        (row["rival"], row["metric"], row["at"]): row
        for row in pages.data(page)["records"]
        if row["axis"] == "finesse"
    }
    for name, result in runs.items():
        for length, scores in result.lengths.items():
            for gap, suffix in (("q1q3", ""), ("q2q2", ", medians")):
                for metric, mean in scores.summary()[gap].items():
                    row = shown[name, metric + suffix, length]
                    assert [row["value"], row["low"], row["high"]] == pytest.approx(
                        [mean["mean"], mean["low"], mean["high"]], abs=1e-6
                    )
                    assert row["n"] == SETTINGS.samples
            merging = shown[name, "ms a merge", length]
            assert merging["value"] == pytest.approx(np.median(scores.merging_ms))
            assert (merging["low"], merging["high"]) == (min(scores.merging_ms), max(scores.merging_ms))
        assert shown[name, "srs", 4]["value"] == pytest.approx(
            result.orders[4].summary()["q1q3"]["srs"]["mean"], abs=1e-6
        )


def test_records_are_shown_as_they_are(tmp_path: Path) -> None:
    records = pages.axis_records()
    shown = pages.data(write(records, tmp_path / "new" / "page.html"))
    assert shown["records"] == [record.to_dict() for record in records]
    assert shown["texts"] == {}
    assert shown["about"]["mean"] == "mass-weighted mean"


def test_a_bench_file_is_read_with_what_it_says_of_its_run(
    runs: dict[str, FinesseResult], tmp_path: Path
) -> None:
    records = tuple(pages.axis_records())
    task = {"name": "woods", "source": "ours", "licence": "made here", "revision": "0"}
    by_mean = next(record for record in records if record.rival == "mean")
    result = BenchResult(
        run={**runs["mean"].run, "tasks": [task], "rivals": [{"name": "mean", "about": "said by the run"}]},
        skipped=("No chats.",),
        steps={
            "all": Step("several", "synthetic", 1.0, records),
            "finesse, mean": Step("finesse", "articles", 1.0, (by_mean,)),
        },
        finesse={"mean": runs["mean"]},
        complete=True,
    )
    save_bench(result, tmp_path / "bench.json")
    shown = pages.data(write([tmp_path / "bench.json"], tmp_path / "page.html"))
    for row, record in zip(shown["records"][: len(records)], records, strict=True):
        assert (row["rival"], row["metric"], row["at"]) == (record.rival, record.metric, record.at)
        assert row["value"] == pytest.approx(record.value, abs=1e-6)
    times = [row for row in shown["records"] if row["metric"] == "ms a merge"]
    assert [(row["task"], row["rival"], row["at"]) for row in times] == [
        ("articles", "mean", length) for length in SETTINGS.lengths
    ]
    assert shown["about"]["mean"] == "said by the run"
    (facts,) = shown["runs"]
    assert facts["skipped"] == "No chats."
    assert facts["tasks"] == "woods (ours, made here, revision 0)"
    assert facts["hash of the scores"] == result.scores_hash


def test_two_runs_of_the_same_are_told_apart(runs: dict[str, FinesseResult], tmp_path: Path) -> None:
    mean = runs["mean"]
    shown = pages.data(write([mean, runs["ridge"], mean], tmp_path / "page.html"))
    names = ["MeanMerger", "CalibratedMerger", "MeanMerger (3)"]
    assert list(dict.fromkeys(row["rival"] for row in shown["records"])) == names
    assert [facts["run"] for facts in shown["runs"]] == [f"FINESSE of {name}" for name in names]
    first, third = (
        [row | {"rival": ""} for row in shown["records"] if row["rival"] == name] for name in names[::2]
    )
    assert first == third


def test_samples_are_those_that_the_run_scored(page: Path, runs: dict[str, FinesseResult]) -> None:
    shown = pages.data(page)["samples"]
    assert len(shown) == len(MERGERS) * len(SETTINGS.lengths) * 2
    for one in shown:
        result = runs[one["merger"]].lengths[one["length"]]
        for gap in ("q1q3", "q2q2"):
            assert np.mean(one["td"][gap]) == pytest.approx(result.td[gap][one["sample"]], abs=2e-5)
            assert np.mean(one["bu"][gap]) == pytest.approx(result.bu[gap][one["sample"]], abs=2e-5)
        chunks = one["chunks"]
        merged = MERGERS[one["merger"]].merge(PROBES.vectors[chunks[:3]])
        alone = MERGERS[one["merger"]].merge(PROBES.vectors[chunks[-1:]])
        assert one["similarity"][2][-1] == pytest.approx(float(merged @ alone), abs=2e-5)


def test_texts_are_shown_only_where_they_are_given(page: Path, tmp_path: Path) -> None:
    shown = pages.data(page)
    used = {number for one in shown["samples"] for number in one["chunks"]}
    assert shown["texts"] == {
        str(number): f"{HOSTILE} {PROBES.probes.texts[number]}" for number in sorted(used)
    }
    silent = write([], tmp_path / "silent.html", anatomy=pages.samples()).read_text(encoding="utf-8")
    assert not any(text in silent for text in PROBES.probes.texts)
    with pytest.raises(InputError, match=r"2 texts arrived, and a sample has probe \d+"):
        write([], tmp_path / "few.html", anatomy=pages.samples(), texts=["a", "b"])


def test_nothing_that_is_shown_is_taken_for_markup(page: Path) -> None:
    parsed = Parsed(page.read_text(encoding="utf-8"))
    assert [attributes for tag, attributes in parsed.tags if tag == "img"] == []
    assert [attributes.get("type") for tag, attributes in parsed.tags if tag == "script"] == [
        "application/json",
        None,
        None,
    ]
    assert parsed.texts["title"].strip() == f"Title {HOSTILE}"
    assert HOSTILE in {row["rival"] for row in pages.data(page)["records"]}


def test_the_page_asks_for_nothing(page: Path) -> None:
    parsed = Parsed(page.read_text(encoding="utf-8"))
    addresses = [
        attributes[name] for _, attributes in parsed.tags for name in ("src", "href") if name in attributes
    ]
    assert all(address is not None and address.startswith(("#", "data:")) for address in addresses)
    (policy,) = [
        attributes["content"]
        for tag, attributes in parsed.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"https?:", policy)
    assert page.stat().st_size < 6e6


def test_an_edited_file_is_refused(page: Path, tmp_path: Path) -> None:
    document = json.loads((page.parent / "mean.json").read_text())
    source = tmp_path / "edited.json"
    document["lengths"]["4"]["td"]["q1q3"][0] += 0.1
    source.write_text(json.dumps(document))
    with pytest.raises(ResultError, match="was edited or damaged"):
        write([page.parent / "ridge.json", source], tmp_path / "page.html")
    with pytest.raises(ResultError, match="There is no result file"):
        write([tmp_path / "none.json"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_mergers_of_one_class_are_told_apart(runs: dict[str, FinesseResult], tmp_path: Path) -> None:
    marks = {name: merger.fingerprint for name, merger in MERGERS.items()}
    shown = pages.data(write(runs.values(), tmp_path / "page.html"))
    assert {row["rival"] for row in shown["records"]} == {"MeanMerger", "CalibratedMerger"}
    same = dict.fromkeys(marks.values(), "mine")
    shown = pages.data(write(runs.values(), tmp_path / "page.html", names=same))
    assert {row["rival"] for row in shown["records"]} == {f"mine {mark[:6]}" for mark in marks.values()}


def test_limits_are_what_orthogonal_chunks_give() -> None:
    measured = [
        record
        for record in pages.axis_records()
        if record.rival == "mean" and record.metric in ("member cosine", "members found first")
    ]
    found = limits(measured)
    assert {record.metric for record in found} == {"member cosine"}
    assert {4, 8, 12} <= {record.at for record in found}
    for record in found:
        assert record.at is not None
        assert record.value == pytest.approx(record.at**-0.5)


def test_limits_of_scores_are_those_of_a_mean_of_orthogonal_vectors(page: Path) -> None:
    shown = {
        (row["metric"], row["at"]): row["value"]
        for row in pages.data(page)["limits"]
        if row["axis"] == "finesse"
    }
    assert {metric for metric, _ in shown}.isdisjoint({"srs", "ms a merge"})
    for length in (*SETTINGS.lengths, 5):  # 5 was not measured, but lies on the curve
        chunks = np.eye(length)
        matrix = similarities(np.cumsum(chunks, axis=0), chunks)
        td, bu = top_down(matrix), bottom_up(matrix)
        assert shown["td", length] == pytest.approx(td)
        assert shown["bu", length] == pytest.approx(bu)
        assert shown["finesse", length] == pytest.approx(finesse(td, bu))
        assert shown["td, medians", length] == pytest.approx(top_down(matrix, "q2q2"))


def test_less_is_better_for_what_is_paid() -> None:
    paid = ("ms a merge", "ms a thousand merges", "processor ms a thousand merges", "MB at once", "ms to fit")
    paid += ("vectors a document, sections", "MB a thousand documents", "teacher cosine lost when shuffled")
    assert all(map(low_is_good, paid))
    gained = ("ndcg@10", "recall@1, sections", "member cosine", "members found first", "finesse", "srs")
    assert not any(map(low_is_good, gained))


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(EmptyInputError, match="nothing to show"):
        write([], tmp_path / "page.html")
    with pytest.raises(InputError, match="dict is no result"):
        write([{}], tmp_path / "page.html")  # type: ignore[list-item]
    synthesis = MergerSynthesis(MeanMerger(), PROBES)
    with pytest.raises(InputError, match=r"lengths hold \[5\]"):
        dissect("mean", synthesis, len(PROBES), SETTINGS, lengths=[5])
    with pytest.raises(InputError, match="these settings need"):
        dissect("mean", synthesis, len(PROBES), FinesseSettings())
    with pytest.raises(InputError, match="samples is 0"):
        dissect("mean", synthesis, len(PROBES), SETTINGS, samples=0)
