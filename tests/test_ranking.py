"""Selections are exact, and ties go to the lowest index."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparselib.ranking import ascending, contains, distinct, draw, largest, marked, nth_free

scores = st.lists(st.integers(-3, 3) | st.just(float("-inf")), max_size=40)


@given(scores, st.data())
def test_largest_equals_a_stable_sort(values, data):
    count = data.draw(st.integers(0, len(values)))
    expected = sorted(sorted(range(len(values)), key=lambda i: -values[i])[:count])
    assert largest(torch.tensor(values, dtype=torch.float64), count).tolist() == expected


@pytest.mark.parametrize(("count", "sentence"), [(-1, "-1 of 3"), (4, "4 of 3")])
def test_an_impossible_count_is_refused(count, sentence):
    with pytest.raises(ValueError, match=sentence):
        largest(torch.zeros(3), count)


def test_nan_has_no_rank():
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        largest(torch.tensor([1.0, float("nan")]), 1)


@given(st.integers(0, 200), st.data())
def test_draw_gives_distinct_sorted_numbers_and_the_same_for_the_same_seed(cells, data):
    count = data.draw(st.integers(0, cells))
    first, second = (draw(cells, count, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert sorted(set(first.tolist())) == first.tolist()
    assert len(first) == count
    assert all(0 <= cell < cells for cell in first.tolist())


@pytest.mark.parametrize("count", [2, 8])
def test_draw_is_uniform(count):
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(10)
    for _ in range(4000):
        hits[draw(10, count, generator)] += 1
    expected = 4000 * count / 10
    # draws within a sample exclude each other, which only narrows the chi-square law
    assert ((hits - expected) ** 2 / expected).sum() < 27.9  # 0.999 quantile, 9 degrees


def test_draw_needs_no_room_for_the_cells():
    assert len(draw(10**15, 1000)) == 1000


@given(st.sets(st.integers(0, 12)), st.lists(st.integers(0, 12)))
def test_what_is_contained_is_found_to_the_last_number(numbers, wanted):
    ascending = torch.tensor(sorted(numbers), dtype=torch.int64)
    found = contains(ascending, torch.tensor(wanted, dtype=torch.int64))
    assert found.tolist() == [number in numbers for number in wanted]


@given(st.sets(st.integers(0, 12)))
def test_free_cells_are_counted_past_the_taken_ones(taken):
    free = [cell for cell in range(20) if cell not in taken]
    ascending = torch.tensor(sorted(taken), dtype=torch.int64)
    assert nth_free(torch.arange(len(free)), ascending).tolist() == free


@given(st.lists(st.integers(0, 9), max_size=40))
def test_distinct_numbers_are_those_of_a_set_in_order(numbers):
    column = torch.tensor(numbers, dtype=torch.int64)
    assert distinct(column).tolist() == sorted(set(numbers))
    assert ascending(column).tolist() == sorted(numbers)
    assert marked(column > 4).tolist() == [i for i, number in enumerate(numbers) if number > 4]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_of_every_type_are_ranked_alike(kind):
    scores = torch.tensor([3.0, -2.0, 3.0, 0.0, -0.0, float("inf")], dtype=kind)
    assert largest(scores, 2).tolist() == [0, 5]
    assert largest(scores, 4).tolist() == [0, 2, 3, 5]
