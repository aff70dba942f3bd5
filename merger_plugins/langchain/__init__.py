"""LangChain: embeddings of long texts, a retriever over merged vectors, a vector store and a chat history."""

from merger_plugins.langchain.embeddings import UNKNOWN_TOKENIZER_MARGIN, MergerEmbeddings
from merger_plugins.langchain.history import MergerChatHistory
from merger_plugins.langchain.retriever import MergerRetriever
from merger_plugins.langchain.vectorstore import MergerVectorStore

__all__ = [
    "UNKNOWN_TOKENIZER_MARGIN",
    "MergerChatHistory",
    "MergerEmbeddings",
    "MergerRetriever",
    "MergerVectorStore",
]
