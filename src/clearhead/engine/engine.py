"""Continuous batching: texts join and leave a running batch, a token a text a step."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from threading import Lock

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.engine.config import SamplingConfig
from clearhead.engine.reading import read
from clearhead.engine.sampling import choose, chosen_and_best
from clearhead.engine.slots import Slots
from clearhead.engine.speculative import (
    Draft,
    Guess,
    PromptLookup,
    Speculation,
    check_draft,
)
from clearhead.engine.text import GeneratedToken, Text, WhenFull
from clearhead.errors import ClearheadError
from clearhead.model import GPT, KVCache
from clearhead.native import Backend


class Engine:
    """Continues many texts at once.

    What a text gets depends on its own request alone, bit for bit, whatever else is in the batch:
    each prompt is read alone, in pieces with fixed bounds, and the native kernels compute each row
    of a batch for itself. Where torch computes in their place, rows may differ in rounding with the
    number of rows.

    Any thread may call any method; whoever waits for a token computes a step for all.

    Attributes:
        backend: The native kernels' instruction set, or "torch".
        why: Why torch computes the model, or else the draft, and not the native kernels; None if
            they do.
        n_read: How many tokens were computed so far, prompts' and new ones.
        bytes_per_position: Bytes of the keys and values of one token.
    """

    def __init__(
        self,
        model: GPT,
        *,
        slots: int = 16,
        capacity: int | None = None,
        draft: GPT | None = None,
    ) -> None:
        """Make an engine for a model whose weights no longer change.

        Args:
            model: Its training mode is set aside while it computes.
            slots: How many texts may be in the batch; others wait.
            capacity: The most tokens a text may reach; the model's context by default.
            draft: A smaller model that guesses what the model will write: the text stays the same
                and may come sooner (speculative decoding). Not while several texts are in the
                batch: they share what it would use.

        Raises:
            ClearheadError: The model or the draft is a classifier, their vocabularies differ, or
                there is no slot.
        """
        model.config.check_next_token()
        if draft is not None:
            check_draft(draft, model)
        if slots < 1:
            raise ClearheadError(f"slots is {slots}; it must be at least 1")
        self._reader = Backend(model)
        self.backend, self.why = self._reader.name, self._reader.why
        self.n_read = 0
        with torch.inference_mode():
            self._cache = self._reader.cache(slots, capacity=capacity)
        keys, values = self._cache.keys, self._cache.values
        self.bytes_per_position = (keys.nbytes + values.nbytes) // slots // self._cache.capacity
        self._config = replace(model.config, context_length=self._cache.capacity)
        self._draft = Backend(draft) if draft is not None else None
        if self.why is None and self._draft is not None and self._draft.why is not None:
            self.why = f"the draft is computed by torch: {self._draft.why}"
        self._slots = Slots(slots)
        self._waiting: deque[Text] = deque()
        self._running: list[Text] = []
        self._at: tuple[list[int], KVCache] = ([], self._cache)
        self._lock = Lock()

    def submit(
        self,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        *,
        row: int = 0,
        seed: int | None = None,
        when_full: WhenFull = "stop",
        prompt_lookup: bool = False,
        is_finished: Callable[[int, Sequence[int]], bool] | None = None,
    ) -> Text:
        """Let a text join as soon as a slot is free; first come, first served.

        A text takes the positions of its prompt and its new tokens but the last, which is never
        read: a prompt as long as the context gets one token.

        Args:
            prompt: Token ids.
            sampling: How tokens are chosen, and how many.
            row: The number that its tokens carry.
            seed: In place of `sampling.seed`.
            when_full: What happens when the text fills the context. "slide" goes on with the last
                half of it: these tokens are read anew, at the first positions, as a prompt is.
            prompt_lookup: Guess that the text repeats what followed its last tokens before, where a
                draft guesses or not; the text stays the same.
            is_finished: Asked after each token, with the row and its new tokens so far, whether the
                text ends here. Not asked about a stop id.

        Returns:
            The text, which grows with each `step`.

        Raises:
            ClearheadError: The prompt is empty, holds an id outside the vocabulary, or is longer
                than the context; or `sampling` names such an id.
        """
        text = Text(
            prompt,
            sampling,
            self._config,
            row=row,
            seed=seed,
            when_full=when_full,
            is_finished=is_finished,
        )
        guesses: list[Guess] = [PromptLookup()] if prompt_lookup else []
        if self._draft is not None:
            guesses.append(Draft(self._draft, self._cache.capacity))
        text.speculation = Speculation(guesses) if guesses else None
        self._waiting.append(text)
        return text

    def cancel(self, text: Text) -> None:
        """End a text now; its slot is free for the next step, at the latest."""
        text.cancelled = True
        if self._lock.acquire(blocking=False):
            try:
                self._leave()
            finally:
                self._lock.release()

    def step(self) -> list[GeneratedToken]:
        """Add a token to each text that goes on; those that found a slot begin.

        Returns:
            The tokens, in the order in which the texts joined; none when there is nothing to do.

        Raises:
            ClearheadError: The logits are not finite. All texts end by it, as by whatever else is
                raised meanwhile.
        """
        with self._lock:
            return self._step()

    def stream(self, text: Text) -> Iterator[GeneratedToken]:
        """Yield the tokens of a text as they come, computing steps for all texts meanwhile.

        Closing the iterator cancels the text.
        """
        try:
            while (event := self._next(text)) is not None:
                yield event
        finally:
            if not text.ended:
                self.cancel(text)

    async def stream_async(self, text: Text) -> AsyncIterator[GeneratedToken]:
        """Yield the tokens of a text as they come; steps are computed in a thread.

        Cancelling the task, or closing the iterator, cancels the text.
        """
        try:
            while (event := await asyncio.to_thread(self._next, text)) is not None:
                yield event
        finally:
            if not text.ended:
                self.cancel(text)

    def _next(self, text: Text) -> GeneratedToken | None:
        """Return the text's next token, or None after its last."""
        while True:
            with self._lock:
                if text.events:
                    return text.events.popleft()
                if text.ended:
                    return None
                self._step()

    def _step(self) -> list[GeneratedToken]:
        try:
            return self._computed()
        except BaseException:  # what was half computed is of no use: not even after a Ctrl-C
            self._end_all()
            raise

    @torch.inference_mode()
    def _computed(self) -> list[GeneratedToken]:
        self._leave()
        decoded = [text for text in self._running if not text.begins]
        if len(self._running) == len(decoded) == 1 and (guessed := self._guess(decoded[0])):
            return self._verify(decoded[0], guessed)
        logits = [self._decode(decoded)] if decoded else []
        begun = [text for text in self._running if text.begins]
        self._running = decoded + begun
        logits += [self._begin(text) for text in begun]
        while self._waiting and self._slots.any_free():
            text = self._waiting.popleft()
            if not text.ended:
                self._running.append(text)
                logits.append(self._begin(text))
        if not logits:
            return []
        found = self._append(self._running, torch.cat(logits) if len(logits) > 1 else logits[0])
        self._leave()
        return found

    def _decode(self, texts: list[Text]) -> Float[Tensor, "B V"]:
        """Read the last token of each text; return what follows."""
        slots = [text.slot for text in texts if text.slot is not None]
        if slots != self._at[0]:
            self._at = (slots, self._cache.at(slots))
        ids = torch.tensor([text.unread for text in texts])  # [B, 1]
        logits = self._reader.read(ids, self._at[1])  # [B, V]
        for text in texts:
            text.was_read(1)
        self.n_read += len(texts)
        return logits

    def _guess(self, text: Text) -> list[int]:
        """Return tokens that may follow, if the text is alone and is to be guessed."""
        if text.speculation is None or (self._waiting and self._slots.any_free()):
            return []
        room = min(self._cache.capacity - text.n_read, text.n_left) - 1
        return text.speculation.propose(
            text.window, room, text.sampling, text.history, text.generator
        )

    def _verify(self, text: Text, guessed: list[int]) -> list[GeneratedToken]:
        """Read a text's last token and a guess; choose what follows as far as the guess holds."""
        assert text.slot is not None
        assert text.speculation is not None
        ids = torch.tensor([[*text.unread, *guessed]])  # [1, T]
        logits = self._reader.read(ids, self._cache.at([text.slot]), all_logits=True)[0]  # [T, V]
        self.n_read += len(guessed) + 1
        found: list[GeneratedToken] = []
        for row in range(len(guessed) + 1):
            text.was_read(1)
            found += self._append([text], logits[row : row + 1])
            if text.ended or text.begins or found[-1].token_id != [*guessed, None][row]:
                break
        text.speculation.learn(len(guessed), len(found) - 1)
        self._cache.truncate(text.slot, text.n_read)
        self._leave()
        return found

    def _begin(self, text: Text) -> Float[Tensor, "1 V"]:
        """Read a prompt, or what is left of a text that slid; return what follows."""
        prompt = text.unread
        if text.slot is not None:
            self._slots.free(text.slot)
        text.slot, source, shared = self._slots.take(prompt)
        self._cache.copy(source, text.slot, shared)
        held, logits = self._slots.held[text.slot], self._slots.held[source].logits
        held.prompt, held.logits = [], None  # should the reading be interrupted
        if shared < len(prompt):
            logits = read(self._reader, prompt, self._cache.at([text.slot]), shared)
        assert logits is not None
        held.prompt, held.logits = prompt, logits
        text.n_shared = text.n_shared or shared
        text.was_read(len(prompt))
        self.n_read += len(prompt) - shared
        return logits

    def _append(self, texts: list[Text], logits: Float[Tensor, "B V"]) -> list[GeneratedToken]:
        """Choose each text's next token."""
        tokens = choose(
            logits,
            [text.sampling for text in texts],
            [text.history for text in texts],
            [text.generator for text in texts],
        )
        found = []
        for row, (text, token) in enumerate(zip(texts, tokens.tolist(), strict=True)):
            k = text.sampling.logprobs
            known = () if k is None else chosen_and_best(logits[row : row + 1], token, k)
            found.append(text.append(token, *known))
        return found

    def _leave(self) -> None:
        """Free the slots of the texts that ended."""
        ended = [text for text in self._running if text.ended]
        if ended:
            self._running = [text for text in self._running if not text.ended]
        for text in ended:
            if text.slot is not None:
                self._slots.free(text.slot)
                text.slot = None

    def _end_all(self) -> None:
        for text in (*self._running, *self._waiting):
            text.cancelled = True
        self._waiting.clear()
        self._leave()
