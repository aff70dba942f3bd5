"""LangChain's own tests of embeddings, on the bundled embedder and on wrapped LangChain embeddings."""

from typing import Any

from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from merger_plugins.langchain import MergerEmbeddings


class _Bundled:
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return MergerEmbeddings


class _Wrapping(_Bundled):
    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embeddings": DeterministicFakeEmbedding(size=64), "max_tokens": 128}


class _EveryTextIsLong(_Bundled):
    """The suite's words, cut into letters: each of them is split and merged."""

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embeddings": DeterministicFakeEmbedding(size=64), "max_tokens": 4, "count_tokens": len}


class TestBundledUnit(_Bundled, EmbeddingsUnitTests):
    pass


class TestBundledIntegration(_Bundled, EmbeddingsIntegrationTests):
    pass


class TestWrappingUnit(_Wrapping, EmbeddingsUnitTests):
    pass


class TestWrappingIntegration(_Wrapping, EmbeddingsIntegrationTests):
    pass


class TestEveryTextIsLongIntegration(_EveryTextIsLong, EmbeddingsIntegrationTests):
    pass
