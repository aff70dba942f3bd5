"""What importing and using the core loads, seen from a fresh interpreter."""

import json
import subprocess
import sys
from pathlib import Path

import merger_plugins

FORBIDDEN = [
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "qdrant_client",
    "langchain_core",
    "llama_index",
    "chromadb",
    "typer",
    "rich",
]

REPORT = """
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""
USE = """
import tempfile
vectors = numpy.random.default_rng(0).standard_normal((30, 8))
merger = merger_plugins.MeanMerger().calibrated(vectors)
rolling = merger.rolling()
rolling.extend(vectors)
merger.rolling(rolling.state).append(vectors[0])
with tempfile.TemporaryDirectory() as folder:
    assert merger_plugins.load_merger(merger.save(folder + "/saved")).fingerprint == merger.fingerprint
assert merger.contextualize(vectors).shape == (30, 8)
"""
BLOCK = f"""
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
"""


def run(script: str) -> str:
    preamble = f"import json, sys\nsys.path.insert(0, {str(Path(merger_plugins.__file__).parents[1])!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", preamble + script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(script: str) -> set[str]:
    return set(json.loads(run("import numpy.random\nbefore = set(sys.modules)\n" + script + REPORT)))


def test_importing_the_package_loads_numpy_and_the_standard_library_alone():
    roots = loaded("import merger_plugins")
    assert roots - set(sys.stdlib_module_names) <= {"merger_plugins", "numpy"}
    assert not roots & set(FORBIDDEN)


def test_merging_rolling_calibrating_and_saving_load_nothing_more():
    roots = loaded("import merger_plugins\n" + USE)
    assert roots - set(sys.stdlib_module_names) <= {"merger_plugins", "numpy"}


def test_the_core_works_where_no_optional_package_is_installed():
    run(BLOCK + "import numpy, merger_plugins\n" + USE)


def test_everything_that_the_package_promises_is_there():
    listed = merger_plugins.__all__
    assert all(hasattr(merger_plugins, name) for name in listed)
    assert len(set(listed)) == len(listed)
