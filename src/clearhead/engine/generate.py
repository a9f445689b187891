"""Prefill and decode: prompts of different length in one batch, a token a row a step."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import index
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.engine.config import SamplingConfig, fresh_seed
from clearhead.engine.history import History
from clearhead.engine.sampling import choose
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig, KVCache

FinishReason = Literal["stop", "length", "context"]
"""Why a text ended: a stop, `max_new_tokens` reached, or the context full."""


@dataclass(frozen=True)
class GeneratedToken:
    """One token more of one row's text."""

    row: int
    """Which prompt it continues."""
    token_id: int
    """The token; also given when it is the stop id that ends the text."""
    finish_reason: FinishReason | None
    """Why this token is the row's last; None if it is not."""


def generate_ids(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seeds: Sequence[int] | None = None,
    stop_ids: Collection[int] = (),
    is_finished: Callable[[int, Sequence[int]], bool] | None = None,
) -> Iterator[GeneratedToken]:
    """Continue each prompt, all in one batch; a row's tokens are those it would get alone.

    Between two tokens nothing of the model or of torch's modes is changed, so one may stop
    iterating at any point. A row takes the positions of its prompt and its new tokens but the
    last, which is never read: a prompt as long as the context gets one token.

    Args:
        model: Its training mode is set aside during each step only.
        prompts: Token ids, one sequence a row.
        sampling: For all rows. Each has its own random generator, so two rows with the same
            prompt and seed get the same tokens.
        seeds: One a row, in place of `sampling.seed`.
        stop_ids: Tokens that end a row, besides `sampling.stop_token_ids`.
        is_finished: Asked after each token, with the row and its new tokens so far, whether the
            row ends here. Not asked about a stop id.

    Yields:
        Tokens as they come: step by step, in the order of the rows that still go on.

    Raises:
        ClearheadError: A prompt holds an id outside the vocabulary, is longer than the context,
            or is empty; `sampling` names such an id; there is not one seed a row; or the model is
            a classifier. At once, not at the first token.
    """
    config = model.config
    config.check_next_token()
    texts = [_checked(prompt, row, config) for row, prompt in enumerate(prompts)]
    if seeds is None:
        seeds = [fresh_seed() if sampling.seed is None else sampling.seed for _ in texts]
    if len(seeds) != len(texts):
        raise ClearheadError(f"{len(texts)} prompts have {len(seeds)} seeds; give each one")
    sampling = replace(sampling, stop_token_ids=(*sampling.stop_token_ids, *stop_ids))
    sampling.check_vocabulary(config.vocab_size)
    rows = [_Row(i, text, seed) for i, (text, seed) in enumerate(zip(texts, seeds, strict=True))]
    return _generate(model, rows, sampling, is_finished)


class _Row:
    """A text that grows."""

    def __init__(self, index: int, prompt: list[int], seed: int) -> None:
        self.index = index
        self.history = History(prompt)
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def length(self) -> int:
        """Tokens of the prompt and new ones."""
        return len(self.history.prompt_ids) + len(self.history.new_ids)


def _generate(
    model: GPT,
    rows: list[_Row],
    sampling: SamplingConfig,
    is_finished: Callable[[int, Sequence[int]], bool] | None,
) -> Iterator[GeneratedToken]:
    if not rows:
        return
    batch = _Batch(model, [list(row.history.prompt_ids) for row in rows], sampling)
    stop_ids = frozenset(sampling.stop_token_ids)
    while True:
        tokens = batch.choose(rows)
        going_on = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.history.append(token)
            reason: FinishReason | None = None
            if token in stop_ids or (is_finished and is_finished(row.index, row.history.new_ids)):
                reason = "stop"
            elif len(row.history.new_ids) == sampling.max_new_tokens:
                reason = "length"
            elif row.length > model.config.context_length:
                reason = "context"
            else:
                going_on.append(place)
            yield GeneratedToken(row.index, token, reason)
        if not going_on:
            return
        if len(going_on) < len(rows):
            batch.keep(going_on)
            rows = [rows[place] for place in going_on]
        batch.step([row.history.new_ids[-1] for row in rows])


class _Batch:
    """The tensors of the rows that go on: cache and last logits."""

    @torch.inference_mode()
    def __init__(self, model: GPT, prompts: list[list[int]], sampling: SamplingConfig) -> None:
        """Run the prompts through the model, padded on the right."""
        self.model = model
        self.sampling = sampling
        longest = max(len(prompt) for prompt in prompts)
        self.cache = KVCache(
            model.config,
            len(prompts),
            capacity=longest + sampling.max_new_tokens - 1,
            dtype=model.head.weight.dtype,
            device=model.device,
        )
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        padded = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
        self.logits = self._logits(torch.tensor(padded, device=model.device), lengths)  # [B, V]

    @torch.inference_mode()
    def choose(self, rows: Sequence[_Row]) -> list[int]:
        """Choose the next token of each row."""
        configs = [self.sampling] * len(rows)
        histories = [row.history for row in rows]
        generators = [row.generator for row in rows]
        return choose(self.logits, configs, histories, generators).tolist()

    @torch.inference_mode()
    def step(self, tokens: list[int]) -> None:
        """Add the chosen tokens."""
        ids = torch.tensor(tokens, device=self.model.device)[:, None]  # [B, 1]
        self.logits = self._logits(ids, torch.ones_like(ids[:, 0]))

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.cache.keep(rows)

    def _logits(self, ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Return the logits after each row's last real token."""
        with _evaluating(self.model):
            hidden = self.model.hidden(ids, self.cache, lengths)  # [B, T, D]
            # The unembedding of the last position alone: of all, it is most of a prefill's memory.
            last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]  # [B, D]
            return self.model.head(last)


@contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    """Switch dropout off, and each module that was training back on afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _checked(prompt: Sequence[int], row: int, config: GPTConfig) -> list[int]:
    """Return the prompt as plain numbers, or say what is wrong with it."""
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
    return ids
