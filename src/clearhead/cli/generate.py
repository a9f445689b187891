"""`clearhead generate`: continues a text, and shows it as it is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.rule import Rule
from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.parse import Flag, parse, text
from clearhead.engine import SamplingConfig
from clearhead.errors import ClearheadError
from clearhead.recipes.generate import Completion, question
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
    tokens: int = SamplingConfig.max_new_tokens
    """The most tokens to generate."""
    temperature: float = SamplingConfig.temperature
    """Below 1 bolder, above 1 more varied; 0 takes the most likely token."""
    top_k: int = SamplingConfig.top_k
    """Draw from the k most likely tokens only; 0 for all."""
    top_p: float = SamplingConfig.top_p
    """Draw from the fewest tokens whose probabilities reach this sum; 1 for all."""
    min_p: float = SamplingConfig.min_p
    """Draw from tokens at least this fraction as likely as the most likely one; 0 for all."""
    typical_p: float = SamplingConfig.typical_p
    """Draw from the tokens of about the expected surprise, up to this sum; 1 for all."""
    repetition_penalty: float = SamplingConfig.repetition_penalty
    """Above 1, makes tokens of the text so far less likely; 1 for none."""
    presence_penalty: float = SamplingConfig.presence_penalty
    """Taken off the logit of each token that the new text has; 0 for none."""
    frequency_penalty: float = SamplingConfig.frequency_penalty
    """Taken off a token's logit each time that the new text has it; 0 for none."""
    logit_bias: tuple[str, ...] = ()
    """Token ids and what to add to their logits, as 50256=-100."""
    min_tokens: int = SamplingConfig.min_new_tokens
    """The end-of-text token comes after this many others at the soonest; a stop text may sooner."""
    stop: tuple[str, ...] = ()
    """Texts that end the generated one."""
    seed: int | None = SamplingConfig.seed
    """The same seed gives the same text; without one every run differs."""
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

    def sampling(self) -> SamplingConfig:
        """Return how tokens are chosen."""
        return SamplingConfig(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=dict(_bias(one) for one in self.logit_bias),
            min_new_tokens=self.min_tokens,
            max_new_tokens=self.tokens,
            seed=self.seed,
        )


def generate(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    sampling, live = parsed.sampling(), parsed.samples == 1 and not parsed.json
    show.one_of(("prompt", "ask"), {"prompt": parsed.prompt or None, "ask": parsed.ask})
    prompt = text(parsed.prompt, "--prompt")
    which: Literal["best", "newest"] = "best" if parsed.best else "newest"
    model, tokenizer = load(parsed.directory, which=which, device=parsed.device)
    if parsed.ask is not None:
        prompt = question(tokenizer, text(parsed.ask, "--ask"))
    completions = continue_text(
        model,
        tokenizer,
        prompt,
        sampling=sampling,
        stop=[text(stop, "--stop") for stop in parsed.stop],
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


def _bias(given: str) -> tuple[int, float]:
    """Return the token id and the number of "50256=-100"."""
    token, _, number = given.partition("=")
    try:
        return int(token), float(number)
    except ValueError as error:
        raise ClearheadError(
            f"--logit-bias is {given!r}; write a token id and a number, as 50256=-100"
        ) from error


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
