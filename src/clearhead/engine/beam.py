"""Beam search: of all continuations, the best few are followed at each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.engine.config import SamplingConfig, check_number, check_whole
from clearhead.engine.history import History
from clearhead.engine.reading import read
from clearhead.engine.sampling import adjust, chosen_and_best, most_likely
from clearhead.engine.slots import n_alike
from clearhead.engine.text import FinishReason, GeneratedToken, WhenFull, checked_prompt
from clearhead.errors import ClearheadError
from clearhead.model import GPT
from clearhead.native import Backend

EarlyStopping = bool | Literal["never"]
"""When beam search ends, once `num_beams` texts have: at once (True); when the best running text
would not be among them if it ended now (False); or when it could not be at any length ("never")."""


@dataclass(frozen=True)
class Hypothesis:
    """A text that beam search found."""

    tokens: tuple[GeneratedToken, ...]
    """The new tokens; the last one tells why the text ended."""
    score: float
    """The sum of their log-probabilities, over their number to the power of `length_penalty`."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The new tokens' ids."""
        return tuple(token.token_id for token in self.tokens)


@dataclass(frozen=True)
class Found:
    """What beam search found, and what computed it."""

    hypotheses: tuple[Hypothesis, ...]
    """At most `num_beams`, the highest score first."""
    backend: str
    """The native kernels' instruction set, or "torch"."""
    why: str | None
    """Why torch computed and not the native kernels; None if they did."""
    n_read: int
    """How many tokens were computed, the prompt's and new ones."""


@torch.inference_mode()
def beam_search(
    model: GPT,
    prompt: Sequence[int],
    sampling: SamplingConfig,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    when_full: WhenFull = "stop",
    is_finished: Callable[[Sequence[int]], bool] | None = None,
) -> Found:
    """Find continuations that are likely as a whole; the prompt is read once.

    At each step, each of at most `num_beams` running texts is continued by every token, and the
    best of these go on. Names and results are those of transformers' `generate` with
    `do_sample=False`.

    Args:
        model: Its training mode is set aside meanwhile.
        prompt: Token ids.
        sampling: How many tokens, and what ends a text; bias and penalties, which change
            log-probabilities here and not logits. Nothing is drawn: the temperature must be 0.
        num_beams: How many texts are followed, from 1 to 1000.
        length_penalty: Above 0 favours long texts, below 0 short ones; from -10 to 10.
        early_stopping: When the search ends, see `EarlyStopping`.
        when_full: "stop" ends texts that fill the context; "error" refuses a request that might.
        is_finished: Asked of each candidate's new tokens whether the text ends there. Not asked
            about a stop id.

    Raises:
        ClearheadError: An argument is not as said above; the prompt is empty, holds an id outside
            the vocabulary, or is longer than the context; or the logits are not finite.

    Source: Lowerre 1976, "The Harpy Speech Recognition System"; Wu et al. 2016, "Google's Neural
    Machine Translation System", for the length penalty, here in transformers' simpler form.
    """
    model.config.check_next_token()
    _check(sampling, num_beams, length_penalty, early_stopping, when_full)
    ids = checked_prompt(prompt, sampling, model.config, when_full=when_full)
    reader = Backend(model)
    search = _Search(reader, ids, sampling, num_beams, is_finished)
    running, finished = [_Beam((), 0.0, slot=0)], list[Hypothesis]()
    logits = search.begin()
    for length in range(1, search.longest + 1):
        candidates = search.candidates(logits, running)
        for beam in candidates[:num_beams]:
            if beam.ended:
                finished.append(Hypothesis(beam.tokens, beam.score / length**length_penalty))
        finished.sort(key=lambda one: one.score, reverse=True)
        del finished[num_beams:]
        running = [beam for beam in candidates if not beam.ended][:num_beams]
        if not running:
            break
        if len(finished) == num_beams:
            furthest = early_stopping == "never" and length_penalty > 0
            reached = search.longest if furthest else length
            hoped = running[0].score / reached**length_penalty
            if early_stopping is True or hoped <= finished[-1].score:
                break
        logits = search.decode(running)
    return Found(tuple(finished), reader.name, reader.why, search.n_read)


def _check(
    sampling: SamplingConfig,
    num_beams: int,
    length_penalty: float,
    early_stopping: EarlyStopping,
    when_full: WhenFull,
) -> None:
    check_whole("num_beams", num_beams, 1, 1000)
    check_number("length_penalty", length_penalty, -10, 10)
    if early_stopping not in (True, False, "never"):
        raise ClearheadError(
            f"early_stopping is {early_stopping!r}; it must be true, false or 'never'"
        )
    off = SamplingConfig(temperature=0)
    for name in ("temperature", "top_k", "top_p", "min_p", "typical_p"):
        value, wanted = getattr(sampling, name), getattr(off, name)
        if value != wanted:
            raise ClearheadError(
                f"{name} is {value}; beam search draws nothing, so it must be {wanted:g}"
            )
    if when_full == "slide":
        raise ClearheadError("when_full is 'slide'; with beams it must be 'stop' or 'error'")


