"""How the next token is chosen, as settings."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from clearhead.errors import ClearheadError

SEEDS = 2**32
"""How many seeds there are: torch's CPU generator reads no more than 32 bits of one."""


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen; the defaults draw from the model's own distribution.

    The steps apply in the order of transformers' `generate`: logit bias, repetition penalty,
    presence and frequency penalties, minimum length, temperature, top-k, top-p, min-p, typical.
    """

    temperature: float = 1.0
    """Divides the logits: below 1 bolder, above 1 more varied; 0 takes the most likely token."""
    top_k: int = 0
    """Draw from the k most likely tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw from the fewest most likely tokens whose probabilities reach this sum; 1 for all."""
    min_p: float = 0.0
    """Draw from tokens at least this fraction as likely as the most likely one; 0 for all."""
    typical_p: float = 1.0
    """Draw from the fewest tokens whose probabilities reach this sum, taking first those whose
    surprise is nearest to the expected one; 1 for all."""
    repetition_penalty: float = 1.0
    """Above 1, makes the tokens of the text so far, prompt included, less likely; 1 for none."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that the new text has, from -2 to 2; 0 for none."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit each time that the new text has it, from -2 to 2; 0 for none."""
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    """Token ids and what is added to their logits, from -100 (all but never) to 100."""
    min_new_tokens: int = 0
    """No stop token is chosen before there are this many new tokens."""
    max_new_tokens: int = 200
    """The most tokens to generate."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the text."""
    logprobs: int | None = None
    """Report the log-probability of each new token and of this many best ones, from 0 to 20."""
    seed: int | None = None
    """The same seed gives the same tokens; without one every run differs."""

    def __post_init__(self) -> None:
        if self.temperature != 0 or self.temperature is False:
            check_number("temperature", self.temperature, 1e-4, 1e4, "0 or ")
        check_whole("top_k", self.top_k, 0)
        for share in ("top_p", "min_p", "typical_p"):
            check_number(share, getattr(self, share), 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        check_number("presence_penalty", self.presence_penalty, -2, 2)
        check_number("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        check_whole("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        object.__setattr__(self, "stop_token_ids", _checked_ids(self.stop_token_ids))
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0, 20)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, SEEDS - 1)

    @property
    def adjusts(self) -> bool:
        """Whether anything is done to the logits before the temperature."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.min_new_tokens
        )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check the token ids that the settings name against a model's vocabulary.

        Raises:
            ClearheadError: One is outside it, or no token is left that would not stop the text.
        """
        for name, ids in (
            ("logit_bias", self.logit_bias or ()),
            ("stop_token_ids", self.stop_token_ids),
        ):
            if ids and max(ids) >= vocab_size:
                raise ClearheadError(
                    f"{name} has the token id {max(ids)}; it must be from 0 to {vocab_size - 1}, "
                    "the model's last"
                )
        if self.min_new_tokens and len(set(self.stop_token_ids)) == vocab_size:
            raise ClearheadError(
                f"min_new_tokens is {self.min_new_tokens} and every token is in stop_token_ids; "
                "leave at least one out"
            )


def fresh_seed() -> int:
    """Return a seed that nobody can foresee."""
    return secrets.randbelow(SEEDS)


def check_number(name: str, value: object, low: float, high: float, also: str = "") -> None:
    """Refuse what is no number from `low` to `high`, NaN included."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ClearheadError(
            f"{name} is {value!r}; it must be {also}a number from {low:g} to {high:g}"
        )


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse what is no whole number from `low` to `high`."""
    if type(value) is not int or value < low or (high is not None and value > high):
        valid = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ClearheadError(f"{name} is {value!r}; it must be a whole number, {valid}")


def _checked_bias(bias: object) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise ClearheadError(f"logit_bias is {bias!r}; it must map token ids to numbers")
    for token, value in bias.items():
        check_whole("a token id in logit_bias", token, 0)
        check_number(f"logit_bias[{token}]", value, -100, 100)
    return dict(bias)


def _checked_ids(ids: object) -> tuple[int, ...]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ClearheadError(f"stop_token_ids is {ids!r}; it must be a list of token ids")
    checked = tuple(ids)
    for token in checked:
        check_whole("a token id in stop_token_ids", token, 0)
    return checked
