"""Data of a training: articles, embedded by any base embedder, and the batches of each stage."""

from merger_plugins.training.data.articles import Article, Chosen, choose_articles, read_articles
from merger_plugins.training.data.bases import Base, open_base
from merger_plugins.training.data.corpus import Corpus
from merger_plugins.training.data.shards import ShardSettings, ShardWriter

__all__ = [
    "Article",
    "Base",
    "Chosen",
    "Corpus",
    "ShardSettings",
    "ShardWriter",
    "choose_articles",
    "open_base",
    "read_articles",
]
