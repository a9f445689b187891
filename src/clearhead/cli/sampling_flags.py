"""How tokens are chosen, as options that verbs share."""

from dataclasses import dataclass

from clearhead.cli.parse import text
from clearhead.engine import SamplingConfig
from clearhead.errors import ClearheadError


@dataclass(frozen=True)
class SamplingFlags:
    """How tokens are chosen, and what ends them."""

    tokens: int = SamplingConfig.max_new_tokens
    """The most tokens to generate."""
    temperature: float | None = None
    """Below 1 bolder, above 1 more varied; 0 takes the most likely token. 1 where one is drawn."""
    top_k: int = SamplingConfig.top_k
    """Draw from the k most likely tokens only; 0 for all."""
    top_p: float = SamplingConfig.top_p
    """Draw from the fewest tokens whose probabilities reach this sum; 1 for all."""
    min_p: float = SamplingConfig.min_p
    """Draw from tokens at least this fraction as likely as the most likely one; 0 for all."""
    typical_p: float = SamplingConfig.typical_p
    """Draw from the tokens of about the expected surprise, up to this sum; 1 for all."""
    repetition_penalty: float = SamplingConfig.repetition_penalty
    """Above 1, makes tokens of the text so far less likely; 1 for none."""
    presence_penalty: float = SamplingConfig.presence_penalty
    """Taken off the logit of each token that the new text has; 0 for none."""
    frequency_penalty: float = SamplingConfig.frequency_penalty
    """Taken off a token's logit each time that the new text has it; 0 for none."""
    logit_bias: tuple[str, ...] = ()
    """Token ids and what to add to their logits, as 50256=-100."""
    min_tokens: int = SamplingConfig.min_new_tokens
    """The end-of-text token comes after this many others at the soonest; a stop text may sooner."""
    stop: tuple[str, ...] = ()
    """Texts that end the generated one."""
    seed: int | None = SamplingConfig.seed
    """The same seed gives the same text; without one every run differs."""

    def config(
        self, *, temperature: float = SamplingConfig.temperature, logprobs: int | None = None
    ) -> SamplingConfig:
        """Return how tokens are chosen.

        Args:
            temperature: What it is unless given.
            logprobs: As in `SamplingConfig`.
        """
        return SamplingConfig(
            temperature=temperature if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=dict(_bias(one) for one in self.logit_bias),
            min_new_tokens=self.min_tokens,
            max_new_tokens=self.tokens,
            logprobs=logprobs,
            seed=self.seed,
        )

    def stops(self) -> list[str]:
        """Return the texts that end the generated one."""
        return [text(stop, "--stop") for stop in self.stop]


def _bias(given: str) -> tuple[int, float]:
    """Return the token id and the number of "50256=-100"."""
    token, _, number = given.partition("=")
    try:
        return int(token), float(number)
    except ValueError as error:
        raise ClearheadError(
            f"--logit-bias is {given!r}; write a token id and a number, as 50256=-100"
        ) from error
