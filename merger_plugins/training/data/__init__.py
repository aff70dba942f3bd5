"""Data of a training: articles, embedded by any base embedder, and the batches of each stage."""
