"""Each filter equals transformers'; what is drawn has the frequencies it should have."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from clearhead.engine import (
    SEEDS,
    SamplingConfig,
    choose,
    draw,
    filter_logits,
    fresh_seed,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    scale_by_temperature,
)
from clearhead.errors import ClearheadError

NO_IDS = torch.zeros(1, 1, dtype=torch.int64)


@st.composite
def logits(draw_: st.DrawFn) -> Tensor:
    """Random logits [B, V], with ties and, sometimes, tokens already ruled out."""
    shape = draw_(st.integers(1, 4)), draw_(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw_(st.integers(0, 2**31)))
    values = torch.randn(shape, generator=generator) * draw_(st.sampled_from([0.1, 1.0, 20.0]))
    if draw_(st.booleans()):
        values = values.round()
    if draw_(st.booleans()):
        out = torch.rand(shape, generator=generator) < 0.3
        out[:, 0] = False
        values = values.masked_fill(out, -math.inf)
    return values


@given(logits(), st.floats(1e-4, 100))
def test_temperature_equals_transformers(values: Tensor, temperature: float) -> None:
    expected = TemperatureLogitsWarper(temperature)(NO_IDS, values)
    torch.testing.assert_close(scale_by_temperature(values, temperature), expected, rtol=0, atol=0)


@given(logits(), st.integers(1, 80))
def test_top_k_equals_transformers(values: Tensor, top_k: int) -> None:
    expected = TopKLogitsWarper(top_k)(NO_IDS, values)
    torch.testing.assert_close(keep_top_k(values, top_k), expected, rtol=0, atol=0)


@given(logits(), st.floats(0, 1))
def test_top_p_equals_transformers(values: Tensor, top_p: float) -> None:
    expected = TopPLogitsWarper(top_p)(NO_IDS, values)
    torch.testing.assert_close(keep_top_p(values, top_p), expected, rtol=0, atol=0)


@given(logits(), st.floats(0, 1))
def test_min_p_equals_transformers(values: Tensor, min_p: float) -> None:
    expected = MinPLogitsWarper(min_p)(NO_IDS, values)
    torch.testing.assert_close(keep_min_p(values, min_p), expected, rtol=0, atol=0)


@given(logits(), st.floats(0.01, 100), st.data())
def test_repetition_penalty_equals_transformers(
    values: Tensor, penalty: float, data: st.DataObject
) -> None:
    n_rows, vocab_size = values.shape
    token = st.integers(0, vocab_size - 1)
    row = st.lists(token, min_size=7, max_size=7)
    ids = torch.tensor(data.draw(st.lists(row, min_size=n_rows, max_size=n_rows)))
    seen = torch.zeros(values.shape, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, values)
    torch.testing.assert_close(penalise_repetition(values, seen, penalty), expected, rtol=0, atol=0)


@given(logits(), st.floats(0.1, 3), st.integers(1, 60), st.floats(0.05, 0.99), st.floats(0.01, 1))
def test_filters_apply_in_transformers_order(
    values: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    theirs = LogitsProcessorList(
        [
            TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(top_k),
            TopPLogitsWarper(top_p),
            MinPLogitsWarper(min_p),
        ]
    )
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    torch.testing.assert_close(
        filter_logits(values, sampling), theirs(NO_IDS, values), rtol=0, atol=0
    )


def test_the_defaults_filter_nothing() -> None:
    values = torch.randn(3, 50)
    assert torch.equal(filter_logits(values, SamplingConfig()), values)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the statistic in standard deviations from its mean: chi-square(n) has n and 2n."""
    expected = counts.sum() * probabilities
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = len(probabilities) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("one_generator", [True, False], ids=["one stream", "a seed a draw"])
def test_frequencies_are_those_of_the_filtered_softmax(one_generator: bool) -> None:
    n_draws = 40_000
    values = torch.randn(1, 60, generator=torch.Generator().manual_seed(5)) * 1.5
    filtered = filter_logits(values, SamplingConfig(temperature=1.3, top_k=40, top_p=0.95))
    probabilities = filtered.double().softmax(-1)[0].numpy()
    if one_generator:
        generators = [torch.Generator().manual_seed(11)] * n_draws
    else:
        generators = [torch.Generator().manual_seed(seed) for seed in range(n_draws)]
    drawn = draw(filtered.expand(n_draws, -1), generators)
    counts = np.bincount(drawn.numpy(), minlength=60)
    kept = probabilities > 0
    assert 10 < kept.sum() < 60
    assert counts[~kept].sum() == 0
    assert abs(chi_square(counts[kept], probabilities[kept])) < 4
    # The same test sees a distribution that is off by a twentieth.
    shifted = probabilities[kept] * np.linspace(0.95, 1.05, kept.sum())
    assert chi_square(counts[kept], shifted / shifted.sum()) > 4


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_tokens_that_are_possible(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch, "rand", lambda *_, **__: torch.tensor([uniform], dtype=torch.float64)
    )
    for seed in range(500):
        values = torch.randn(1, 30, generator=torch.Generator().manual_seed(seed))
        values[0, [0, 1, 28, 29]] = -math.inf
        expected = 2 if uniform == 0 else 27
        assert draw(values, [torch.Generator()]).tolist() == [expected]


def test_temperature_0_takes_the_most_likely_after_the_penalty() -> None:
    values = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, -1.0]])
    seen = torch.tensor([[False, True, False], [False, False, True]])
    greedy = SamplingConfig(temperature=0, repetition_penalty=2.0)
    assert choose(values, greedy, []).tolist() == [1, 0]
    assert choose(values, greedy, [], seen).tolist() == [2, 0]


def test_logits_that_are_no_numbers_are_an_error() -> None:
    values = torch.tensor([[1.0, math.nan]])
    with pytest.raises(ClearheadError, match="NaN"):
        choose(values, SamplingConfig(temperature=0), [])


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("temperature", -0.1, "0 or a number from 0.0001 to 10000"),
        ("temperature", 1e-9, "0 or a number"),
        ("temperature", math.nan, "0 or a number"),
        ("temperature", math.inf, "0 or a number"),
        ("temperature", False, "0 or a number"),
        ("temperature", "hot", "0 or a number"),
        ("top_k", -1, "at least 0"),
        ("top_k", 2.0, "at least 0"),
        ("top_p", 1.1, "from 0 to 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("repetition_penalty", 0, "from 0.01 to 100"),
        ("max_new_tokens", 0, "at least 1"),
        ("max_new_tokens", True, "at least 1"),
        ("seed", -1, "from 0 to 4294967295"),
        ("seed", SEEDS, "from 0 to 4294967295"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(
    field: str, value: object, valid: str
) -> None:
    with pytest.raises(ClearheadError) as caught:
        SamplingConfig(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field} is {value!r}; ")
    assert valid in message
    assert "\n" not in message


def test_the_lowest_temperature_gives_no_nan() -> None:
    values = torch.tensor([[1000.0, 999.0, -1000.0]])
    sampling = SamplingConfig(temperature=1e-4, top_p=0.9, min_p=0.1)
    assert choose(values, sampling, [torch.Generator().manual_seed(0)]).tolist() == [0]


def test_a_fresh_seed_is_a_valid_one() -> None:
    seeds = {fresh_seed() for _ in range(20)}
    assert len(seeds) > 1
    for seed in seeds:
        SamplingConfig(seed=seed)
