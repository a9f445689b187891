"""From logits to the next token: what may be chosen, and the choice."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clearhead.errors import ClearheadError

SEEDS = 2**32
"""How many seeds there are: torch's CPU generator reads no more than 32 bits of one."""


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen; the defaults draw from the model's own distribution.

    The steps apply in the order of transformers' `generate`: repetition penalty, temperature,
    top-k, top-p, min-p.
    """

    temperature: float = 1.0
    """Divides the logits: below 1 bolder, above 1 more varied; 0 takes the most likely token."""
    top_k: int = 0
    """Draw from the k most likely tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw from the fewest most likely tokens whose probabilities reach this sum; 1 for all."""
    min_p: float = 0.0
    """Draw from tokens at least this fraction as likely as the most likely one; 0 for all."""
    repetition_penalty: float = 1.0
    """Above 1, makes the tokens of the text so far, prompt included, less likely; 1 for none."""
    max_new_tokens: int = 200
    """The most tokens to generate."""
    seed: int | None = None
    """The same seed gives the same tokens; without one every run differs."""

    def __post_init__(self) -> None:
        if self.temperature != 0 or self.temperature is False:
            _check_number("temperature", self.temperature, 1e-4, 1e4, "0 or ")
        _check_number("top_p", self.top_p, 0, 1)
        _check_number("min_p", self.min_p, 0, 1)
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _check_whole("top_k", self.top_k, 0)
        _check_whole("max_new_tokens", self.max_new_tokens, 1)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, SEEDS - 1)


def fresh_seed() -> int:
    """Return a seed that nobody can foresee."""
    return secrets.randbelow(SEEDS)


def penalise_repetition(
    logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"], penalty: float
) -> Float[Tensor, "B V"]:
    """Divide the positive logits of `seen` tokens by `penalty`, multiply the negative ones by it.

    Source: Keskar et al. 2019, "CTRL", section 4.1.
    """
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalised, logits)


def scale_by_temperature(logits: Float[Tensor, "B V"], temperature: float) -> Float[Tensor, "B V"]:
    """Divide the logits by a temperature above 0."""
    return logits / temperature


def keep_top_k(logits: Float[Tensor, "B V"], top_k: int) -> Float[Tensor, "B V"]:
    """Set to -∞ what is less likely than the k-th most likely token; its equals stay."""
    kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # [B, 1]
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(logits: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """Set to -∞ all but the fewest most likely tokens whose probabilities reach `top_p`.

    Source: Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration".
    """
    ascending, order = logits.sort(descending=False)
    remove = ascending.softmax(-1).cumsum(-1) <= 1 - top_p  # [B, V], least likely first
    remove[:, -1] = False
    return logits.masked_fill(remove.scatter(1, order, remove), -math.inf)


def keep_min_p(logits: Float[Tensor, "B V"], min_p: float) -> Float[Tensor, "B V"]:
    """Set to -∞ what is less than `min_p` times as likely as the most likely token.

    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling".
    """
    probabilities = logits.softmax(-1)
    threshold = min_p * probabilities.amax(-1, keepdim=True)  # [B, 1]
    return logits.masked_fill(probabilities < threshold, -math.inf)


def filter_logits(logits: Float[Tensor, "B V"], sampling: SamplingConfig) -> Float[Tensor, "B V"]:
    """Apply temperature, top-k, top-p and min-p, in this order, each where it is asked for."""
    logits = scale_by_temperature(logits, sampling.temperature)
    if sampling.top_k > 0:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def draw(logits: Float[Tensor, "B V"], generators: Sequence[torch.Generator]) -> Int[Tensor, " B"]:
    """Draw one token a row from the softmax of its logits, on the CPU.

    Each row takes exactly one number from its own generator, so what it draws depends on nothing
    else in the batch; and the generators live on the CPU, so it does not depend on the device.
    """
    uniform = torch.stack(
        [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]
    )  # [B, 1]
    # In double precision, so that the sum does not swallow the tokens of the distribution's tail.
    cumulative = logits.softmax(-1).cpu().double().cumsum(-1)  # [B, V]
    # A number is at most 1 - 2⁻⁵³, so the product is below the total even when it is rounded, and
    # the first sum above it belongs to a token with some probability.
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]


def choose(
    logits: Float[Tensor, "B V"],
    sampling: SamplingConfig,
    generators: Sequence[torch.Generator],
    seen: Bool[Tensor, "B V"] | None = None,
) -> Int[Tensor, " B"]:
    """Choose one token a row: the most likely at temperature 0, else a drawn one.

    Args:
        logits: The model's, in any floating type.
        sampling: The same for all rows.
        generators: One a row; not read at temperature 0.
        seen: The tokens of each row's text so far, for the repetition penalty.

    Raises:
        ClearheadError: A logit is not a number.
    """
    logits = logits.float()
    if logits.isnan().any():
        raise ClearheadError(
            "the model's logits are not numbers (NaN); its weights are damaged or its training "
            "diverged: take an earlier checkpoint"
        )
    if seen is not None:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(-1).cpu()
    return draw(filter_logits(logits, sampling), generators)


def _check_number(name: str, value: object, low: float, high: float, also: str = "") -> None:
    """Refuse what is no number from `low` to `high`, NaN included."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ClearheadError(
            f"{name} is {value!r}; it must be {also}a number from {low:g} to {high:g}"
        )


def _check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse what is no whole number from `low` to `high`."""
    if type(value) is not int or value < low or (high is not None and value > high):
        valid = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ClearheadError(f"{name} is {value!r}; it must be a whole number, {valid}")
