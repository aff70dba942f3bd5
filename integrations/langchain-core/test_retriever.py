"""LangChain's own tests of retrievers: every mode, over our stores and the host's own."""

from typing import Any

import pytest
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests

from merger_plugins.langchain import MergerRetriever
from merger_plugins.qdrant import QdrantStore
from tests.langchain.apps import APPS, SUBJECTS, Counting, documents, hook_over


class _Retriever(RetrieversIntegrationTests):
    mode = "fused"

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return MergerRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"hook": self.hook, "mode": self.mode}

    @property
    def retriever_query_example(self) -> str:
        return "When did the beacon start to shine?"


class _OwnCollection(_Retriever):
    @pytest.fixture(autouse=True)
    def _hook(self) -> None:
        self.hook = QdrantStore(":memory:", embedder=Counting(), contextual=True)
        for name, texts in SUBJECTS.items():
            self.hook.ingest(name, chunks=texts)


class _BackFilled(_Retriever):
    app = "qdrant"

    @pytest.fixture(autouse=True)
    def _hook(self) -> None:
        embeddings = Counting()
        store = APPS[self.app](embeddings)
        store.add_documents(documents())
        self.hook = hook_over(store, embeddings)
        self.hook.backfill(contextual="companion")


class TestFused(_OwnCollection):
    pass


class TestContextual(_OwnCollection):
    mode = "contextual"


class TestSections(_OwnCollection):
    mode = "section"


class TestDocuments(_OwnCollection):
    mode = "document"


class TestOverLangChainsQdrant(_BackFilled):
    pass


class TestOverLangChainsChroma(_BackFilled):
    app = "chroma"
