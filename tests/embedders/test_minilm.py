"""The bundled embedder, against vectors of the original torch model and against itself."""

import copy
import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merger_plugins import _session
from merger_plugins.embedders import MiniLMEmbedder, load_embedder, minilm
from merger_plugins.embedders.minilm import similar_lengths
from merger_plugins.errors import ArtefactError, InputError, MissingExtraError, ProviderError

pytest.importorskip("onnxruntime", reason="install the extra cpu")
pytest.importorskip("tokenizers", reason="install the extra cpu")

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text(encoding="utf-8"))
TEXTS: list[str] = REFERENCE["texts"]


@pytest.fixture(scope="module")
def embedder() -> MiniLMEmbedder:
    return load_embedder(threads=1)


@pytest.fixture(scope="module")
def alone(embedder: MiniLMEmbedder) -> np.ndarray:
    return np.stack([embedder.embed_query(text) for text in TEXTS])


@pytest.mark.parametrize("index", range(len(TEXTS)), ids=[text[:30] for text in TEXTS])
def test_vectors_are_those_of_the_torch_model(alone: np.ndarray, index: int) -> None:
    expected = np.array(REFERENCE["vectors"][index])
    cosine = alone[index] @ expected / np.linalg.norm(expected)
    assert cosine >= 0.999


def test_reference_covers_empty_short_and_truncated_texts(embedder: MiniLMEmbedder) -> None:
    lengths = [embedder.count_tokens(text) for text in TEXTS]
    assert min(lengths) == 0
    assert max(lengths) > 510
    assert len({length for length in lengths if length <= 510}) >= 10


def test_documents_have_unit_length_float32_and_the_order_of_the_texts(
    embedder: MiniLMEmbedder, alone: np.ndarray
) -> None:
    vectors = embedder.embed_documents(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, len(TEXTS) - 1), max_size=12), st.sampled_from([1, 60, 600, 5000]))
def test_batch_mates_and_batch_size_change_nothing(
    embedder: MiniLMEmbedder, alone: np.ndarray, rows: list[int], batch_tokens: int
) -> None:
    embedder = copy.copy(embedder)
    embedder._batch_tokens = batch_tokens
    vectors = embedder.embed_documents([TEXTS[row] for row in rows])
    np.testing.assert_allclose(vectors, alone[rows].reshape(len(rows), 384), atol=1e-5)


def test_more_texts_than_are_tokenised_at_once(
    embedder: MiniLMEmbedder, alone: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm, "_TEXTS_AT_ONCE", 3)
    np.testing.assert_allclose(embedder.embed_documents(TEXTS[:8]), alone[:8], atol=1e-5)


def test_meaning_outweighs_wording(embedder: MiniLMEmbedder) -> None:
    asked = embedder.embed_query("How do I reset my password?")
    answer, other = embedder.embed_documents(
        ["To choose a new one, open the settings and follow the link.", "How do I reset my watch?"]
    )
    cat, pet = embedder.embed_documents(["A cat sleeps on the sill.", "A pet is napping by the window."])
    assert cat @ pet > asked @ answer > 0
    assert cat @ pet > cat @ other


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("hello", 1), ("Hello, World!", 4), ("word " * 700, 700)]
)
def test_tokens_are_counted_without_the_special_ones_and_without_limit(
    embedder: MiniLMEmbedder, text: str, count: int
) -> None:
    assert embedder.count_tokens(text) == count


def test_text_ends_after_token_510(embedder: MiniLMEmbedder) -> None:
    words = ["word"] * 600
    whole = embedder.embed_query(" ".join(words))
    np.testing.assert_array_equal(whole, embedder.embed_query(" ".join(words[:510])))
    beyond, within = [*words], [*words]
    beyond[510], within[509] = "cat", "cat"
    np.testing.assert_array_equal(whole, embedder.embed_query(" ".join(beyond)))
    assert not np.array_equal(whole, embedder.embed_query(" ".join(within)))


def test_no_texts(embedder: MiniLMEmbedder) -> None:
    assert embedder.embed_documents([]).shape == (0, 384)


