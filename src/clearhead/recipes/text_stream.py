"""Text that arrives in bytes, shown as far as it is certain."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Text up to its first stop string, handed out as soon as nothing can take it back.

    Held back are the bytes of an unfinished UTF-8 character and the longest end of the text that
    a stop string may begin with; how the text is cut into pieces changes nothing about the whole.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stop: str | None = None
        """The stop string that ended the text."""
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, data: bytes) -> str:
        """Add bytes; return the text that they make certain. After a stop there is none."""
        if self.stop is not None:
            return ""
        self._held += self._decoder.decode(data)
        # The stop that is whole first, as if the text had come character by character.
        found = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := self._held.find(stop)) >= 0
        ]
        if found:
            _, certain, self.stop = min(found)
        else:
            certain = len(self._held) - self._overlap()
        piece, self._held = self._held[:certain], self._held[certain:]
        return piece

    def close(self) -> str:
        """Return what was held back; an unfinished character becomes U+FFFD."""
        if self.stop is not None:
            return ""
        piece, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return piece

    def _overlap(self) -> int:
        """Count the characters at the end that a stop string begins with, at most."""
        return max(
            (
                length
                for stop in self._stops
                for length in range(min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )
