"""`clearhead generate`: continues a text, and shows it as it is made."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.rule import Rule
from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.parse import Flag, parse, text
from clearhead.cli.sampling_flags import SamplingFlags
from clearhead.engine import SamplingConfig, WhenFull
from clearhead.errors import ClearheadError
from clearhead.recipes.chat import question_prompt
from clearhead.recipes.completion import Completion
from clearhead.recipes.generate import generate as continue_text
from clearhead.recipes.load import load
from clearhead.tokenizer import Tokenizer


@dataclass(frozen=True)
class Arguments:
    """Continue a text with a trained model."""

    directory: Positional[Path]
    """A checkpoint, or the folder of a run: then its newest checkpoint."""
    prompt: str = ""
    """The text to continue; - reads it from standard input; without one a new document begins."""
    ask: str | None = None
    """A question to a model that was taught to answer, in place of a prompt."""
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(
        default_factory=SamplingFlags, metadata={"flat": True}
    )
    samples: int = 1
    """How many texts to generate."""
    best_of: int | None = None
    """Draw so many, and show the --samples with the highest mean log-probability of a token."""
    beams: int = 1
    """Above 1, search for the most likely text as a whole, following so many at once."""
    length_penalty: float = 1.0
    """With --beams: above 0 favours long texts, below 0 short ones."""
    logprobs: int | None = SamplingConfig.logprobs
    """List each token's log-probability, and so many of the most likely ones in its place."""
    prompt_lookup: Flag = False
    """Guess that the text repeats itself: the text stays and may come sooner."""
    draft: Path | None = None
    """A smaller model with the same tokenizer, to guess: the text stays and may come sooner."""
    truncate: Literal["error", "left"] = "error"
    """What to do with a prompt that is too long: refuse it, or drop its beginning."""
    when_full: WhenFull = "stop"
    """Where the context is full: stop, go on from its last half, or refuse what may get there."""
    best: Flag = False
    """Take the run's best checkpoint, not its newest."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    json: Flag = False
    """Print the result as one JSON object."""


def generate(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    live = parsed.samples == 1 and not parsed.json
    sampling = parsed.sampling.config(
        temperature=SamplingConfig.temperature if parsed.beams == 1 else 0,
        logprobs=parsed.logprobs,
    )
    show.one_of(("prompt", "ask"), {"prompt": parsed.prompt or None, "ask": parsed.ask})
    prompt = _from_input() if parsed.prompt == "-" else text(parsed.prompt, "--prompt")
    which: Literal["best", "newest"] = "best" if parsed.best else "newest"
    model, tokenizer = load(parsed.directory, which=which, device=parsed.device)
    draft = load(parsed.draft, device=parsed.device) if parsed.draft else None
    if parsed.ask is not None:
        prompt = question_prompt(tokenizer, text(parsed.ask, "--ask"))
    try:
        completions = continue_text(
            model,
            tokenizer,
            prompt,
            sampling=sampling,
            stop=parsed.sampling.stops(),
            samples=parsed.samples,
            best_of=parsed.best_of,
            num_beams=parsed.beams,
            length_penalty=parsed.length_penalty,
            truncate=parsed.truncate,
            when_full=parsed.when_full,
            prompt_lookup=parsed.prompt_lookup,
            draft=draft,
            on_text=(lambda _, piece: show.text(piece)) if live else None,
        )
    except KeyboardInterrupt:
        if live:
            print()  # what was written so far stays, and ends its line
        raise
    if parsed.json:
        show.as_json(_document(prompt, completions, tokenizer))
    elif live:
        print()
        _list(completions[0], tokenizer)
    else:
        _show_all(completions, tokenizer)
    _tell(completions, parsed)
    return 0


def _from_input() -> str:
    """Return what standard input holds, without the line end that closes it."""
    try:
        whole = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ClearheadError(f"standard input is not UTF-8 text, at byte {error.start}") from error
    return whole.removesuffix("\n").removesuffix("\r")


def _show_all(completions: Sequence[Completion], tokenizer: Tokenizer) -> None:
    console = show.result()
    for number, completion in enumerate(completions, start=1):
        which = f"{number} of {len(completions)}"
        which += "" if completion.seed is None else f", seed {completion.seed}"
        which += "" if completion.score is None else f", score {completion.score:.4f}"
        console.print(Rule(which, style="dim"))
        show.text(f"{completion.text}\n")
        _list(completion, tokenizer)


def _list(completion: Completion, tokenizer: Tokenizer) -> None:
    """Show each token with its log-probability, and what else was likely, if it was asked for."""
    rows = [
        (
            repr(tokenizer.decode([token])),
            logprob,
            f"{math.exp(logprob):.1%}",
            "  ".join(f"{tokenizer.decode([one])!r} {math.exp(lp):.1%}" for one, lp in top),
        )
        for token, logprob, top in _logprobs(completion)
    ]
    if rows:
        show.table("", ("token", "log-probability", "probability", "most likely"), rows)


def _logprobs(
    completion: Completion,
) -> list[tuple[int, float, tuple[tuple[int, float], ...]]]:
    if completion.logprobs is None or completion.top_logprobs is None:
        return []
    found = zip(completion.token_ids, completion.logprobs, completion.top_logprobs, strict=True)
    return list(found)


def _tell(completions: Sequence[Completion], parsed: Arguments) -> None:
    """Say on standard error how it went."""
    n_tokens = sum(completion.n_tokens for completion in completions)
    seconds = max(completion.seconds for completion in completions)
    first, n_drawn = completions[0], parsed.best_of or parsed.samples
    said = [f"{n_tokens} tokens, {n_tokens / seconds:,.1f} tokens/s"]
    if first.proposed is not None:
        guesses = [(one.proposed or 0, one.accepted or 0) for one in completions]
        proposed, accepted = (sum(numbers) for numbers in zip(*guesses, strict=True))
        found = f"{accepted} of {proposed} guessed tokens held"
        none = "nothing was guessed" + (
            ", for several texts shared the batch" if n_drawn > 1 else ""
        )
        said.append(found if proposed else none)
    if parsed.best_of is not None:
        said.append(f"the best of {parsed.best_of}")
    if parsed.beams > 1:
        said.append(f"{parsed.beams} beams")
    if parsed.beams == 1:
        seeds = [str(completion.seed) for completion in completions]
        in_turn = parsed.best_of is None and len(seeds) > 1
        said.append(f"seed {seeds[0]} to {seeds[-1]}" if in_turn else f"seed {', '.join(seeds)}")
    if not completions[1:]:
        said.append(f"ended by {_ENDS[first.finish_reason]}")
    if first.n_dropped:
        said.append(f"the prompt's first {first.n_dropped} tokens were dropped")
    show.line(show.progress(), "; ".join(said), "dim")
    if first.why is not None:
        by_torch = "computed by torch: " if first.backend == "torch" else ""
        show.line(show.progress(), by_torch + first.why, "dim")


_ENDS = {
    "stop": "a stop",
    "length": "--tokens",
    "context": "the end of the context",
}


def _document(
    prompt: str, completions: Sequence[Completion], tokenizer: Tokenizer
) -> dict[str, Any]:
    first = completions[0]
    return {
        "prompt": prompt,
        "backend": first.backend,
        "why": first.why,
        "samples": [_as_dict(completion, tokenizer) for completion in completions],
    }


def _as_dict(completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "text": completion.text,
        "tokens": completion.n_tokens,
        "finish_reason": completion.finish_reason,
        "stop": completion.stop,
        "seed": completion.seed,
        "score": completion.score,
        "dropped_tokens": completion.n_dropped,
        "proposed_tokens": completion.proposed,
        "accepted_tokens": completion.accepted,
        "seconds": completion.seconds,
        "tokens_per_second": completion.tokens_per_second,
        "logprobs": [
            {**_likely(tokenizer, token, logprob), "top": [_likely(tokenizer, *one) for one in top]}
            for token, logprob, top in _logprobs(completion)
        ]
        or None,
    }


def _likely(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {"token": tokenizer.decode([token]), "id": token, "logprob": logprob}
