"""Draw the rooms on their floors, from the layers that import-linter holds."""

import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

SAYS = {
    "cli": "the command: parses, calls, shows",
    "recipes": "the public functions that wire rooms together",
    "evaluate": "likelihoods, benchmarks",
    "finetune": "a data set and a loss each, for that loop",
    "train": "one step, one loop",
    "checkpoint": "Hugging Face folders, whole or not at all",
    "data": "text to shards, shards to batches",
    "lens": "looks inside, and proves it",
    "engine": "sampling; speaks token ids only",
    "native": "the next tokens, in C++",
    "quantize": "swaps linear layers, from outside",
    "model": "the one decoder",
    "tokenizer": "text to ids and back",
    "config": "dataclasses from and to TOML",
    "files": "atomic writes, checksums",
    "errors": "one line for the person at the keyboard",
}
WIDTH, LEFT, ROW, HEIGHT, GAP = 760, 92, 62, 48, 14


def layers() -> list[list[str]]:
    """Return the rooms of each floor, from the top, as pyproject.toml has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(one for one in settings["contracts"] if one["type"] == "layers")
    return [
        [room.strip().removeprefix("clearhead.") for room in layer.split("|")]
        for layer in contract["layers"]
    ]


def draw() -> str:
    """Return the diagram as SVG, without a blank line, so that Markdown takes it whole."""
    floors = layers()
    height = ROW * len(floors) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="The rooms of clearhead on their floors">',
    ]
    for place, rooms in enumerate(floors):
        y = ROW * place + 6
        parts += _floor(place, len(floors), y)
        width = (WIDTH - LEFT - GAP * (len(rooms) - 1)) / len(rooms)
        for column, room in enumerate(rooms):
            parts += _room(room, LEFT + column * (width + GAP), y, width)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _floor(place: int, count: int, y: float) -> list[str]:
    label = f"floor {count - place}"
    middle = y + HEIGHT / 2 + 5
    parts = [f'<text class="floor" x="0" y="{middle:g}" font-size="14">{label}</text>']
    if place:
        line = y - (ROW - HEIGHT) / 2
        parts.append(
            f'<line class="line" x1="0" y1="{line:g}" x2="{WIDTH}" y2="{line:g}" '
            'stroke-dasharray="2 4"/>'
        )
    return parts


def _room(room: str, x: float, y: float, width: float) -> list[str]:
    middle = x + width / 2
    return [
        f'<rect class="room" x="{x:g}" y="{y:g}" width="{width:g}" height="{HEIGHT}" rx="8"/>',
        f'<text class="name" x="{middle:g}" y="{y + 20:g}" font-size="16" '
        f'text-anchor="middle">{room}</text>',
        f'<text class="says" x="{middle:g}" y="{y + 38:g}" font-size="13" '
        f'text-anchor="middle">{escape(SAYS[room])}</text>',
    ]
