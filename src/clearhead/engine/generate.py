"""Several prompts continued at once, as one iterator."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from clearhead.engine.config import SamplingConfig
from clearhead.engine.engine import Engine
from clearhead.engine.text import GeneratedToken, WhenFull
from clearhead.errors import ClearheadError
from clearhead.model import GPT


def generate_ids(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seeds: Sequence[int] | None = None,
    stop_ids: Collection[int] = (),
    is_finished: Callable[[int, Sequence[int]], bool] | None = None,
    when_full: WhenFull = "stop",
    prompt_lookup: bool = False,
    draft: GPT | None = None,
) -> Iterator[GeneratedToken]:
    """Continue each prompt, all in one batch; a row's tokens are those it would get alone.

    Between two tokens nothing of the model or of torch's modes is changed, so one may stop
    iterating at any point.

    Args:
        model: Its training mode is set aside during each step only.
        prompts: Token ids, one sequence a row.
        sampling: For all rows. Each has its own random generator, so two rows with the same
            prompt and seed get the same tokens.
        seeds: One a row, in place of `sampling.seed`.
        stop_ids: Tokens that end a row, besides `sampling.stop_token_ids`.
        is_finished: Asked after each token, with the row and its new tokens so far, whether the
            row ends here. Not asked about a stop id.
        when_full: What happens to a row that fills the context, as in `Engine.submit`.
        prompt_lookup: Guess that a text repeats itself, as in `Engine.submit`.
        draft: A smaller model that guesses, as in `Engine`.

    Yields:
        Tokens as they come: step by step, in the order of the rows that still go on.

    Raises:
        ClearheadError: A prompt holds an id outside the vocabulary, is longer than the context,
            or is empty; `sampling` names such an id; there is not one seed a row; or the model is
            a classifier. At once, not at the first token.
    """
    if seeds is not None and len(seeds) != len(prompts):
        raise ClearheadError(f"{len(prompts)} prompts have {len(seeds)} seeds; give each one")
    longest = max((len(prompt) for prompt in prompts), default=1)
    capacity = None if when_full == "slide" else max(longest + sampling.max_new_tokens - 1, 1)
    engine = Engine(model, slots=max(len(prompts), 1), capacity=capacity, draft=draft)
    sampling = replace(sampling, stop_token_ids=(*sampling.stop_token_ids, *stop_ids))
    for row, prompt in enumerate(prompts):
        engine.submit(
            prompt,
            sampling,
            row=row,
            seed=None if seeds is None else seeds[row],
            when_full=when_full,
            prompt_lookup=prompt_lookup,
            is_finished=is_finished,
        )
    return _all_tokens(engine)


def _all_tokens(engine: Engine) -> Iterator[GeneratedToken]:
    while tokens := engine.step():
        yield from tokens
