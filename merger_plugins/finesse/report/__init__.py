"""One HTML page that shows results: leaderboard, cost, curves over length, and the anatomy of a score.

::

    write(["mean.json", "calibrated.json"], "quality.html", anatomy=dissect("mean", synthesis, len(probes)))

The page holds all that it needs, plotly.js included, and asks for nothing from a network. It needs plotly,
of the extra `bench`.
"""

from merger_plugins.finesse.report.anatomy import Sample, dissect, dissect_bench
from merger_plugins.finesse.report.page import write

__all__ = ["Sample", "dissect", "dissect_bench", "write"]
