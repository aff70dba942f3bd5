"""Ranks and means against ones worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins.demo.ranking import best_of_each, mean_reciprocal_rank, passage_chunk, rank
from merger_plugins.errors import EmptyInputError


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20), st.data())
def test_a_rank_counts_what_is_better(values, data):
    right = data.draw(st.integers(0, len(values) - 1))
    in_order = sorted(values, reverse=True)
    assert rank(np.array(values, np.float32), right) == in_order.index(values[right]) + 1


def test_mean_reciprocal_rank():
    assert mean_reciprocal_rank([1, 2, 4]) == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)


def test_no_ranks_have_no_mean():
    with pytest.raises(EmptyInputError):
        mean_reciprocal_rank([])


def test_the_best_chunk_of_each_document():
    scores = np.array([0.1, 0.9, 0.4, -0.2], np.float32)
    owners = np.array([0, 0, 2, 2])
    assert best_of_each(scores, owners, 3).tolist() == pytest.approx([0.9, -np.inf, 0.4])


@pytest.mark.parametrize(("start", "stop", "expected"), [(0, 4, 0), (9, 30, 1), (25, 40, 2), (18, 29, 1)])
def test_the_chunk_that_holds_most_of_a_passage(start, stop, expected):
    assert passage_chunk([(0, 10), (10, 24), (25, 40)], start, stop) == expected
