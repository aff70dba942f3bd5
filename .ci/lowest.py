"""Print the pins of the oldest clients that pyproject.toml claims: python .ci/lowest.py chroma qdrant"""

import re
import sys
import tomllib
from pathlib import Path

extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
for extra in sys.argv[1:]:
    (requirement,) = extras[extra]
    name, lowest = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
    print(f"{name}=={lowest}")
