import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.data.packing import pack
from clearhead.errors import ClearheadError


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 64))
def test_each_example_lies_in_one_row_that_it_fits(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(at for row in rows for at in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[at] for at in row) <= capacity for row in rows)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(40, 64))
def test_no_two_rows_could_be_one(lengths, capacity):
    used = sorted(sum(lengths[at] for at in row) for row in pack(lengths, capacity))
    assert len(used) < 2 or used[0] + used[1] > capacity


def test_a_known_case():
    assert sorted(map(sorted, pack([6, 5, 4, 3, 2], 10))) == [[0, 2], [1, 3, 4]]


@pytest.mark.parametrize("length", [0, 11])
def test_what_fits_no_row_is_refused(length):
    with pytest.raises(ClearheadError, match=f"an example of {length} tokens"):
        pack([3, length], 10)
