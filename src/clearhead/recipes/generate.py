"""Continue a text with a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from clearhead.engine import SEEDS, FinishReason, SamplingConfig, fresh_seed, generate_ids
from clearhead.errors import ClearheadError
from clearhead.model import GPT
from clearhead.recipes.text_stream import TextStream
from clearhead.tokenizer import Tokenizer


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
    seed: int
    """With this seed in the sampling config, the same prompt gives this text again."""
    seconds: float
    """From the start, reading the prompt included, to this text's last token."""

    @property
    def n_tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.token_ids)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over seconds, of this text alone."""
        return self.n_tokens / self.seconds


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 - it is frozen
    stop: Sequence[str] = (),
    samples: int = 1,
    truncate: Literal["error", "left"] = "error",
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Continue `prompt`, up to a stop, `max_new_tokens` or the end of the context.

    Args:
        model: The model.
        tokenizer: The one that the model was trained with.
        prompt: The text to continue. An empty one starts from the end-of-text token, as a new
            document does.
        sampling: How tokens are chosen, and how many.
        stop: Strings that end the text; they may begin and end within a token. The end-of-text
            token always ends it.
        samples: How many texts to write at once, with the seeds `seed`, `seed` + 1, ….
        truncate: What to do with a prompt that does not fit: "error" refuses one that is longer
            than the context; "left" drops its first tokens, so that `max_new_tokens` fit too, but
            keeps half a context of it.
        on_text: Called with a sample's number and its next piece of text, as soon as it is known
            not to belong to a stop string or an unfinished character. The pieces make the text.

    Returns:
        One completion a sample.

    Raises:
        ClearheadError: The prompt is too long or of another tokenizer, a stop string is empty, or
            there are less than one samples.
    """
    _check(stop, samples, truncate)
    whole = _prompt_ids(tokenizer, prompt)
    room = _room(model.config.context_length, sampling.max_new_tokens)
    prompt_ids = whole[-room:] if truncate == "left" else whole
    first_seed = fresh_seed() if sampling.seed is None else sampling.seed
    seeds = [(first_seed + sample) % SEEDS for sample in range(samples)]
    streams = [TextStream(stop) for _ in seeds]
    texts = [""] * samples
    token_ids: list[list[int]] = [[] for _ in seeds]
    completions: dict[int, Completion] = {}

    def show(row: int, piece: str) -> None:
        texts[row] += piece
        if piece and on_text:
            on_text(row, piece)

    def is_finished(row: int, new_ids: Sequence[int]) -> bool:
        show(row, streams[row].push(tokenizer.decode_bytes(new_ids[-1:])))
        return streams[row].stop is not None

    start = perf_counter()
    for event in generate_ids(
        model,
        [prompt_ids] * samples,
        sampling,
        seeds=seeds,
        stop_ids=[tokenizer.end_of_text],
        is_finished=is_finished,
    ):
        row = event.row
        token_ids[row].append(event.token_id)
        if event.finish_reason is not None:
            seconds = perf_counter() - start
            show(row, streams[row].close())
            completions[row] = Completion(
                text=texts[row],
                token_ids=tuple(token_ids[row]),
                finish_reason=event.finish_reason,
                stop=streams[row].stop,
                prompt_token_ids=tuple(prompt_ids),
                n_dropped=len(whole) - len(prompt_ids),
                seed=seeds[row],
                seconds=seconds,
            )
    return [completions[row] for row in range(samples)]


def _check(stop: Sequence[str], samples: int, truncate: str) -> None:
    if isinstance(stop, str):
        raise ClearheadError(f"stop is {stop!r}; it must be a list of strings")
    if "" in stop:
        raise ClearheadError("a stop string is empty; give it at least one character")
    if samples < 1:
        raise ClearheadError(f"samples is {samples}; it must be at least 1")
    if truncate not in ("error", "left"):
        raise ClearheadError(f"truncate is {truncate!r}; it must be 'error' or 'left'")


def _prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the prompt's tokens; an empty one is the end-of-text token, as before a document."""
    return [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text]


def _room(context_length: int, max_new_tokens: int) -> int:
    """Return how many tokens of a prompt are kept, for `max_new_tokens` to fit where possible."""
    # The last new token needs no position: it is never read.
    return max(context_length + 1 - max_new_tokens, (context_length + 1) // 2)
