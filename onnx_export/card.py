"""Model cards."""

from collections.abc import Mapping
from typing import Any

_EMBEDDER = """\
---
license: apache-2.0
language: en
base_model: sentence-transformers/all-MiniLM-L6-v2
library_name: onnx
pipeline_tag: feature-extraction
---

# all-MiniLM-L6-v2, 8 bits, ONNX

The base embedder that comes with merger_plugins. A text of up to 512 tokens becomes a vector of 384 numbers
at unit length; texts are compared by cosine.

```python
from merger_plugins.embedders import load_embedder

embedder = load_embedder()
embedder.embed_documents(["One chunk of text.", "Another."]).shape  # (2, 384)
embedder.embed_query("a question").shape  # (384,)
```

## Where it comes from

The weights and the tokenizer are those of
[sentence-transformers/all-MiniLM-L6-v2](https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2),
Apache-2.0. Changed here:

- Every matrix is rounded to 8-bit integers in blocks that share a float16 scale, each the scale of least
  squared error: blocks of 16 in the layers, of 128 in the tables of words and positions. Biases and layer
  normalisation stay in float32. The pooler, which sentence embeddings do not use, is left out.
- The graph is written out in standard ONNX operators (opset 17): inputs `input_ids` and `attention_mask`,
  (batch, tokens) int64, both dimensions free; output `embedding`, (batch, 384) float32. Token types are
  constant zero; mean pooling and the unit length are in the graph. ONNX Runtime restores the layers'
  matrices to float32 once, when it loads the graph.
- tokenizer.json neither pads nor truncates. The embedder truncates at 512 tokens, special tokens
  included. The original's own setting is 256; its position table has 512.

It was trained on English sentences and paragraphs. Texts in other languages get vectors, of little use.

## Against the original
{figures}
## Made by

```
python -m onnx_export embedder --out merger_plugins/models/all-MiniLM-L6-v2
python -m onnx_export parity --data FOLDER
```
"""

_UNMEASURED = """
Not measured yet; the second command below fills this in.
"""


def embedder_card(result: Mapping[str, Any] | None) -> str:
    """The card of the bundled embedder, with the figures of a parity result where there is one."""
    return _EMBEDDER.replace("{figures}", _UNMEASURED if result is None else _figures(result))


def _figures(result: Mapping[str, Any]) -> str:
    cosine, truncated, speed = result["cosine"], result["truncated"], result["throughput"]
    tokenizer = result["tokenizer"]
    cosines = "\n".join(
        f"| {group['tokens']} | {group['texts']} | {group['min']:.5f} | {group['mean']:.5f} |"
        for group in [*result["by_length"], {"tokens": "all", **cosine}]
    )
    speeds = "\n".join(
        f"| {name} | {rates['ours']:,} | {rates['torch']:,} | {rates['ratio']:.2f} |"
        for name, rates in speed["texts"].items()
    )
    return f"""
Cosine with the float32 torch model on {cosine["texts"]:,} passages of articles, speeches and documentation
in several languages (seed {result["seed"]}), each the worst of three ways of batching:

| tokens | texts | worst cosine | mean cosine |
|---|---|---|---|
{cosines}

- Texts beyond the limit, truncated by both: worst cosine {truncated["min"]:.5f} over {truncated["texts"]}.
- A text alone, in a batch of similar lengths and in a batch of any lengths: its vector differs by at most
  {result["batching"]["largest_difference"]:.0e}.
- Token ids equal the original tokenizer's for {tokenizer["identical"]:,} of {tokenizer["texts"]:,} texts.
- The folder has {result["bytes"]:,} bytes without this card.

Tokens a second with {speed["threads"]} threads on {result["hardware"]["cpu"]}, in the same run:

| texts | ours | torch, float32 | ratio |
|---|---|---|---|
{speeds}

Versions, data and seed: `benchmarks/results/embedder_parity.json`.
"""
