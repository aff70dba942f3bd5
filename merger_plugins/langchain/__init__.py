"""LangChain: embeddings whose long texts are merged, a retriever over merged vectors, and a chat history."""

from merger_plugins.langchain.embeddings import UNKNOWN_TOKENIZER_MARGIN, MergerEmbeddings
from merger_plugins.langchain.history import MergerChatHistory
from merger_plugins.langchain.retriever import MergerRetriever

__all__ = ["UNKNOWN_TOKENIZER_MARGIN", "MergerChatHistory", "MergerEmbeddings", "MergerRetriever"]
