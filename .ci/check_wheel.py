"""The wheel holds the package and nothing else, with its models, and stays under 45 MB."""

import sys
import zipfile
from pathlib import Path

LIMIT = 45_000_000
NEEDED = (
    "merger_plugins/py.typed",
    "merger_plugins/models/all-MiniLM-L6-v2/model.onnx",
    "merger_plugins/models/all-MiniLM-L6-v2/tokenizer.json",
    "merger_plugins/models/calibrated-all-MiniLM-L6-v2/background.safetensors",
    "merger_plugins/models/follow-up-all-MiniLM-L6-v2/need.safetensors",
    "merger_plugins/models/synthesizer-all-MiniLM-L6-v2/model.onnx",
    "merger_plugins/training/recipes/release.toml",
    "merger_plugins/finesse/report/page.html",
    "merger_plugins/demo/corpus/questions.json",
)

(wheel,) = Path(sys.argv[1]).glob("*.whl")
names = zipfile.ZipFile(wheel).namelist()
strangers = [n for n in names if not n.startswith(("merger_plugins/", "merger_plugins-"))]
problems = [f"does not belong in it: {name}" for name in strangers]
problems += [f"is missing: {name}" for name in NEEDED if name not in names]
problems += [f"is not source: {name}" for name in names if name.endswith(".pyc") or "__pycache__" in name]
if wheel.stat().st_size >= LIMIT:
    problems.append(f"{wheel.stat().st_size:,} bytes, and {LIMIT:,} is the limit")
for problem in problems:
    print(f"{wheel.name}: {problem}", file=sys.stderr)
print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB")
sys.exit(bool(problems))
