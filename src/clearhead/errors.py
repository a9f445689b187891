"""The one base class of every error that a person can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class ClearheadError(Exception):
    """A mistake in the input or the surroundings, told in one line.

    The message says what is wrong, where, and what to do. The command line prints it and
    exits with status 2; it never shows a traceback for it.
    """


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Name the candidate that `word` was probably meant to be, as a phrase for an error message.

    Args:
        word: What the person wrote.
        candidates: What would have been valid.

    Returns:
        `"did you mean 'x'?"`, or a list of the candidates if none is close.
    """
    candidates = sorted(candidates)
    close = get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(candidates)}"
