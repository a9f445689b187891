"""The tokens of one text so far, and how often it has each."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


class History:
    """A text's prompt and the new tokens after it; adding one costs the same at any length.

    Attributes:
        prompt_ids: The prompt.
        new_ids: What came after it. To be read only: it grows by `append`.
    """

    def __init__(self, prompt_ids: Sequence[int], new_ids: Sequence[int] = ()) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.new_ids: list[int] = []
        # Each distinct token has a place, in the order in which they first appear.
        self._places = {token: i for i, token in enumerate(dict.fromkeys(self.prompt_ids))}
        self._n_distinct_in_prompt = len(self._places)
        self._ids = np.array([*self._places, 0], dtype=np.int64)
        self._counts = np.zeros_like(self._ids)
        for token in new_ids:
            self.append(token)

    @property
    def distinct_ids(self) -> Int64[np.ndarray, " n"]:
        """The distinct tokens of prompt and new text."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> Int64[np.ndarray, " n"]:
        """How often the new text has each of `distinct_ids`."""
        return self._counts[: len(self._places)]

    def append(self, token: int) -> None:
        """Add a new token."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1
        self.new_ids.append(token)

    def pop(self) -> int:
        """Take the last new token off again, and return it.

        Raises:
            IndexError: There is none.
        """
        token = self.new_ids.pop()
        place = self._places[token]
        self._counts[place] -= 1
        # The tokens placed behind this one came after it first did, so they are gone already.
        if self._counts[place] == 0 and place >= self._n_distinct_in_prompt:
            del self._places[token]
        return token
