from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins.errors import EmptyInputError, InputError, NonFiniteError
from merger_plugins.finesse.metrics import RANKING, interval, paired, ranking_metrics
from merger_plugins.finesse.records import Record


def naive(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """One question, by the definitions, from a full ranking in which ties count against it."""
    order = sorted(
        (t for t in range(len(scores)) if scores[t] > -np.inf), key=lambda t: (-scores[t], right[t], t)
    )[:100]
    gains = [bool(right[t]) for t in order]
    ideal = sum(1 / np.log2(rank + 2) for rank in range(min(10, right.sum())))
    return {
        "ndcg@10": sum(1 / np.log2(rank + 2) for rank, gain in enumerate(gains[:10]) if gain) / ideal,
        "mrr@100": next((1 / (rank + 1) for rank, gain in enumerate(gains) if gain), 0.0),
        "recall@1": sum(gains[:1]) / right.sum(),
        "recall@10": sum(gains[:10]) / right.sum(),
    }


def test_a_case_by_hand():
    scores = np.array([[0.1, 0.9, 0.5, 0.7], [0.1, 0.9, 0.5, 0.7]])
    relevant = np.array([[False, False, True, False], [True, False, False, True]])
    found = ranking_metrics(scores, relevant)
    # First question: the right one is third. Second: the right ones are second and fourth.
    assert found["mrr@100"] == pytest.approx([1 / 3, 1 / 2])
    assert found["recall@1"].tolist() == [0, 0]
    assert found["recall@10"].tolist() == [1, 1]
    second = (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3))
    assert found["ndcg@10"] == pytest.approx([1 / np.log2(4), second])


@given(st.data())
def test_every_metric_is_its_definition(data: st.DataObject):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 130)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scores = rng.integers(0, data.draw(st.sampled_from([3, 1_000])), shape).astype(np.float32)
    scores[rng.random(shape) < 0.1] = -np.inf
    relevant = rng.random(shape) < 0.1
    relevant[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = True
    found = ranking_metrics(scores, relevant)
    for query in range(shape[0]):
        expected = naive(scores[query], relevant[query])
        assert {name: found[name][query] for name in RANKING} == pytest.approx(expected)


def test_constant_scores_find_nothing():
    relevant = np.eye(12, dtype=bool)
    found = ranking_metrics(np.zeros((12, 12)), relevant)
    assert found["ndcg@10"].max() == 0
    assert found["mrr@100"] == pytest.approx([1 / 12] * 12)


@pytest.mark.parametrize(
    ("scores", "relevant", "names", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 4), bool), ["ndcg@10"], r"\(2, 3\).*\(2, 4\)"),
        (np.zeros((2, 0)), np.ones((2, 0), bool), ["ndcg@10"], "not empty"),
        (np.full((1, 2), np.nan), np.ones((1, 2), bool), ["ndcg@10"], "NaN"),
        (np.zeros((2, 2)), np.array([[True, False], [False, False]]), ["ndcg@10"], "Question 1 of 2"),
        (np.zeros((1, 1)), np.ones((1, 1), bool), ["map"], "'map' is no metric"),
    ],
)
def test_what_cannot_be_measured_is_named(
    scores: np.ndarray, relevant: np.ndarray, names: list[str], message: str
):
    with pytest.raises(InputError, match=message):
        ranking_metrics(scores, relevant, names)


def test_an_interval_is_near_that_of_the_normal_distribution():
    values = np.random.default_rng(0).standard_normal(900)
    low, high = interval(values, seed=1) or (0, 0)
    error = values.std() / 30
    assert [low, high] == pytest.approx(
        [values.mean() - 1.96 * error, values.mean() + 1.96 * error], abs=0.01
    )
    assert interval(values, seed=1) == (low, high)


def test_an_interval_resamples_whole_groups():
    each = np.random.default_rng(0).standard_normal(30)
    values, groups = np.repeat(each, 30), np.repeat(np.arange(30), 30)
    order = np.random.default_rng(1).permutation(900)
    alone, grouped = interval(values), interval(values[order], groups[order])
    single = interval(each)
    assert alone is not None
    assert grouped == pytest.approx(single)
    assert grouped is not None
    assert grouped[1] - grouped[0] > 4 * (alone[1] - alone[0])


def test_one_group_has_no_interval():
    assert interval(np.arange(5.0), np.zeros(5)) is None
    found = paired(np.arange(5.0), np.zeros(5), np.zeros(5))
    assert (found.difference, found.low, found.p) == (2.0, None, None)


def test_a_paired_test_is_exact_where_all_flips_can_be_tried():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(6), 3)
    values, others = rng.standard_normal(18) + 0.6, rng.standard_normal(18)
    sums = np.bincount(groups, values - others)
    flips = np.array([np.dot(signs, sums) for signs in product([1, -1], repeat=6)])
    greater = (flips >= sums.sum() - 1e-12).mean()
    less = (flips <= sums.sum() + 1e-12).mean()
    found = paired(values, others, groups)
    assert found.p == pytest.approx(min(1, 2 * min(greater, less)))
    assert found.difference == pytest.approx((values - others).mean())


def test_a_rival_is_no_better_than_itself():
    values = np.random.default_rng(0).random(20)
    assert paired(values, values).p == 1


@pytest.mark.parametrize("values", [np.zeros(0), np.array([1.0, np.nan])])
def test_values_that_give_no_interval_are_refused(values: np.ndarray):
    with pytest.raises((EmptyInputError, NonFiniteError)):
        interval(values)


def test_records_keep_the_items_that_they_are_compared_by():
    each = np.random.default_rng(0).random(40)
    base = Record.of("retrieval", "t", "mean", "ndcg@10", each)
    better = Record.of("retrieval", "t", "mine", "ndcg@10", each + 0.01)
    assert base.each is not None
    assert better.each is not None
    found = paired(better.each, base.each, better.groups)
    assert [found.difference, found.low, found.high] == pytest.approx([0.01] * 3)
    assert found.p is not None
    assert found.p < 0.01
    assert better.to_dict()["value"] == better.value
    assert not {"each", "groups"} & better.to_dict().keys()
