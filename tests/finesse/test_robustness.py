from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from merger_plugins import MeanMerger
from merger_plugins.chunking import SentenceChunker
from merger_plugins.errors import DimensionError, InputError
from merger_plugins.finesse.axes.robustness import (
    OverlappingChunker,
    chunk_sizes,
    copies,
    foreign,
    junk,
    languages,
    overlaps,
    repeated,
    with_foreign,
    with_inserted,
)
from merger_plugins.finesse.collections import Collection
from merger_plugins.finesse.embedding import Embeddings
from merger_plugins.finesse.rivals import Merging, rivals
from tests.finesse.lab import WordEmbedder, collection, retrieval_data, source

MEAN = Merging("mean", "", lambda _sample: MeanMerger())


@pytest.fixture(scope="module")
def woods() -> Collection:
    return collection()


def strange(rng: np.random.Generator, document: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((count, 24), 9.0, np.float32), np.full(count, 1 + document, np.float32)


def test_strange_chunks_are_inserted_and_the_own_stay_in_order(woods: Collection):
    changed = with_inserted(woods, 0.5, strange, seed=0)
    own = changed.chunks[:, 0] != 9
    np.testing.assert_array_equal(changed.chunks[own], woods.chunks)
    np.testing.assert_array_equal(changed.document[own], woods.document)
    np.testing.assert_array_equal(changed.masses[own], woods.masses)
    np.testing.assert_array_equal(changed.masses[~own], 1 + changed.document[~own])
    assert np.bincount(changed.document[~own]).tolist() == [7] * 12


def test_foreign_chunks_are_those_of_other_documents(woods: Collection):
    changed = with_foreign(woods, 0.5, seed=0)
    owner = {
        chunk.tobytes(): int(document) for chunk, document in zip(woods.chunks, woods.document, strict=True)
    }
    origin = np.array([owner[chunk.tobytes()] for chunk in changed.chunks])
    assert np.bincount(changed.document[origin != changed.document]).tolist() == [7] * 12
    assert (origin == changed.document).sum() == len(woods.chunks)


def test_a_small_share_is_rounded_at_random():
    many = collection(documents=24, chunks=50)
    added = [len(with_inserted(many, 0.01, strange, seed).chunks) - 1_200 for seed in range(20)]
    assert np.mean(added) == pytest.approx(12, abs=2)
    assert len(set(added)) > 1


def test_no_share_changes_nothing(woods: Collection):
    changed = with_inserted(woods, 0, strange, seed=0)
    np.testing.assert_array_equal(changed.chunks, woods.chunks)


def test_chunks_are_repeated_in_a_row(woods: Collection):
    counts = np.ones(len(woods.chunks), np.int64)
    counts[3] = 4
    changed = repeated(woods, counts)
    assert len(changed.chunks) == len(woods.chunks) + 3
    np.testing.assert_array_equal(changed.chunks[3:7], np.tile(woods.chunks[3], (4, 1)))


def test_each_disturbance_is_measured_beside_its_absence(woods: Collection):
    plain = {
        "foreign": foreign([MEAN], woods, shares=(0, 0.5)),
        "copies": copies([MEAN], woods, times=(1, 10)),
    }
    for records in plain.values():
        assert [record.axis for record in records] == ["robustness"] * 2
        first, second = records
        assert first.value == plain["foreign"][0].value
        assert second.value <= first.value
    assert [record.at for record in plain["copies"]] == [1, 10]


def test_foreign_chunks_need_a_second_document():
    with pytest.raises(InputError, match="one document"):
        foreign([MEAN], collection(documents=1))


def test_junk_has_the_collections_dimension(woods: Collection):
    with pytest.raises(DimensionError, match=r"dimension 51.*synthetic have 24"):
        junk([MEAN], woods, Embeddings(WordEmbedder()), shares=(0.5,))


def test_texts_are_cut_and_embedded_again(tmp_path: Path):
    task = retrieval_data(tmp_path)
    origin = source(tmp_path)
    chosen = [MEAN, *rivals(["truncation"])]
    sizes = chunk_sizes(chosen, task, origin, sizes=(20, 60))
    assert {(record.rival, record.at) for record in sizes} == {
        (name, size) for name in ("mean", "truncation") for size in (20, 60)
    }
    overlapping = overlaps([MEAN], task, origin, shares=(0, 0.5))
    assert [record.at for record in overlapping] == [0, 0.5]
    disturbed = junk([MEAN], task.collection(origin), origin.embed, shares=(0.0, 0.1))
    assert [record.along for record in disturbed] == ["share of junk"] * 2


def test_an_overlap_begins_with_the_end_of_the_chunk_before():
    text = "Moss grows on oak and on ash. " * 30
    plain = SentenceChunker(30).split(text)
    grown = OverlappingChunker(SentenceChunker(30), 0.5).split(text)
    assert grown[0] == plain[0]
    for before, after in zip(plain[1:], grown[1:], strict=True):
        assert after.text == text[after.start : after.end]
        assert after.end == before.end
        assert after.text.endswith(before.text)
        length = before.end - before.start
        assert 0.3 * length < before.start - after.start <= 0.5 * length + 1
        assert before.tokens < after.tokens <= 1.6 * before.tokens
    with pytest.raises(InputError, match="share is 1"):
        OverlappingChunker(SentenceChunker(30), 1).split(text)


def test_other_languages_are_stored_beside_the_first():
    parts = [collection(documents=6, seed=seed) for seed in range(3)]
    found = languages([MEAN], parts)
    assert [record.at for record in found] == [1, 2, 3]
    assert {record.n for record in found} == {len(parts[0].queries)}
    assert found[2].value <= found[0].value
