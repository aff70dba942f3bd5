"""LangChain: embeddings whose long texts are merged instead of cut off."""

from merger_plugins.langchain.embeddings import UNKNOWN_TOKENIZER_MARGIN, MergerEmbeddings

__all__ = ["UNKNOWN_TOKENIZER_MARGIN", "MergerEmbeddings"]
