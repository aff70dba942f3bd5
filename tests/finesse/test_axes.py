from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import MeanMerger, load_merger
from merger_plugins._artefact import write_artefact
from merger_plugins.errors import DimensionError, EmptyInputError, InputError
from merger_plugins.finesse.axes.associativity import Node, associativity, random_division
from merger_plugins.finesse.axes.cost import cost
from merger_plugins.finesse.axes.extrapolation import extrapolation
from merger_plugins.finesse.axes.fidelity import fidelity
from merger_plugins.finesse.axes.follow_ups import QUESTION, REWRITE, all_turns, follow_ups, with_history
from merger_plugins.finesse.axes.order import order
from merger_plugins.finesse.axes.retrieval import retrieval
from merger_plugins.finesse.axes.windows import windows
from merger_plugins.finesse.collections import Collection
from merger_plugins.finesse.follow_ups import FollowUps, Turns, mixed
from merger_plugins.finesse.pooling import PooledMerger, first_and_mean, unweighted_mean
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import LIMIT, OWN_LIMIT, Merging, orthogonal_limit, rivals, unfit
from merger_plugins.mergers.graphs import MODEL
from tests.finesse.lab import WordEmbedder, collection, conversation_data, retrieval_data, source
from tests.strategies import chunk_vectors

MEAN = Merging("mean", "", lambda _sample: MeanMerger())
UNWEIGHTED = Merging("unweighted", "", lambda _sample: unweighted_mean())
FIRST = Merging("first", "", lambda _sample: first_and_mean())
FOREIGN = Merging(
    "foreign", "", lambda _sample: MeanMerger().calibrated([chunk_vectors(seed, 9, 7) for seed in range(3)])
)


@pytest.fixture(scope="module")
def woods() -> Collection:
    return collection()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    data = tmp_path_factory.mktemp("data")
    return retrieval_data(data).collection(source(data))


def values(records: Iterable[Record], rival: str, metric: str) -> dict[float | None, float]:
    return {found.at: found.value for found in records if (found.rival, found.metric) == (rival, metric)}


def test_every_rival_takes_part_in_retrieval(texts: Collection):
    absent = unfit(texts.chunks.shape[1], ours=False)
    chosen = [rival for rival in rivals() if rival.name not in absent]
    found = retrieval(chosen, texts, levels=("documents", "sections", "passages"))
    for rival in chosen:
        scores = [record for record in found if record.rival == rival.name and record.low is not None]
        assert len(scores) == 12, rival.name
        assert all(0 <= r.low <= r.value <= r.high <= 1 and r.n == 6 for r in scores if r.high is not None)
        # Each document has words of its own; so few vectors are too few for an unshrunk covariance.
        least = 5 / 6 if rival.name == "whitened mean" else 1
        assert values(found, rival.name, "recall@1")[None] >= least, rival.name


def test_storage_is_counted(woods: Collection):
    found = retrieval(
        rivals(["mean", "every chunk", "every chunk, fused"]), woods, levels=("documents", "sections")
    )
    assert values(found, "mean", "vectors a document") == {None: 1}
    assert values(found, "mean", "vectors a document, sections") == {None: 2}
    assert values(found, "every chunk", "vectors a document") == {None: 14}
    assert values(found, "every chunk, fused", "vectors a document") == {None: 14 + 2 + 1}
    assert values(found, "every chunk", "MB a thousand documents")[None] == pytest.approx(14 * 24 * 4 / 1e3)


def test_documents_that_are_stored_alike_count_as_not_found(woods: Collection):
    merged = MeanMerger().merge_many(woods.sequences())
    blind = Merging("blind", "", lambda _sample: Blind(merged[0]))
    found = retrieval([blind], woods)
    assert values(found, "blind", "ndcg@10") == {None: 0}
    assert values(found, "blind", "mrr@100")[None] == pytest.approx(1 / 12)


class Blind(PooledMerger):
    """Gives one vector, whatever is merged."""

    def __init__(self, vector: np.ndarray) -> None:
        super().__init__("blind", lambda vectors, _mask, _masses: np.tile(vector, (len(vectors), 1)))


def test_vectors_that_are_all_the_same_are_refused(woods: Collection):
    with pytest.raises(InputError, match="168 chunk vectors of synthetic are all the same"):
        woods.with_chunks(np.tile(woods.chunks[:1], (168, 1)), woods.document, woods.masses)


