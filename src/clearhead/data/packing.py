"""Many short examples in few rows."""

from collections.abc import Sequence

from clearhead.errors import ClearheadError


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Lay examples into rows, the longest first, each where it leaves the least room.

    Args:
        lengths: How long each example is.
        capacity: How much fits into a row.

    Returns:
        The numbers of the examples in each row.

    Raises:
        ClearheadError: An example is longer than a row, or not longer than nothing.

    Source: best-fit decreasing, Johnson 1973.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows, by the room they have
    some = 0  # bit r is set where with_room[r] has rows
    for example in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        length = lengths[example]
        if not 0 < length <= capacity:
            raise ClearheadError(f"an example of {length} tokens does not fit a row of {capacity}")
        fitting = some >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                some &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(example)
        left = room - length
        with_room[left].append(row)
        some |= 1 << left
    return rows
