"""With numpy and the wheel alone: import, merge, roll, calibrate; what is missing says how to get it."""

import sys

import numpy as np

import merger_plugins
from merger_plugins.errors import MissingExtraError

vectors = np.random.default_rng(0).standard_normal((40, 384)).astype(np.float32)
merger = merger_plugins.load_merger()
assert merger.merge(vectors[:4]).shape == (384,)
rolling = merger.calibrated(vectors).rolling()
rolling.extend(vectors)
assert abs(np.linalg.norm(rolling.vector) - 1) < 1e-5
message = ""
try:
    merger_plugins.load_embedder().embed_query("hello")
except MissingExtraError as error:
    message = str(error)
if "pip install 'merger-plugins[cpu]'" not in message:
    sys.exit(f"without ONNX Runtime the bundled embedder said: {message!r}")