def test_two_seeds_rank_mergers_alike():
    for seed in (0, 1):
        rows = retrieval([MEAN, FIRST], collection(seed=seed, spread=3), seed=seed)
        assert 0.9 > values(rows, "mean", "ndcg@10")[None] > values(rows, "first", "ndcg@10")[None]


@pytest.mark.parametrize("axis", [retrieval, order, associativity, extrapolation, cost])
def test_a_merger_of_another_dimension_is_refused(axis: object, woods: Collection):
    assert callable(axis)
    with pytest.raises(DimensionError, match=r"dimension 24.*dimension 7"):
        axis([FOREIGN], woods)


def test_fidelity_is_the_cosine_with_the_vector_of_the_text(texts: Collection):
    found = fidelity([MEAN, *rivals(["every chunk", "calibrated"])], texts, counts=(2, 3), per_count=4)
    assert {record.rival for record in found} == {"mean", "calibrated"}
    through = "teacher cosine, through the merger"
    assert values(found, "mean", through) == pytest.approx(values(found, "mean", "teacher cosine"))
    assert values(found, "calibrated", through)[None] > values(found, "calibrated", "teacher cosine")[None]
    assert texts.text is not None
    drawn = windows(texts, counts=(2, 3), per_count=4)
    for count in (2, 3):
        cosines = []
        for index in np.flatnonzero(drawn.count == count):
            first = np.flatnonzero((texts.chunks == drawn.vectors[index][0]).all(axis=1))[0]
            text = texts.text.documents[texts.document[first]]
            text = text[texts.text.spans[first, 0] : texts.text.spans[first + count - 1, 1]]
            teacher = WordEmbedder().embed_query(text)
            merged = (drawn.masses[index][:, None] * drawn.vectors[index]).sum(axis=0)
            cosines.append(merged @ teacher / np.linalg.norm(merged) / np.linalg.norm(teacher))
        assert values(found, "mean", "teacher cosine")[count] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_windows_stay_inside_documents_and_the_context(woods: Collection):
    drawn = windows(woods, counts=(2, 5), per_count=1_000, most_tokens=150)
    inside = 0
    for start in range(len(woods.document)):
        for count in (2, 5):
            part = slice(start, start + count)
            same = start + count <= len(woods.document) and len(set(woods.document[part])) == 1
            inside += same and woods.masses[part].sum() <= 150
    assert len(drawn.vectors) == inside
    with pytest.raises(EmptyInputError, match="at most 3 tokens"):
        windows(woods, most_tokens=3)


def test_fidelity_needs_text(woods: Collection):
    with pytest.raises(InputError, match="vectors alone"):
        fidelity([MEAN], woods)


def test_order_changes_what_begins_with_the_first_chunk_alone(woods: Collection, texts: Collection):
    found = order([MEAN, FIRST], woods)
    for turned in ("shuffled", "reversed"):
        assert values(found, "mean", f"change when {turned}")[None] == pytest.approx(0, abs=1e-6)
        assert values(found, "first", f"change when {turned}")[None] > 0.005
    lost = [r for r in order([MEAN, FIRST], texts) if r.metric == "teacher cosine lost when shuffled"]
    assert [abs(record.value) < 1e-6 for record in lost] == [True, False]


def leaves(node: Node) -> list[int]:
    return [leaf for child in node.children for leaf in leaves(child)] if node.children else [node.start]


@given(st.integers(1, 60), st.integers(0, 1_000))
def test_a_random_division_holds_each_chunk_once(count: int, seed: int):
    root = random_division(0, count, np.random.default_rng(seed))
    assert leaves(root) == list(range(count))

    def check(node: Node) -> None:
        assert not node.children or 2 <= len(node.children) <= 10
        assert node.height == (1 + max(c.height for c in node.children) if node.children else 0)
        for child in node.children:
            check(child)

    check(root)


def test_the_mean_is_associative_and_without_masses_it_is_not(woods: Collection):
    found = associativity([MEAN, UNWEIGHTED, *rivals(["whitened mean"])], woods, trees=20)

    def mean(name: str, way: str, least: str = "") -> float:
        return values(found, name, f"{least}cosine with the whole, {way}")[None]

    for name in ("mean", "whitened mean"):
        assert mean(name, "nodes", "least ") == pytest.approx(1, abs=1e-5)
    # A merged vector has unit length, so that a mean of means forgets how much its parts agreed.
    assert 0.999 < mean("mean", "merged again") < 1 - 1e-6
    assert mean("unweighted", "merged again") < mean("mean", "merged again") - 0.002
    assert mean("whitened mean", "merged again") < 0.999
    for name in ("mean", "unweighted", "whitened mean"):
        assert mean(name, "merged again", "least ") < mean(name, "merged again")


