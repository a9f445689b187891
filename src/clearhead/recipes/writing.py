"""The two ways to continue a prompt: token after token, or by beam search."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from time import perf_counter

from clearhead.engine import (
    SEEDS,
    EarlyStopping,
    Engine,
    Found,
    GeneratedToken,
    SamplingConfig,
    Speculation,
    WhenFull,
    beam_search,
    fresh_seed,
)
from clearhead.model import GPT
from clearhead.recipes.completion import Completion
from clearhead.recipes.text_stream import TextStream
from clearhead.tokenizer import Tokenizer

_SLOTS = 64
"""The most texts in the batch at once; more of them wait, so that the cache stays small."""


class Writing:
    """One text as its tokens come.

    Attributes:
        text: What is certain of it so far.
        tokens: Its tokens so far.
        seconds: When it ended, after the start; 0 while it goes on.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], show: Callable[[str], None] | None = None
    ) -> None:
        self.text = ""
        self.tokens: list[GeneratedToken] = []
        self.seconds = 0.0
        self._tokenizer, self._show = tokenizer, show
        self._stream = TextStream(stop)

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text."""
        return self._stream.stop

    def read(self, token_id: int) -> bool:
        """Let the text grow by a token that is no stop id; say whether a stop string ended it."""
        self._add(self._stream.push(self._tokenizer.decode_bytes([token_id])))
        return self.stop is not None

    def close(self, seconds: float) -> None:
        """End the text."""
        self._add(self._stream.close())
        self.seconds = seconds

    def _add(self, piece: str) -> None:
        self.text += piece
        if piece and self._show:
            self._show(piece)


class Request:
    """What is to be continued, and how."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompt: str,
        sampling: SamplingConfig,
        stop: Sequence[str],
        truncate: str,
        when_full: WhenFull,
    ) -> None:
        self.model, self.tokenizer, self.stop, self.when_full = model, tokenizer, stop, when_full
        ids = (*sampling.stop_token_ids, tokenizer.end_of_text)
        self.sampling = replace(sampling, stop_token_ids=ids)
        # An empty prompt is the end-of-text token, as before a document.
        whole = [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text]
        most = room(model.config.context_length, sampling.max_new_tokens)
        self.prompt_ids = whole[-most:] if truncate == "left" else whole
        self.n_dropped = len(whole) - len(self.prompt_ids)

    def completion(
        self,
        writing: Writing,
        computed_by: Engine | Found,
        *,
        seed: int | None = None,
        score: float | None = None,
        speculation: Speculation | None = None,
    ) -> Completion:
        """Return what was written, with what else is known of it."""
        tokens = writing.tokens
        reason = tokens[-1].finish_reason
        assert reason is not None
        logprobs = tuple(one.logprob for one in tokens if one.logprob is not None)
        asked = self.sampling.logprobs is not None
        return Completion(
            text=writing.text,
            token_ids=tuple(token.token_id for token in tokens),
            finish_reason=reason,
            stop=writing.stop,
            prompt_token_ids=tuple(self.prompt_ids),
            n_dropped=self.n_dropped,
            seed=seed,
            seconds=writing.seconds,
            logprobs=logprobs if asked else None,
            top_logprobs=tuple(one.top_logprobs for one in tokens) if asked else None,
            score=score,
            proposed=speculation.proposed if speculation else None,
            accepted=speculation.accepted if speculation else None,
            backend=computed_by.backend,
            why=computed_by.why,
        )


def write(
    request: Request,
    n: int,
    prompt_lookup: bool,
    draft: GPT | None,
    on_text: Callable[[int, str], None] | None,
) -> list[Completion]:
    """Choose token after token, of `n` texts at once."""
    sampling, prompt_ids = request.sampling, request.prompt_ids
    first_seed = fresh_seed() if sampling.seed is None else sampling.seed
    seeds = [(first_seed + row) % SEEDS for row in range(n)]
    writings = [
        Writing(request.tokenizer, request.stop, partial(on_text, row) if on_text else None)
        for row in range(n)
    ]
    longest = len(prompt_ids) + sampling.max_new_tokens - 1
    capacity = None if request.when_full == "slide" else longest
    start = perf_counter()
    engine = Engine(request.model, slots=min(n, _SLOTS), capacity=capacity, draft=draft)
    texts = [
        engine.submit(
            prompt_ids,
            sampling,
            row=row,
            seed=seed,
            when_full=request.when_full,
            prompt_lookup=prompt_lookup,
            is_finished=lambda row, new_ids: writings[row].read(new_ids[-1]),
        )
        for row, seed in enumerate(seeds)
    ]
    while events := engine.step():
        for event in events:
            writings[event.row].tokens.append(event)
            if event.finish_reason is not None:
                writings[event.row].close(perf_counter() - start)
    return [
        request.completion(writing, engine, seed=seed, speculation=text.speculation)
        for writing, seed, text in zip(writings, seeds, texts, strict=True)
    ]


def best(completions: Sequence[Completion], *, keep_logprobs: bool) -> list[Completion]:
    """Return texts with their mean log-probability as score, the highest first."""
    seconds = max(one.seconds for one in completions)
    ranked = [
        replace(one, score=_mean(one), seconds=seconds)
        for one in sorted(completions, key=_mean, reverse=True)
    ]
    if keep_logprobs:
        return ranked
    return [replace(one, logprobs=None, top_logprobs=None) for one in ranked]


def _mean(one: Completion) -> float:
    return fmean(one.logprobs or ())


def search(
    request: Request, num_beams: int, length_penalty: float, early_stopping: EarlyStopping
) -> list[Completion]:
    """Find the texts that are the most likely as a whole."""
    tokenizer, stop = request.tokenizer, request.stop

    def is_finished(new_ids: Sequence[int]) -> bool:
        stream = TextStream(stop)
        stream.push(tokenizer.decode_bytes(new_ids))
        return stream.stop is not None

    start = perf_counter()
    found = beam_search(
        request.model,
        request.prompt_ids,
        request.sampling,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        when_full=request.when_full,
        is_finished=is_finished if stop else None,
    )
    completions = []
    for one in found.hypotheses:
        writing = Writing(tokenizer, stop)
        for token in one.tokens:
            writing.tokens.append(token)
            if token.token_id not in request.sampling.stop_token_ids:
                writing.read(token.token_id)
        writing.close(perf_counter() - start)
        completions.append(request.completion(writing, found, score=one.score))
    return completions


def room(context_length: int, max_new_tokens: int) -> int:
    """Return how many tokens of a prompt are kept, for `max_new_tokens` to fit where possible."""
    # The last new token needs no position: it is never read.
    return max(context_length + 1 - max_new_tokens, (context_length + 1) // 2)
