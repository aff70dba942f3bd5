"""Every example is an offline script that runs to its end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import merger_plugins

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
PACKAGE = Path(merger_plugins.__file__).parent
DOCUMENTS = 8


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the package, the demo corpus cut short: to embed all of it takes most of the time."""
    folder = tmp_path_factory.mktemp("small")
    demo, corpus = PACKAGE / "demo", PACKAGE / "demo" / "corpus"
    (folder / "merger_plugins" / "demo" / "corpus").mkdir(parents=True)
    documents = sorted(path for path in corpus.iterdir() if path.suffix in (".md", ".txt"))[:DOCUMENTS]
    for path in (*PACKAGE.iterdir(), *demo.iterdir(), *documents, corpus / "chat.jsonl"):
        if path not in (demo, corpus) and path.name != "__pycache__":
            (folder / path.relative_to(PACKAGE.parent)).symlink_to(path)
    names = {path.name for path in documents}
    questions = json.loads((corpus / "questions.json").read_text(encoding="utf-8"))
    questions["documents"] = [each for each in questions["documents"] if each["document"] in names]
    written = folder / "merger_plugins" / "demo" / "corpus" / "questions.json"
    written.write_text(json.dumps(questions), encoding="utf-8")
    return folder


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_prints(script, small, tmp_path):
    run = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(small)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_there_are_examples():
    assert EXAMPLES