@dataclass
class _Beam:
    """A text that is followed, or might be."""

    tokens: tuple[GeneratedToken, ...]
    """Its new tokens."""
    score: float
    """The sum of their log-probabilities."""
    slot: int
    """Where the cache holds all of it but the last token."""

    @property
    def ended(self) -> bool:
        """Whether no token follows."""
        return self.tokens[-1].finish_reason is not None


class _Search:
    """The texts in the cache, and how they are continued."""

    def __init__(
        self,
        reader: Backend,
        prompt: list[int],
        sampling: SamplingConfig,
        num_beams: int,
        is_finished: Callable[[Sequence[int]], bool] | None,
    ) -> None:
        # The last new token needs no position: it is never read.
        room = reader.model.config.context_length + 1 - len(prompt)
        self.longest = min(sampling.max_new_tokens, room)
        self.n_read = 0
        self._reader, self._prompt, self._sampling = reader, prompt, sampling
        self._is_finished = is_finished
        self._stop_ids = frozenset(sampling.stop_token_ids)
        # Each beam may be continued by every stop id; as many as there are beams must remain.
        self._n_candidates = max(2, 1 + len(self._stop_ids)) * num_beams
        self._cache = reader.cache(num_beams, capacity=len(prompt) + self.longest - 1)
        self._held: list[list[int]] = [[] for _ in range(num_beams)]

    def begin(self) -> Float[Tensor, "1 V"]:
        """Read the prompt, into the first slot; return what follows."""
        self._held[0] = self._prompt
        self.n_read += len(self._prompt)
        return read(self._reader, self._prompt, self._cache.at([0]))

    def candidates(self, logits: Float[Tensor, "B V"], running: Sequence[_Beam]) -> list[_Beam]:
        """Return the best texts that are one token longer, best first.

        Args:
            logits: What follows each running text.
            running: In the order of the logits.
        """
        most_likely(logits)  # refuses what is no number
        scores = logits.cpu().double().log_softmax(-1)  # [B, V]
        if self._sampling.adjusts:
            histories = [
                History(self._prompt, [token.token_id for token in beam.tokens]) for beam in running
            ]
            for row, history in enumerate(histories):
                scores[row] = torch.from_numpy(adjust(scores[row].numpy(), self._sampling, history))
        scores += torch.tensor([[beam.score] for beam in running], dtype=torch.float64)
        best = scores.flatten().topk(min(self._n_candidates, scores.numel()))
        found = []
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            row, token = divmod(place, scores.shape[1])
            if score > -torch.inf:
                parent = running[row]
                longer = self._token(logits[row : row + 1], parent, token)
                found.append(_Beam((*parent.tokens, longer), score, parent.slot))
        return found

    def _token(self, logits: Float[Tensor, "1 V"], parent: _Beam, token: int) -> GeneratedToken:
        """Return a text's next token, with the reason why the text ends by it, if it does."""
        reason: FinishReason | None = None
        ids = [*(one.token_id for one in parent.tokens), token]
        if token in self._stop_ids or (self._is_finished and self._is_finished(ids)):
            reason = "stop"
        elif len(ids) == self.longest:
            reason = "length" if self.longest == self._sampling.max_new_tokens else "context"
        if self._sampling.logprobs is None:
            return GeneratedToken(0, token, reason)
        lp, top = chosen_and_best(logits, token, self._sampling.logprobs)
        return GeneratedToken(0, token, reason, lp, top)

    def decode(self, running: list[_Beam]) -> Float[Tensor, "B V"]:
        """Read the last token of each text; return what follows. The texts are put in order."""
        self._settle(running)
        running.sort(key=lambda beam: beam.slot)
        last = [beam.tokens[-1].token_id for beam in running]
        for beam, token in zip(running, last, strict=True):
            self._held[beam.slot] = [*self._held[beam.slot], token]
        self.n_read += len(running)
        ids = torch.tensor([[token] for token in last])  # [B, 1]
        return self._reader.read(ids, self._cache.at([beam.slot for beam in running]))

    def _settle(self, running: Sequence[_Beam]) -> None:
        """Give each text a slot of its own: of a parent's, the best stays; the others are copied.

        They go where texts lie that are not continued, and only what differs is copied.
        """
        parents = {beam.slot for beam in running}
        free = [slot for slot in range(len(self._held)) if slot not in parents]
        taken: set[int] = set()
        for beam in running:
            if beam.slot in taken:
                source, beam.slot = beam.slot, free.pop()
                held = self._held[source]
                alike = n_alike(held, self._held[beam.slot])
                self._cache.copy(source, beam.slot, len(held), start=alike)
                self._held[beam.slot] = held
            taken.add(beam.slot)
