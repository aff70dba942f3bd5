"""Benchmarks where what they measure is not at hand, and the pages that quote them."""

import pytest


def test_the_gpu_benchmark_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch", reason="install the extra train")
    pytest.importorskip("onnxruntime", reason="install the extra cpu")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from benchmarks import gpu

    assert gpu.main() == 2
    said = capsys.readouterr()
    assert not said.out
    assert "No GPU here: torch" in said.err
    assert "Nothing was measured" in said.err


def test_a_missing_result_is_a_table_that_says_so(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import scaling_tables

    monkeypatch.setattr(scaling_tables, "RESULTS", tmp_path)
    tables = scaling_tables.tables()
    assert set(tables) == {*scaling_tables.NAMES, "scale-gpu", "scale-ray"}
    assert all(text.startswith("Not measured") for name, text in tables.items() if name != "scale-gpu")
    assert tables["scale-gpu"].count(scaling_tables.NOT_MEASURED) == len(scaling_tables.GPU_ROWS)
