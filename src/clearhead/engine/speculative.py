"""Tokens that are guessed, and read together with those that are certain.

A CPU reads all weights for one token, and reads them once for several. So a guess of what follows
is read along with the last token, and the text goes on from there as if nothing had been guessed:
each next token is chosen from the model's own logits, with the number that its generator has for
it, and the first that is not as guessed ends the guess. Greedy or drawn, the text is the one that
it would have been; only its time depends on the guesses (Leviathan et al. 2023, "Fast Inference
from Transformers via Speculative Decoding", reach the same distribution by another draw).
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from clearhead.engine.config import SamplingConfig
from clearhead.engine.history import History
from clearhead.engine.reading import read
from clearhead.engine.sampling import choose
from clearhead.errors import ClearheadError
from clearhead.model import GPT
from clearhead.native import FEW, Backend

LONGEST = FEW - 1
"""The most tokens guessed at once: with the certain one, what the native kernels take."""


class Guess(Protocol):
    """What guesses how a text goes on."""

    def propose(
        self,
        ids: Sequence[int],
        n: int,
        sampling: SamplingConfig,
        history: History,
        generator: torch.Generator,
    ) -> list[int]:
        """Return at most `n` tokens that may follow `ids`; leaves all arguments as they are."""
        ...


class PromptLookup:
    """Guesses that a text goes on as it did after the last place with the same few tokens.

    Source: Saxena 2023, "Prompt Lookup Decoding".
    """

    LONGEST, SHORTEST = 4, 2

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}

    def propose(
        self,
        ids: Sequence[int],
        n: int,
        sampling: SamplingConfig,
        history: History,
        generator: torch.Generator,
    ) -> list[int]:
        """Return what followed the longest run of tokens that the text ends with, if any did."""
        del sampling, history, generator
        known = len(self._ids)
        if list(ids[:known]) != self._ids:  # it slid
            known, self._ends = 0, {}
        for end in range(max(known, 1), len(ids)):
            for length in range(self.SHORTEST, min(self.LONGEST, end) + 1):
                self._ends[tuple(ids[end - length : end])] = end
        self._ids = list(ids)
        for length in range(self.LONGEST, self.SHORTEST - 1, -1):
            found = self._ends.get(tuple(ids[-length:]))
            if found is not None:
                return _repeated(ids[found:], n)
        return []


def _repeated(ids: Sequence[int], n: int) -> list[int]:
    """Return n tokens, beginning anew where they end: what repeats itself goes on doing so."""
    return [ids[i % len(ids)] for i in range(n)]


class Draft:
    """Guesses what a smaller model would write, with the same numbers from the text's generator."""

    def __init__(self, reader: Backend, capacity: int) -> None:
        """Guess for one text of at most `capacity` tokens."""
        self._reader, self._cache = reader, reader.cache(1, capacity=capacity)
        self._read: list[int] = []

    def propose(
        self,
        ids: Sequence[int],
        n: int,
        sampling: SamplingConfig,
        history: History,
        generator: torch.Generator,
    ) -> list[int]:
        """Return the draft's own continuation; none of a text that is longer than its context."""
        n = min(n, self._cache.capacity - len(ids) + 1)
        numbers = torch.Generator().set_state(generator.get_state())
        found: list[int] = []
        while len(found) < n:
            logits = self._follow([*ids, *found])
            token = int(choose(logits, [sampling], [history], [numbers])[0])
            history.append(token)
            found.append(token)
        for _ in found:
            history.pop()
        return found

    def _follow(self, ids: list[int]) -> torch.Tensor:
        """Return the logits of what follows, [1, V]; reads what was not read yet."""
        alike = min(len(self._read), len(ids) - 1)
        while self._read[:alike] != ids[:alike]:
            alike -= 1
        self._cache.truncate(0, alike)
        logits = read(self._reader, ids, self._cache, alike)
        self._read = ids
        return logits


def check_draft(draft: GPT, model: GPT) -> None:
    """See that a model's guesses are tokens of another's.

    Raises:
        ClearheadError: The vocabularies differ, or the draft is a classifier.
    """
    draft.config.check_next_token()
    if draft.config.vocab_size != model.config.vocab_size:
        raise ClearheadError(
            f"the draft has a vocabulary of {draft.config.vocab_size} tokens and the model one of "
            f"{model.config.vocab_size}; both must have the same tokenizer"
        )


class Speculation:
    """How one text is guessed, and how well.

    Attributes:
        proposed: How many tokens were guessed.
        accepted: How many of them were what the text went on with.
    """

    def __init__(self, guesses: Sequence[Guess]) -> None:
        """Take what guesses; the first that has a guess is heard."""
        self.proposed = self.accepted = 0
        self._guesses, self._length = guesses, 4

    def propose(
        self,
        ids: Sequence[int],
        room: int,
        sampling: SamplingConfig,
        history: History,
        generator: torch.Generator,
    ) -> list[int]:
        """Return at most `room` tokens that may follow."""
        n = min(room, self._length)
        if n < 1:
            return []
        for guess in self._guesses:
            if found := guess.propose(ids, n, sampling, history, generator):
                return found
        return []

    def learn(self, proposed: int, accepted: int) -> None:
        """Count, and guess more after a guess that held, less after one that did not."""
        self.proposed += proposed
        self.accepted += accepted
        longer = 2 * self._length if accepted == proposed else accepted + 1
        self._length = max(2, min(longer, LONGEST))
