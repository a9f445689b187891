"""A text that the engine continues."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Literal

import torch

from clearhead.engine.config import SamplingConfig, fresh_seed
from clearhead.engine.history import History
from clearhead.engine.speculative import Speculation
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig

FinishReason = Literal["stop", "length", "context"]
"""Why a text ended: a stop, `max_new_tokens` reached, or the context full."""

WhenFull = Literal["stop", "slide", "error"]
"""What happens when a text fills the context: it ends; it goes on without its oldest tokens, half
a context of them at a time; or a request that might get there is refused."""


@dataclass(frozen=True)
class GeneratedToken:
    """One token more of a text."""

    row: int
    """Which prompt it continues."""
    token_id: int
    """The token; also given when it is the stop id that ends the text."""
    finish_reason: FinishReason | None
    """Why this token is the text's last; None if it is not."""
    logprob: float | None = None
    """Its log-probability by the model alone, before temperature and filters, if asked for."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The most likely tokens and theirs, as many as asked for, most likely first."""


class Text:
    """What `Engine.submit` returns: a prompt and its continuation so far.

    Attributes:
        history: The prompt and the new tokens.
        finish_reason: Why it ended; None while it goes on, or if it was cancelled.
        n_shared: How many tokens of the prompt another text had been computed for.
        n_read: How many of its tokens the cache holds.
        speculation: How it is guessed, and how well; None if it is not.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        config: GPTConfig,
        *,
        row: int = 0,
        seed: int | None = None,
        when_full: WhenFull = "stop",
        is_finished: Callable[[int, Sequence[int]], bool] | None = None,
    ) -> None:
        """Check a request; its arguments are those of `Engine.submit`."""
        prompt = checked_prompt(prompt, sampling, config, row=row, when_full=when_full)
        if seed is None:
            seed = fresh_seed() if sampling.seed is None else sampling.seed
        self.history = History(prompt)
        self.sampling = sampling
        self.finish_reason: FinishReason | None = None
        self.n_shared = 0
        self.slot: int | None = None
        self.cancelled = False
        self.speculation: Speculation | None = None
        self.events: deque[GeneratedToken] = deque()
        self.generator = torch.Generator().manual_seed(seed)
        self.unread: list[int] = list(prompt)
        self._row, self._when_full, self._is_finished = row, when_full, is_finished
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._context_length = config.context_length
        self.n_read = 0

    @property
    def ended(self) -> bool:
        """Whether no token follows."""
        return self.cancelled or self.finish_reason is not None

    def was_read(self, n_tokens: int) -> None:
        """Note that the cache holds so many tokens more, all that were to be read."""
        self.n_read += n_tokens
        self.unread = []

    def append(
        self, token: int, logprob: float | None = None, top: tuple[tuple[int, float], ...] = ()
    ) -> GeneratedToken:
        """Add a chosen token, and see whether the text ends by it."""
        history, new_ids = self.history, self.history.new_ids
        history.append(token)
        full = self.n_read == self._context_length
        if token in self._stop_ids or (self._is_finished and self._is_finished(self._row, new_ids)):
            self.finish_reason = "stop"
        elif len(new_ids) == self.sampling.max_new_tokens:
            self.finish_reason = "length"
        elif full and self._when_full != "slide":
            self.finish_reason = "context"
        elif full:
            whole = [*history.prompt_ids, *new_ids]
            self.unread, self.n_read = whole[-((self._context_length + 1) // 2) :], 0
        else:
            self.unread = [token]
        found = GeneratedToken(self._row, token, self.finish_reason, logprob, top)
        self.events.append(found)
        return found

    @property
    def window(self) -> list[int]:
        """The tokens that the cache holds, and those to be read next."""
        whole = [*self.history.prompt_ids, *self.history.new_ids]
        return whole[len(whole) - self.n_read - len(self.unread) :]

    @property
    def n_left(self) -> int:
        """How many tokens `max_new_tokens` leaves."""
        return self.sampling.max_new_tokens - len(self.history.new_ids)

    @property
    def begins(self) -> bool:
        """Whether none of its tokens is in the cache: it is new, or it slid."""
        return self.n_read == 0


def checked_prompt(
    prompt: Sequence[int],
    sampling: SamplingConfig,
    config: GPTConfig,
    *,
    row: int = 0,
    when_full: WhenFull = "stop",
) -> list[int]:
    """Return a request's prompt as plain numbers.

    Raises:
        ClearheadError: Something is wrong with the request, as `Engine.submit` tells.
    """
    if when_full not in ("stop", "slide", "error"):
        raise ClearheadError(f"when_full is {when_full!r}; it must be 'stop', 'slide' or 'error'")
    sampling.check_vocabulary(config.vocab_size)
    ids = [index(token) for token in prompt]
    if not ids:
        raise ClearheadError(f"prompt {row} is empty; let it start with the end-of-text token")
    for position, token in enumerate(ids):
        if not 0 <= token < config.vocab_size:
            raise ClearheadError(
                f"prompt {row} has token id {token} at position {position}, which is outside the "
                f"model's vocabulary of {config.vocab_size}; was another tokenizer used?"
            )
    if len(ids) > config.context_length:
        raise ClearheadError(
            f"prompt {row} has {len(ids)} tokens, {len(ids) - config.context_length} more than "
            f"the model's context of {config.context_length}; shorten it, or drop its beginning "
            "by --truncate left"
        )
    longest = len(ids) + sampling.max_new_tokens - 1
    if when_full == "error" and longest > config.context_length:
        raise ClearheadError(
            f"prompt {row} has {len(ids)} tokens, and with max_new_tokens="
            f"{sampling.max_new_tokens} the text does not fit into the model's context of "
            f"{config.context_length}; shorten one of them"
        )
    return ids