def test_a_graph_with_a_window_takes_part(woods: Collection, tmp_path: Path):
    graph = MeanMerger().export(tmp_path / "whole", dimension=24) / MODEL
    config = {"kind": "onnx", "dimension": 24, "window": 4}
    folder = write_artefact(tmp_path / "window", config, {MODEL: graph.read_bytes()}).path
    windowed = Merging("windowed", "", lambda _sample: load_merger(folder))
    found = associativity([windowed], woods, trees=10)
    # Every node is a normalised mean, so that merging again and the nodes are the same thing.
    for figure in ("cosine with the whole", "least cosine with the whole"):
        again = values(found, "windowed", f"{figure}, merged again")[None]
        assert again == pytest.approx(values(found, "windowed", f"{figure}, nodes")[None], abs=1e-5)
        assert 0.99 < again < 1 - 1e-6
    assert values(retrieval([windowed], woods), "windowed", "recall@1")[None] == 1


def test_documents_of_two_chunks_cannot_be_divided():
    with pytest.raises(EmptyInputError, match="3 chunks"):
        associativity([MEAN], collection(chunks=2))


def test_the_mean_reaches_the_limit_of_its_chunks(woods: Collection):
    found = extrapolation([UNWEIGHTED, FIRST], woods, lengths=(2, 4, 14, 32))
    for length in (2, 4, 14):  # no document has 32 chunks
        limit = values(found, OWN_LIMIT, "member cosine")[length]
        assert values(found, "unweighted", "member cosine")[length] == pytest.approx(limit, abs=1e-5)
        assert values(found, "first", "member cosine")[length] < limit
        assert values(found, LIMIT, "member cosine")[length] == orthogonal_limit(length)
        assert values(found, "unweighted", "members found first")[length] == 1
    assert {record.at for record in found} == {2, 4, 14}


def test_too_few_long_documents_are_named(woods: Collection):
    with pytest.raises(InputError, match=r"0 documents of synthetic have 64 chunks, and 10 are needed"):
        extrapolation([MEAN], woods, lengths=(64,))


def test_cost_has_a_figure_for_each_merger(woods: Collection):
    found = cost([MEAN, *rivals(["every chunk", "calibrated"])], woods, repeats=2)
    assert {record.rival for record in found} == {"mean", "calibrated"}
    for record in found:
        assert record.value > 0 or record.metric == "processor ms a thousand merges"
    (merging,) = (r for r in found if r.rival == "mean" and r.metric == "ms a thousand merges")
    assert merging.low is not None
    assert merging.high is not None
    assert merging.low <= merging.value <= merging.high


def test_history_finds_what_the_question_does_not_name(tmp_path: Path):
    _, task = conversation_data(tmp_path)
    loaded = task.load(source(tmp_path))
    assert isinstance(loaded, FollowUps)
    ways = [QUESTION, "0.7 question + 0.3 mean of the history", "weights halving back in time"]
    found = follow_ups([MEAN], loaded, ways=ways)
    mrr = {record.rival: record.value for record in found if record.metric == "mrr@100"}
    assert mrr[QUESTION] < 0.2
    assert mrr[REWRITE] == 1
    for way in (*ways[1:], "mean: history", "mean: all turns"):
        assert mrr[way] == 1, way


def test_a_history_of_one_turn_merged_is_that_turn():
    question, turn, nothing = *chunk_vectors(0, 2), np.zeros((0, 6), np.float32)
    question, turn = (vector / np.linalg.norm(vector) for vector in (question, turn))
    history = Turns(turn[None], np.array([9], np.float32))
    for found, expected in (
        (with_history(MeanMerger()), mixed(question, 5, history, nothing)[0]),
        (all_turns(MeanMerger()), MeanMerger().merge([turn, question], masses=[9, 5])[None]),
    ):
        np.testing.assert_allclose(found(question, 5, history, nothing)[0], expected, atol=1e-6)
        alone, _ = found(question, 5, Turns(nothing, nothing[:, 0]), nothing)
        np.testing.assert_array_equal(alone, question[None])
