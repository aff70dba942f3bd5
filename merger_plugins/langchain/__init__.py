"""LangChain: embeddings whose long texts are merged, and a retriever over merged vectors."""

from merger_plugins.langchain.embeddings import UNKNOWN_TOKENIZER_MARGIN, MergerEmbeddings
from merger_plugins.langchain.retriever import MergerRetriever

__all__ = ["UNKNOWN_TOKENIZER_MARGIN", "MergerEmbeddings", "MergerRetriever"]