def test_one_string_is_not_a_sequence_of_texts(embedder: MiniLMEmbedder) -> None:
    with pytest.raises(InputError, match=r"pass \[text\]"):
        embedder.embed_documents("text")


@pytest.mark.parametrize("text", [None, b"bytes", 3, ["nested"]])
def test_a_text_is_a_string(embedder: MiniLMEmbedder, text: Any) -> None:
    for call in (
        embedder.embed_query,
        embedder.count_tokens,
        lambda t: embedder.embed_documents(["fine", t]),
    ):
        with pytest.raises(InputError, match=rf"is a str, and {type(text).__name__} arrived"):
            call(text)


def test_half_a_surrogate_pair_is_no_text(embedder: MiniLMEmbedder) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        embedder.embed_query("broken \ud83d")


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_of_a_used_embedder_work(embedder: MiniLMEmbedder, alone: np.ndarray, clone: Any) -> None:
    np.testing.assert_array_equal(clone(embedder).embed_query(TEXTS[3]), alone[3])


def test_settings_survive_pickling() -> None:
    with pytest.raises(ProviderError, match="NoSuchProvider"):
        pickle.loads(pickle.dumps(MiniLMEmbedder(providers=["NoSuchProvider"]))).embed_query("text")


def test_a_bare_name_of_a_provider_is_refused() -> None:
    with pytest.raises(InputError, match="providers is 'CPUExecutionProvider'"):
        MiniLMEmbedder(providers="CPUExecutionProvider")


def test_threads_share_one_session(alone: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    created = []
    create = minilm.create_session
    monkeypatch.setattr(minilm, "create_session", lambda *a: created.append(a) or create(*a))
    fresh = MiniLMEmbedder(threads=1)
    with ThreadPoolExecutor(8) as pool:
        vectors = list(pool.map(fresh.embed_query, TEXTS[:16]))
    np.testing.assert_allclose(vectors, alone[:16], atol=1e-5)
    assert len(created) == 1


def _query(embedder: MiniLMEmbedder, results: Any) -> None:
    results.put(embedder.embed_query(TEXTS[3]))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork")
def test_a_forked_process_makes_its_own_session(
    embedder: MiniLMEmbedder, alone: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_session, "usable_threads", lambda: 2)  # on a machine with one, too
    context = multiprocessing.get_context("fork")
    two = copy.copy(embedder)
    two._config = minilm.SessionConfig(threads=2)  # a pool with a thread that a fork leaves behind
    two.embed_documents(TEXTS)
    results = context.Queue()
    child = context.Process(target=_query, args=(two, results), daemon=True)
    child.start()
    np.testing.assert_allclose(results.get(timeout=60), alone[3], atol=1e-5)
    child.join(timeout=60)


def test_constructor_reads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(minilm, "FOLDER", tmp_path / "absent")
    embedder = MiniLMEmbedder()
    with pytest.raises(ArtefactError, match=r"no model folder at .*absent"):
        embedder.embed_query("text")


def test_without_tokenizers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"merger-plugins\[cpu\]"):
        MiniLMEmbedder().count_tokens("text")


def test_importing_embedders_imports_numpy_alone() -> None:
    code = (
        "import sys, merger_plugins.embedders;"
        "print([m for m in ('onnxruntime', 'tokenizers', 'torch', 'langchain_core', 'llama_index')"
        " if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("batch_tokens", [0, -5, 1.5, True])
def test_batch_tokens_are_counted_from_one(batch_tokens: Any) -> None:
    with pytest.raises(InputError, match="batch_tokens"):
        MiniLMEmbedder(batch_tokens=batch_tokens)


@given(st.lists(st.integers(2, 512), max_size=40), st.integers(1, 3000))
def test_groups_hold_every_text_once_and_fit_the_budget(lengths: list[int], budget: int) -> None:
    groups = [group.tolist() for group in similar_lengths(lengths, budget)]
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= budget
    ordered = [lengths[row] for group in groups for row in group]
    assert ordered == sorted(lengths)
