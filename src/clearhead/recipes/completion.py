"""What a model wrote, and how."""

from dataclasses import dataclass

from clearhead.engine import FinishReason


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    text: str
    """The new text, without the stop string or end-of-text token that ended it."""
    token_ids: tuple[int, ...]
    """Every new token, those of the stop string and the end-of-text token included."""
    finish_reason: FinishReason
    """"stop", "length" (max_new_tokens reached) or "context" (no room for another token)."""
    stop: str | None
    """The stop string that ended the text; None if the end-of-text token or something else did."""
    prompt_token_ids: tuple[int, ...]
    """The tokens that the model read first."""
    n_dropped: int
    """Tokens of the prompt that were cut off on its left to make room."""
    seed: int | None
    """With this seed in the sampling config, the same prompt gives this text again; None for a
    text of beam search, which draws nothing."""
    seconds: float
    """From the start, reading the prompt included, to this text's last token; to that of all texts
    where it was chosen among several."""
    logprobs: tuple[float, ...] | None
    """Each new token's log-probability by the model alone; None if `sampling.logprobs` is."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None
    """The `sampling.logprobs` most likely tokens in each one's place, with theirs."""
    score: float | None
    """What the text was chosen by, the higher the better: with `best_of` the mean of its
    tokens' log-probabilities, with beams their sum (after bias and penalties) over their number to
    the power of `length_penalty`; None if nothing was chosen."""
    proposed: int | None
    """How many tokens were guessed ahead; None if nothing was to guess."""
    accepted: int | None
    """How many of them held."""
    backend: str
    """What computed it: the native kernels' instruction set, or "torch"."""
    why: str | None
    """Why torch computed, the model or else the draft, and not the native kernels; None if they
    did."""

    @property
    def n_tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.token_ids)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over seconds, of this text alone."""
        return self.n_tokens / self.seconds
