"""``python -m onnx_export embedder``: the folder of the bundled base embedder."""

from pathlib import Path

from merger_plugins._artefact import Artefact, write_artefact
from onnx_export import bert
from onnx_export.card import embedder_card
from onnx_export.source import SHA256, Source


def release(source: Source, out: Path) -> Artefact:
    """Write the model, its tokenizer and a card without figures; the same source gives the same bytes."""
    sizes = bert.BertConfig.from_transformers(source.config)
    model = bert.build(source.tensors, sizes)
    config = {
        "kind": "embedder",
        "name": "all-MiniLM-L6-v2",
        "source": "sentence-transformers/all-MiniLM-L6-v2",
        "source_sha256": SHA256,
        "license": "Apache-2.0",
        "dimension": sizes.dimension,
        "max_tokens": sizes.positions,
        "pooling": "mean",
        "normalised": True,
    }
    files = {
        "model.onnx": model.SerializeToString(deterministic=True),
        "tokenizer.json": source.tokenizer,
        "README.md": embedder_card(None).encode(),
    }
    return write_artefact(out, config, files)
