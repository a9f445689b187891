import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clearhead.data import Batches, TokenSpan, windows
from clearhead.errors import ClearheadError


class Counting(TokenSpan):
    """A span whose token at each position is the position."""

    def __init__(self, length):
        object.__setattr__(self, "length", length)

    def __len__(self):
        return self.length

    def read(self, start, length):
        assert start >= 0
        assert start + length <= self.length
        return np.arange(start, start + length)


def make(length, batch_size=3, context_length=4, seed=7):
    return Batches(Counting(length), batch_size, context_length, seed)


def both(rows):
    return rows.inputs, rows.targets


sizes = st.tuples(st.integers(5, 200), st.integers(1, 9), st.integers(1, 4), st.integers(0, 9))


@given(sizes)
def test_each_window_comes_once_an_epoch(size):
    length, batch_size, context_length, seed = size
    batches = make(length, batch_size, context_length, seed)
    count = batches.windows_per_epoch
    starts = []
    for step in range(3 * count // batch_size + 1):
        inputs, targets = both(batches.at(step))
        assert inputs.shape == targets.shape == (batch_size, context_length)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.is_contiguous()
        assert torch.equal(inputs + 1, targets)
        starts += inputs[:, 0].tolist()
    for epoch in range(len(starts) // count):
        ordered = sorted(starts[epoch * count : (epoch + 1) * count])
        assert ordered[0] < context_length or count == 1
        assert ordered == [ordered[0] + k * context_length for k in range(count)]
    assert count * context_length > length - 2 * context_length


@given(sizes, st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_a_batch_is_a_pure_function_of_seed_and_step(size, steps):
    batches = make(*size)
    for step in steps:
        for one, other in zip(both(batches.at(step)), both(make(*size).at(step)), strict=True):
            assert torch.equal(one, other)


def test_epochs_and_seeds_differ():
    batches = make(4001, batch_size=1000)
    assert not torch.equal(batches.at(0).inputs, batches.at(1).inputs)
    assert not torch.equal(batches.at(0).inputs, make(4001, batch_size=1000, seed=8).at(0).inputs)
    offsets = {int(batches.at(epoch).inputs.min()) for epoch in range(40)}
    assert len(offsets) > 1


@given(st.integers(2, 200), st.integers(1, 30), st.integers(1, 5))
def test_windows_count_each_target_once(length, context_length, batch_size):
    targets = []
    for inputs, expected in map(both, windows(Counting(length), context_length, batch_size)):
        assert torch.equal(inputs + 1, expected)
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] <= context_length
        targets += expected.flatten().tolist()
    assert targets == list(range(1, length))


def test_windows_stop_at_the_limit():
    shapes = [tuple(rows.inputs.shape) for rows in windows(Counting(24), 5, 2)]
    assert shapes == [(2, 5), (2, 5), (1, 3)]
    assert len(list(windows(Counting(24), 5, 2, limit=1))) == 1


def test_too_few_tokens():
    with pytest.raises(ClearheadError, match=r"has 4 tokens, and one context needs 5 "):
        make(4)
    assert make(5).windows_per_epoch == 1
    with pytest.raises(ClearheadError, match="1 tokens, and predicting needs at least 2"):
        next(windows(Counting(1), 4, 1))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"context_length": 0}, {"seed": -1}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ClearheadError, match=r"at least 1|not negative"):
        make(100, **wrong)


def test_preparing_does_not_import_torch():
    code = (
        "import clearhead.data.prepare, clearhead.data.workers, sys; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
