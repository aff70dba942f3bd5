"""Ray: the merge as transformations of a Ray data set, and back-filling with many workers."""

from merger_plugins._extras import require

require("ray.data", extra="ray", purpose="merger_plugins.ray", package="ray")

from merger_plugins.ray.engine import cluster  # noqa: E402 - after the check that it is there
from merger_plugins.ray.filling import RayEngine  # noqa: E402
from merger_plugins.ray.merging import merge_dataset  # noqa: E402
from merger_plugins.ray.parquet import backfill_parquet  # noqa: E402
from merger_plugins.ray.rows import Columns  # noqa: E402

__all__ = ["Columns", "RayEngine", "backfill_parquet", "cluster", "merge_dataset"]
