"""What several models write after the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clearhead.engine import SamplingConfig
from clearhead.errors import ClearheadError
from clearhead.recipes.generate import generate
from clearhead.recipes.load import load

_MOST = 1000


@dataclass(frozen=True)
class SideBySide:
    """One prompt, continued by each model."""

    prompt: str
    """The prompt."""
    texts: tuple[str, ...]
    """What each model wrote, in the order of the models."""


def read_prompts(path: Path) -> list[str]:
    """Read prompts, a line each; empty lines are left out.

    Raises:
        ClearheadError: The file cannot be read, has no prompt, or far too many.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ClearheadError(f"{path} is not UTF-8, at byte {error.start}") from error
    prompts = [line for line in lines if line.strip()]
    if not 0 < len(prompts) <= _MOST:
        raise ClearheadError(f"{path} has {len(prompts)} prompts; give 1 to {_MOST}, a line each")
    return prompts


def side_by_side(
    directories: Sequence[Path],
    prompts: Sequence[str],
    *,
    sampling: SamplingConfig = SamplingConfig(seed=0),  # noqa: B008 - it is frozen
    device: str = "auto",
) -> list[SideBySide]:
    """Let each model continue each prompt, with the same seed.

    Args:
        directories: Checkpoints, or runs' folders.
        prompts: What to continue.
        sampling: How tokens are chosen, and how many.
        device: Where to compute.

    Raises:
        ClearheadError: A model cannot be loaded, writes no text, or a prompt is too long for it.
    """
    columns = []
    for directory in directories:
        model, tokenizer = load(directory, device=device)
        columns.append(
            [generate(model, tokenizer, one, sampling=sampling)[0].text for one in prompts]
        )
    return [
        SideBySide(prompt, tuple(column[at] for column in columns))
        for at, prompt in enumerate(prompts)
    ]
