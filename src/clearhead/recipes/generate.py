"""Continue a text with a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from clearhead.engine import EarlyStopping, SamplingConfig, WhenFull
from clearhead.engine.config import check_whole
from clearhead.errors import ClearheadError
from clearhead.model import GPT
from clearhead.recipes.completion import Completion
from clearhead.recipes.writing import Request, best, search, write
from clearhead.tokenizer import Tokenizer


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    sampling: SamplingConfig | None = None,
    stop: Sequence[str] = (),
    samples: int = 1,
    best_of: int | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    truncate: Literal["error", "left"] = "error",
    when_full: WhenFull = "stop",
    prompt_lookup: bool = False,
    draft: tuple[GPT, Tokenizer] | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Continue `prompt`, up to a stop, `max_new_tokens` or the end of the context.

    Args:
        model: The model.
        tokenizer: The one that the model was trained with.
        prompt: The text to continue. An empty one starts from the end-of-text token, as a new
            document does. However many texts are written, it is read once.
        sampling: How tokens are chosen, and how many. By default they are drawn from the model's
            own distribution; with beams the temperature must be, and is by default, 0.
        stop: Strings that end the text; they may begin and end within a token. The end-of-text
            token always ends it.
        samples: How many texts to write at once, with the seeds `seed`, `seed` + 1, ….
        best_of: Write so many texts, with the seeds that follow likewise, and return the `samples`
            best of them: those whose new tokens, the ending ones included, have the highest mean
            log-probability by the model alone.
        num_beams: Above 1, search for the text that is the most likely as a whole, by following so
            many at once, and return the best `samples`; see `clearhead.engine.beam_search`.
        length_penalty: With beams: above 0 favours long texts, below 0 short ones.
        early_stopping: With beams: when the search ends.
        truncate: What to do with a prompt that does not fit: "error" refuses one that is longer
            than the context; "left" drops its first tokens, so that `max_new_tokens` fit too, but
            keeps half a context of it.
        when_full: What happens to a text that fills the context: "stop" ends it; "slide" goes on
            from the last half of it; "error" refuses a request that might get there.
        prompt_lookup: Guess that the text repeats itself; it stays the same and may come sooner.
        draft: A smaller model that guesses, likewise, and its tokenizer, as `clearhead.load`
            returns them. A text that is not alone in the batch is not guessed.
        on_text: Called with a sample's number and its next piece of text, as soon as it is known
            not to belong to a stop string or an unfinished character; with `best_of` or beams, once
            the text was chosen. The pieces make the text.

    Returns:
        One completion a sample; with `best_of` or beams, the best first.

    Raises:
        ClearheadError: The prompt is too long or of another tokenizer, as is the draft; a stop
            string is empty; a number is out of its range; or two options exclude each other.
    """
    with_beams = num_beams != 1
    if sampling is None:
        sampling = SamplingConfig(temperature=0 if with_beams else 1)
    _check(stop, samples, truncate)
    others = {"best_of": best_of, "prompt_lookup": prompt_lookup or None, "draft": draft}
    if with_beams:
        _check_beams(num_beams, samples, others)
    elif length_penalty != 1 or early_stopping is not False:
        raise ClearheadError(
            "length_penalty and early_stopping are beam search's; give num_beams above 1 with them"
        )
    if best_of is not None:
        _check_best_of(best_of, samples, sampling)
    if draft is not None and not draft[1].agrees_with(tokenizer):
        raise ClearheadError(
            f"the draft's tokenizer ({draft[1].name}) has not the tokens of the model's "
            f"({tokenizer.name}); take a draft that was trained with the model's tokenizer"
        )
    known = sampling if best_of is None else replace(sampling, logprobs=sampling.logprobs or 0)
    request = Request(model, tokenizer, prompt, known, stop, truncate, when_full)
    chosen = with_beams or best_of is not None
    if with_beams:
        found = search(request, num_beams, length_penalty, early_stopping)
    else:
        live = None if chosen else on_text
        drafting = draft[0] if draft else None
        found = write(request, best_of or samples, prompt_lookup, drafting, live)
    if best_of is not None:
        found = best(found, keep_logprobs=sampling.logprobs is not None)
    del found[samples:]
    if chosen and on_text:
        for number, one in enumerate(found):
            if one.text:
                on_text(number, one.text)
    return found


def _check(stop: Sequence[str], samples: int, truncate: str) -> None:
    if isinstance(stop, str):
        raise ClearheadError(f"stop is {stop!r}; it must be a list of strings")
    if "" in stop:
        raise ClearheadError("a stop string is empty; give it at least one character")
    check_whole("samples", samples, 1)
    if truncate not in ("error", "left"):
        raise ClearheadError(f"truncate is {truncate!r}; it must be 'error' or 'left'")


def _check_beams(num_beams: int, samples: int, others: Mapping[str, object]) -> None:
    """Refuse what beam search cannot do; its own arguments it checks itself."""
    for name, value in others.items():
        if value is not None:
            raise ClearheadError(f"give num_beams or {name}, not both: beam search draws nothing")
    if type(num_beams) is int and samples > num_beams > 0:
        raise ClearheadError(
            f"samples is {samples}; beam search finds as many as num_beams, {num_beams}, at most"
        )


def _check_best_of(best_of: int, samples: int, sampling: SamplingConfig) -> None:
    if type(best_of) is not int or best_of < samples:
        raise ClearheadError(
            f"best_of is {best_of!r}; it must be a whole number, at least samples, {samples}"
        )
    if sampling.temperature == 0:
        raise ClearheadError(
            "best_of chooses among texts that are drawn, and at temperature 0 all are the same; "
            "set another temperature"
        )
