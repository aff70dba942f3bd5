"""Runs the README's Python sessions and compares what they print with what the README prints."""

import doctest
import re
import sys
from pathlib import Path

readme = Path(sys.argv[1])
sessions = "\n".join(re.findall(r"```pycon\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL))
test = doctest.DocTestParser().get_doctest(sessions, {}, readme.name, str(readme), 0)
if not test.examples:
    sys.exit(f"{readme.name} holds no session")
runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
runner.run(test)
sys.exit(runner.failures > 0)
