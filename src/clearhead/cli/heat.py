"""Heat maps in the terminal."""

from rich.color import Color
from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from clearhead.cli import show
from clearhead.lens.plots import Panel

_NEGATIVE, _MIDDLE, _POSITIVE = (33, 102, 172), (247, 247, 247), (178, 24, 43)
_LOW, _HIGH = (0, 34, 78), (254, 232, 56)
_WIDEST_LABEL = 14


def heat_map(panel: Panel) -> None:
    """Print a heat map on standard output, its legend and unit below; each cell says its number.

    What is too wide for the terminal is printed in several pieces.
    """
    console = show.result()
    low, high = panel.bounds()
    cells = [
        [_number(value, max(abs(low), abs(high))) for value in row] for row in panel.values.tolist()
    ]
    names = [_label(panel.column_labels, at) for at in range(panel.values.shape[1])]
    width = max(len(cell) for cell in [*names, *(cell for row in cells for cell in row)]) + 1
    rows = [_label(panel.row_labels, at) for at in range(len(cells))]
    left = max(len(name) for name in [*rows, panel.rows]) + 1
    across = max(1, (console.width - left) // width)
    across -= across % 8 if across > 8 and len(names) > across else 0
    parts: list[RenderableType] = [Text(f"\n{panel.title}", style="bold")]
    for start in range(0, len(names), across):
        table = Table(box=None, padding=0, show_edge=False, header_style="dim")
        table.add_column(Text(f"{panel.rows} "), style="dim", width=left, no_wrap=True)
        for name in names[start : start + across]:
            table.add_column(Text(name), width=width, justify="right", no_wrap=True)
        for row, values in enumerate(panel.values.tolist()):
            shown = zip(cells[row], values, strict=True)
            coloured = [_cell(text, value, panel, low, high) for text, value in shown]
            table.add_row(Text(rows[row]), *coloured[start : start + across])
        parts.append(table)
    parts.append(_legend(panel, low, high))
    console.print(Group(*parts))


def _label(labels: object, at: int) -> str:
    name = str(labels[at]) if labels else str(at)  # type: ignore[index]
    visible = show.visible(name).replace("\n", "\\n").replace("\t", "\\t")
    return visible if len(visible) <= _WIDEST_LABEL else visible[: _WIDEST_LABEL - 1] + "…"


def _number(value: float, largest: float) -> str:
    if value != value:
        return "·"
    places = 0 if largest >= 100 else 1 if largest >= 10 else 2
    return f"{value:.{places}f}" if largest >= 0.1 else f"{value:.0e}"


def _cell(text: str, value: float, panel: Panel, low: float, high: float) -> Text:
    if value != value:
        return Text(f"{text} ", style="dim")
    red, green, blue = _colour(value, panel.centred, low, high)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 128
    style = Style(color="white" if dark else "black", bgcolor=Color.from_rgb(red, green, blue).name)
    return Text(f"{text} ", style=style)


def _colour(value: float, centred: bool, low: float, high: float) -> tuple[int, int, int]:
    if centred:
        end = _POSITIVE if value > 0 else _NEGATIVE
        return _between(_MIDDLE, end, abs(value) / high)
    return _between(_LOW, _HIGH, (value - low) / (high - low))


def _between(
    start: tuple[int, int, int], end: tuple[int, int, int], share: float
) -> tuple[int, int, int]:
    share = min(1.0, max(0.0, share))
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(start, end, strict=True))
    return red, green, blue


def _legend(panel: Panel, low: float, high: float) -> Text:
    steps = 9
    legend = Text("  ")
    legend.append(f"{low:.3g} ", style="dim")
    for at in range(steps):
        red, green, blue = _colour(low + (high - low) * at / (steps - 1), panel.centred, low, high)
        legend.append("  ", style=Style(bgcolor=Color.from_rgb(red, green, blue).name))
    legend.append(f" {high:.3g}  {panel.unit}; columns: {panel.columns}", style="dim")
    return legend
