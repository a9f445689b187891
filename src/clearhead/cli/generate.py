"""`clearhead generate`: continues a text, and shows it as it is made."""

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
from clearhead.recipes.chat import question_prompt
from clearhead.recipes.generate import Completion
from clearhead.recipes.generate import generate as continue_text
from clearhead.recipes.load import load


@dataclass(frozen=True)
class Arguments:
    """Continue a text with a trained model."""

    directory: Positional[Path]
    """A checkpoint, or the folder of a run: then its newest checkpoint."""
    prompt: str = ""
    """The text to continue; without one, a new document begins."""
    ask: str | None = None
    """A question to a model that was taught to answer, in place of a prompt."""
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(
        default_factory=SamplingFlags, metadata={"flat": True}
    )
    samples: int = 1
    """How many texts to generate."""
    truncate: Literal["error", "left"] = "error"
    """What to do with a prompt that is too long: refuse it, or drop its beginning."""
    best: Flag = False
    """Take the run's best checkpoint, not its newest."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    json: Flag = False
    """Print the result as one JSON object."""


def generate(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    sampling, live = parsed.sampling.config(), parsed.samples == 1 and not parsed.json
    show.one_of(("prompt", "ask"), {"prompt": parsed.prompt or None, "ask": parsed.ask})
    prompt = text(parsed.prompt, "--prompt")
    which: Literal["best", "newest"] = "best" if parsed.best else "newest"
    model, tokenizer = load(parsed.directory, which=which, device=parsed.device)
    if parsed.ask is not None:
        prompt = question_prompt(tokenizer, text(parsed.ask, "--ask"))
    completions = continue_text(
        model,
        tokenizer,
        prompt,
        sampling=sampling,
        stop=parsed.sampling.stops(),
        samples=parsed.samples,
        truncate=parsed.truncate,
        on_text=(lambda _, piece: show.text(piece)) if live else None,
    )
    if parsed.json:
        show.as_json({"prompt": prompt, "samples": [_as_dict(one) for one in completions]})
    elif live:
        print()
    else:
        _show_all(completions)
    _tell(completions)
    return 0


def _show_all(completions: Sequence[Completion]) -> None:
    console = show.result()
    for number, completion in enumerate(completions, start=1):
        console.print(Rule(f"{number} of {len(completions)}, seed {completion.seed}", style="dim"))
        show.text(f"{completion.text}\n")


def _tell(completions: Sequence[Completion]) -> None:
    """Say on standard error how it went."""
    n_tokens = sum(completion.n_tokens for completion in completions)
    seconds = max(completion.seconds for completion in completions)
    first = completions[0]
    seeds = f"seed {first.seed}" + (f" to {completions[-1].seed}" if completions[1:] else "")
    said = f"{n_tokens} tokens, {n_tokens / seconds:,.1f} tokens/s; {seeds}"
    if not completions[1:]:
        said += f"; ended by {_ENDS[first.finish_reason]}"
    if first.n_dropped:
        said += f"; the prompt's first {first.n_dropped} tokens were dropped"
    show.line(show.progress(), said, "dim")


_ENDS = {
    "stop": "a stop",
    "length": "--tokens",
    "context": "the end of the context",
}


def _as_dict(completion: Completion) -> dict[str, Any]:
    return {
        "text": completion.text,
        "tokens": completion.n_tokens,
        "finish_reason": completion.finish_reason,
        "stop": completion.stop,
        "seed": completion.seed,
        "dropped_tokens": completion.n_dropped,
        "seconds": completion.seconds,
        "tokens_per_second": completion.tokens_per_second,
    }
