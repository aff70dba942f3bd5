"""Print the oldest versions that extras of pyproject.toml claim: python .ci/lowest.py qdrant langchain"""

import re
import sys
import tomllib
from pathlib import Path

extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
for extra in sys.argv[1:]:
    for requirement in extras[extra]:
        if not requirement.startswith("merger-plugins["):
            name, lowest = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
            print(f"{name}=={lowest}")
