"""What is drawn has the frequencies that it should have, and depends on its own row alone."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from clearhead.engine import (
    History,
    SamplingConfig,
    choose,
    draw,
    log_probabilities,
    probabilities,
)
from clearhead.errors import ClearheadError

TEXT = History([3, 1, 4], [1, 5, 9, 9])
CONFIGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=0.7, top_k=40),
    SamplingConfig(top_p=0.9),
    SamplingConfig(temperature=1.3, top_k=40, top_p=0.95),
    SamplingConfig(temperature=2, min_p=0.02),
    SamplingConfig(typical_p=0.8),
    SamplingConfig(temperature=0, repetition_penalty=1.3, presence_penalty=0.5),
    SamplingConfig(frequency_penalty=1.5, presence_penalty=-1, top_p=0.9),
    SamplingConfig(logit_bias={2: 3.0, 7: -100}, min_new_tokens=9, stop_token_ids=(0, 11)),
    SamplingConfig(0.9, 30, 0.95, 0.01, 0.95, 1.2, 0.3, 0.2, {5: 1.0}),
]


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def random_logits(*shape: int, seed: int = 5, scale: float = 1.5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def is_likely(counts: np.ndarray, weights: np.ndarray) -> bool:
    expected = counts.sum() * weights
    rare = expected < 5  # counted as one: the statistic is chi-square's for none so rare
    observed = [*counts[~rare], counts[rare].sum()]
    expected = [*expected[~rare], expected[rare].sum()]
    some = slice(None) if expected[-1] else slice(-1)
    return bool(chisquare(observed[some], expected[some]).pvalue > 1e-4)


@pytest.mark.parametrize("number", [i for i, one in enumerate(CONFIGS) if one.temperature])
def test_frequencies_are_those_of_probabilities(number: int) -> None:
    config, n_draws = CONFIGS[number], 10_000
    values = random_logits(1, 60)
    weights = probabilities(values, [config], [TEXT])[0].numpy()
    one_stream = seeded([11]) * n_draws
    drawn = choose(values.expand(n_draws, -1), [config] * n_draws, [TEXT] * n_draws, one_stream)
    counts = np.bincount(drawn.numpy(), minlength=60)
    possible = weights > 0
    assert possible.sum() > 5
    assert counts[~possible].sum() == 0
    assert is_likely(counts, weights)
    # The same test sees a distribution that is off by a quarter.
    shifted = weights * np.linspace(0.75, 1.25, 60)
    assert not is_likely(counts, shifted / shifted.sum())


def test_a_seed_a_draw_has_the_same_frequencies() -> None:
    n_draws = 10_000
    values = random_logits(1, 20)
    weights = values.double().softmax(-1)[0].numpy()
    generators = seeded(range(n_draws))
    counts = np.bincount([draw(weights, generator) for generator in generators], minlength=20)
    assert is_likely(counts, weights)


@pytest.mark.parametrize("vocab_size", [97, 50_257])
def test_a_row_depends_on_nothing_else_in_the_batch(vocab_size: int) -> None:
    numbers = random.Random(0)
    rows = list(range(33))
    values = random_logits(33, vocab_size)
    configs = [CONFIGS[row % len(CONFIGS)] for row in rows]
    histories = [
        History([numbers.randrange(97) for _ in range(row + 1)], [row] * (row % 3)) for row in rows
    ]

    def results(batch: Sequence[int]) -> list[tuple[int, bytes, bytes]]:
        logits, of = values[list(batch)], [configs[row] for row in batch]
        texts = [histories[row] for row in batch]
        ids = choose(logits, of, texts, seeded(batch))
        found = log_probabilities(logits, ids, 5)
        numbers = torch.cat([found.chosen[:, None], found.best, found.best_ids], -1).numpy()
        weights = probabilities(logits, of, texts).numpy()
        return [
            (int(one), number.tobytes(), weight.tobytes())
            for one, number, weight in zip(ids, numbers, weights, strict=True)
        ]

    alone = [results([row])[0] for row in rows]
    sizes = range(1, 34) if vocab_size < 100 else (2, 3, 16, 17, 33)
    for size in sizes:
        first = numbers.randrange(34 - size)
        batch = numbers.sample(range(first, first + size), size)
        assert results(batch) == [alone[row] for row in batch]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_tokens_that_are_possible(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(uniform, dtype=torch.float64))
    for seed in range(500):
        values = random_logits(1, 30, seed=seed)
        values[0, [0, 1, 28, 29]] = -math.inf
        drawn = choose(values, [SamplingConfig()], [History([1])], [torch.Generator()])
        assert drawn.tolist() == [2 if uniform == 0 else 27]


def test_temperature_0_takes_the_first_of_the_most_likely_and_draws_nothing() -> None:
    values = torch.tensor([[1.0, 3.0, 3.0], [5.0, 0.0, -1.0]])
    greedy = [SamplingConfig(temperature=0)] * 2
    histories = [History([0]), History([0])]
    assert choose(values, greedy, histories, []).tolist() == [1, 0]
    assert probabilities(values, greedy, histories).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_temperature_0_comes_after_penalties_bias_and_minimum_length() -> None:
    values = torch.tensor([[2.0, 3.0, 1.9, 1.0]])

    def chosen(history: History, **settings: object) -> int:
        config = SamplingConfig(temperature=0, **settings)
        return choose(values, [config], [history], []).item()

    assert chosen(History([1]), repetition_penalty=1.6) == 0
    assert chosen(History([1]), presence_penalty=2) == 1, "the prompt does not count"
    assert chosen(History([1], [1]), presence_penalty=1.05) == 0
    assert chosen(History([1], [1, 0, 1, 0]), frequency_penalty=0.6) == 2
    assert chosen(History([1]), logit_bias={3: 100}) == 3
    least = {"min_new_tokens": 2, "stop_token_ids": [1]}
    assert chosen(History([1], [2]), **least) == 0
    assert chosen(History([1], [2, 2]), **least) == 1


def test_the_logits_are_left_as_they_are() -> None:
    values = random_logits(1, 60).double()
    before = values.clone()
    choose(values, CONFIGS[-1:], [TEXT], seeded([0]))
    assert torch.equal(values, before)


def test_logits_of_half_precision_are_taken() -> None:
    values = random_logits(3, 60).bfloat16()
    configs, histories = CONFIGS[-3:], [TEXT] * 3
    single = choose(values.float(), configs, histories, seeded([1, 2, 3]))
    assert torch.equal(choose(values, configs, histories, seeded([1, 2, 3])), single)


def test_log_probabilities_are_the_models_own() -> None:
    values = random_logits(4, 30)
    ids = torch.tensor([7, 0, 29, 3])
    found = log_probabilities(values, ids, 5)
    expected = values.double().softmax(-1).log()
    torch.testing.assert_close(found.chosen.double(), expected[torch.arange(4), ids])
    assert torch.equal(found.best_ids, values.argsort(descending=True)[:, :5])
    torch.testing.assert_close(found.best.double(), expected.gather(1, found.best_ids))
    assert log_probabilities(values, ids, 0).best.shape == (4, 0)
    assert log_probabilities(values[:, :3], torch.zeros_like(ids), 20).best.shape == (4, 3)


@pytest.mark.parametrize("damage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error(damage: float, temperature: float) -> None:
    values = torch.tensor([[1.0, 2.0], [damage, damage]])
    configs, histories = [SamplingConfig(temperature=temperature)] * 2, [History([0])] * 2
    with pytest.raises(ClearheadError, match="not finite numbers"):
        choose(values, configs, histories, seeded([0, 0]))
    with pytest.raises(ClearheadError, match="not finite numbers"):
        probabilities(values, configs, histories)


def test_a_token_outside_the_vocabulary_is_an_error() -> None:
    config = SamplingConfig(logit_bias={2: 1.0})
    with pytest.raises(ClearheadError, match="logit_bias has the token id 2"):
        choose(torch.zeros(1, 2), [config], [History([0])], seeded([0]))


def test_the_lowest_temperature_and_the_greatest_logits_give_no_nan() -> None:
    values = torch.tensor([[3e38, 2e38, -3e38]])
    config = SamplingConfig(1e-4, 2, 0.9, 0.1, 0.9, repetition_penalty=0.01)
    assert choose(values, [config], [History([0])], seeded([0])).tolist() == [0]
