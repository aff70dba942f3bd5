"""``merger-plugins report`` and ``bench --report`` with the bundled embedder."""

import json

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("scipy")
pytest.importorskip("ir_measures")
pytest.importorskip("plotly")

from merger_plugins.finesse.bench_results import load_bench
from tests.finesse.pages import data


def test_a_run_on_the_sample_documents_is_shown(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("bench", "--quick", "--rival", "mean", "--rival", "calibrated", "--cache", "cache")
    asked += ("--axis", "finesse")
    result = invoke([*asked, "--report", "out/page.html", "--json"])
    assert result.exit_code == 0, result.output
    file = json.loads(result.stdout)["file"]
    found = load_bench(tmp_path / file)
    shown = data(tmp_path / "out" / "page.html")
    times = [row for row in shown["records"] if row["metric"].startswith("ms ")]
    assert {row["rival"] for row in times} == {"mean", "calibrated"}
    assert len(shown["records"]) == len(found.records) + len(times)
    assert shown["texts"] == {}
    for one in shown["samples"]:
        scores = found.finesse[one["merger"]].lengths[one["length"]]
        gaps = one["td"]["q1q3"]
        assert sum(gaps) / len(gaps) == pytest.approx(scores.td["q1q3"][one["sample"]], abs=2e-5)
    assert {(one["merger"], one["length"]) for one in shown["samples"]} == {
        (name, length) for name, part in found.finesse.items() for length in part.lengths
    }

    again = invoke([*asked, "--report", "texts.html", "--report-texts"])
    assert again.exit_code == 0, again.output
    texts = data(tmp_path / "texts.html")["texts"]
    assert set(texts) == {str(number) for one in shown["samples"] for number in one["chunks"]}
    assert any("Velora 2" in text for text in texts.values())

    plain = invoke(["report", file, "-o", "plain.html", "--title", "Mine", "--note", "A <small> run."])
    assert plain.exit_code == 0, plain.output
    page = (tmp_path / "plain.html").read_text(encoding="utf-8")
    assert "<h1>Mine</h1>" in page
    assert "A &lt;small&gt; run." in page
    assert data(tmp_path / "plain.html")["records"] == shown["records"]


def test_an_edited_file_is_refused(invoke, tmp_path):
    edited = tmp_path / "edited.json"
    edited.write_text('{"format": 1, "benchmark": "bench", "content_hash": "0"}')
    result = invoke(["report", str(edited), "-o", str(tmp_path / "page.html")])
    assert result.exit_code == 1
    assert "was edited or damaged" in result.output
    assert not (tmp_path / "page.html").exists()
