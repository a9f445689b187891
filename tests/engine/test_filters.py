"""Each step from logits to the distribution equals transformers' logits processors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from clearhead.engine import (
    History,
    SamplingConfig,
    adjust,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    probabilities,
)
from clearhead.errors import ClearheadError

NO_IDS = torch.zeros(1, 1, dtype=torch.int64)


@st.composite
def logits(draw: st.DrawFn) -> np.ndarray:
    """One text's random logits, with ties and, sometimes, tokens already ruled out."""
    vocab_size = draw(st.integers(1, 60))
    numbers = np.random.default_rng(draw(st.integers(0, 2**31)))
    values = numbers.standard_normal(vocab_size) * draw(st.sampled_from([0.1, 1.0, 20.0]))
    if draw(st.booleans()):
        values = values.round()
    if draw(st.booleans()):
        values[numbers.random(vocab_size) < 0.3] = -math.inf
        values[numbers.integers(vocab_size)] = 0
    return values


def kept_by(theirs: LogitsProcessor, values: np.ndarray) -> np.ndarray:
    """Return what transformers leaves of the logits; the rest, and what was so before, is -∞."""
    return theirs(NO_IDS, torch.tensor(values)[None])[0].numpy()


def only(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    result = np.full_like(values, -math.inf)
    result[kept] = values[kept]
    return result


@given(logits(), st.integers(1, 80))
def test_top_k_equals_transformers(values: np.ndarray, top_k: int) -> None:
    kept = keep_top_k(values, top_k)
    np.testing.assert_array_equal(only(values, kept), kept_by(TopKLogitsWarper(top_k), values))


# A share that tokens reach to the last bit is reached or missed by rounding; these are not.
SHARES = st.floats(0, 1).filter(lambda share: 1e-4 < share * 720720 % 1 < 1 - 1e-4)


@given(logits(), SHARES)
def test_top_p_equals_transformers(values: np.ndarray, top_p: float) -> None:
    """Of equals that only some stay, transformers keeps any, and we the first."""
    kept = keep_top_p(values, top_p)
    theirs = kept_by(TopPLogitsWarper(top_p), values)
    assert sorted(values[kept]) == sorted(theirs[theirs > -math.inf])
    last = values[kept].min()
    equals = np.flatnonzero(values == last)
    assert set(kept) == {*np.flatnonzero(values > last), *equals[: (values[kept] == last).sum()]}


@given(logits(), st.floats(1e-6, 1))
def test_min_p_equals_transformers(values: np.ndarray, min_p: float) -> None:
    kept = keep_min_p(values, min_p)
    np.testing.assert_array_equal(only(values, kept), kept_by(MinPLogitsWarper(min_p), values))


@given(logits(), SHARES)
def test_typical_equals_transformers(values: np.ndarray, typical_p: float) -> None:
    kept = keep_typical(values, typical_p)
    theirs = kept_by(TypicalLogitsWarper(typical_p), values)
    np.testing.assert_array_equal(only(values, kept), theirs)


def test_typical_leaves_out_what_is_too_likely() -> None:
    values = np.log([0.4, 0.2, 0.2, 0.2])
    assert keep_typical(values, 0.5).tolist() == [1, 2, 3]  # surprises 0.9, 1.6; expected 1.3


@st.composite
def texts(draw: st.DrawFn) -> tuple[np.ndarray, History]:
    """Logits, and the text that they continue."""
    values = draw(logits())
    token = st.integers(0, len(values) - 1)
    prompt = draw(st.lists(token, min_size=1, max_size=9))
    return values, History(prompt, draw(st.lists(token, max_size=30)))


def expected(theirs: LogitsProcessor, values: np.ndarray, history: History) -> np.ndarray:
    ids = torch.tensor([[*history.prompt_ids, *history.new_ids]])
    return theirs(ids, torch.tensor(values)[None])[0].numpy()


@given(texts(), st.floats(0.01, 100))
def test_repetition_penalty_equals_transformers(
    text: tuple[np.ndarray, History], penalty: float
) -> None:
    theirs = expected(RepetitionPenaltyLogitsProcessor(penalty), *text)
    values, history = text
    ours = adjust(values, SamplingConfig(repetition_penalty=penalty), history)
    np.testing.assert_array_equal(ours, theirs)


@given(texts(), st.dictionaries(st.integers(0, 59), st.floats(-100, 100), max_size=5))
def test_logit_bias_equals_transformers(
    text: tuple[np.ndarray, History], bias: dict[int, float]
) -> None:
    values, history = text
    bias = {token: value for token, value in bias.items() if token < len(values)} or {0: 1.0}
    theirs = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    ours = adjust(values, SamplingConfig(logit_bias=bias), history)
    np.testing.assert_allclose(ours, expected(theirs, values, history), rtol=1e-6, atol=1e-5)


@given(texts(), st.integers(0, 30), st.sets(st.integers(0, 59), max_size=5))
def test_minimum_length_equals_transformers(
    text: tuple[np.ndarray, History], least: int, stops: set[int]
) -> None:
    values, history = text
    values = np.append(values, 1.0)  # one that never stops
    stop_ids = sorted(token for token in stops if token < len(values) - 1)
    config = SamplingConfig(min_new_tokens=least, stop_token_ids=tuple(stop_ids))
    theirs = MinNewTokensLengthLogitsProcessor(
        len(history.prompt_ids), least, torch.tensor(stop_ids, dtype=torch.int64)
    )
    ours = adjust(values, config, history)
    np.testing.assert_array_equal(ours, expected(theirs, values, history))


@given(texts(), st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_penalties_count_the_new_tokens(
    text: tuple[np.ndarray, History], presence: float, frequency: float
) -> None:
    values, history = text
    config = SamplingConfig(presence_penalty=presence, frequency_penalty=frequency)
    new = history.new_ids
    by_hand = [
        value - presence * (token in new) - frequency * new.count(token)
        for token, value in enumerate(values)
    ]
    np.testing.assert_allclose(adjust(values, config, history), by_hand, rtol=1e-12, atol=1e-12)


@given(
    texts(),
    st.floats(0.5, 2),
    st.floats(0.1, 3),
    st.integers(1, 60),
    st.floats(0.05, 0.99),
    st.floats(0.01, 0.9),
    st.floats(0.05, 0.99),
)
def test_the_whole_equals_transformers_in_its_order(
    text: tuple[np.ndarray, History],
    penalty: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
) -> None:
    values, history = text
    values = values + np.sqrt(np.arange(len(values))) / 9  # of equals, transformers keeps any
    theirs = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor([[[0], 0.375]]),
            RepetitionPenaltyLogitsProcessor(penalty),
            TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(top_k),
            TopPLogitsWarper(top_p),
            MinPLogitsWarper(min_p),
            TypicalLogitsWarper(typical_p),
        ]
    )
    config = SamplingConfig(
        temperature, top_k, top_p, min_p, typical_p, penalty, logit_bias={0: 0.375}
    )
    ours = probabilities(torch.tensor(values)[None], [config], [history])[0]
    their_logits: Tensor = torch.tensor(expected(theirs, values, history))
    torch.testing.assert_close(ours, their_logits.softmax(-1))


def test_a_ban_on_all_that_is_left_is_an_error() -> None:
    config = SamplingConfig(min_new_tokens=1, stop_token_ids=(1,))
    with pytest.raises(ClearheadError, match="no token but those of stop_token_ids"):
        adjust(np.array([-math.inf, 2.0]), config, History([0]))


@given(st.lists(st.integers(0, 9)), st.lists(st.none() | st.integers(0, 9), max_size=60))
def test_a_history_counts_what_is_added_and_taken_off(
    prompt: list[int], steps: list[int | None]
) -> None:
    history, new = History(prompt), []
    for token in steps:
        if token is not None:
            history.append(token)
            new.append(token)
        elif new:
            assert history.pop() == new.pop()
        assert history.new_ids == new
        counts = dict(zip(history.distinct_ids.tolist(), history.counts.tolist(), strict=True))
        assert counts == {token: new.count(token) for token in {*prompt, *new}}
