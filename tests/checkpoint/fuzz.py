"""Damaged files: whatever is done to a file, only our own error comes out of its reader."""

import random
from collections.abc import Callable
from pathlib import Path

from clearhead.errors import ClearheadError


def fuzz(
    original: Path, try_to_read: Callable[[Path], object], folder: Path, n: int = 10_000
) -> int:
    """Damage a file in n ways and read each; return how many were refused.

    The damaged file has the original's name, in `folder`. Any other exception than
    `ClearheadError` comes out, with the number of the attempt as a note.
    """
    content = original.read_bytes()
    target = folder / original.name
    refused = 0
    for attempt in range(n):
        target.write_bytes(_damaged(content, random.Random(attempt)))
        try:
            try_to_read(target)
        except ClearheadError as error:
            if "\n" in str(error):
                raise AssertionError(f"damaged file number {attempt}: {error}") from error
            refused += 1
        except BaseException as error:
            error.add_note(f"damaged file number {attempt}")
            raise
    return refused


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, remove or repeat; mostly near the beginning, where headers are."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        near = rng.choice((64, 512, len(changed)))
        place = rng.randrange(max(1, min(near, len(changed))))
        if rng.random() < 0.2:
            place = max(0, len(changed) - 1 - place)
        length = rng.choice((1, 1, 4, 8))
        kind = rng.choice(("flip", "set", "random", "cut", "remove", "repeat"))
        if kind == "flip":
            changed[place : place + 1] = bytes([changed[place] ^ 1 << rng.randrange(8)])
        elif kind == "set":
            changed[place : place + length] = rng.choice((b"\0", b"\xff", b"\x7f")) * length
        elif kind == "random":
            changed[place : place + length] = rng.randbytes(length)
        elif kind == "cut":
            del changed[max(1, place) :]
        elif kind == "remove":
            del changed[place : place + length]
        else:
            changed[place:place] = changed[place : place + 64]
        if not changed:
            break
    return bytes(changed)
