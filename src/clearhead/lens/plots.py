"""Pictures of what was measured: heat maps, and curves over a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg")
_PANELS_A_ROW = 3
_MOST_LABELS = 48
_DIVERGING, _SEQUENTIAL, _BLANK = "RdBu_r", "cividis", "#dddddd"


@dataclass(frozen=True, eq=False)
class Panel:
    """One heat map."""

    title: str
    """What it shows."""
    values: Float[Tensor, "R C"]
    """Its numbers; what is not a number is left blank."""
    unit: str
    """What its numbers are."""
    centred: bool = False
    """Whether 0 is their middle, so that the colours of both signs weigh the same."""
    rows: str = "layer"
    """What its rows are."""
    columns: str = "head"
    """What its columns are."""
    row_labels: Sequence[str] = ()
    """A name for each row; their numbers by default."""
    column_labels: Sequence[str] = ()
    """A name for each column."""

    def bounds(self) -> tuple[float, float]:
        """Return the numbers at the ends of the colours."""
        values = self.values[self.values.isfinite()].tolist() or [0.0]
        low, high = min(values), max(values)
        if self.centred:
            high = max(abs(low), abs(high)) or 1.0
            return -high, high
        low = min(low, 0.0)
        return low, high if high > low else low + 1.0


@dataclass(frozen=True)
class Curve:
    """How a number went over a run."""

    label: str
    """What the legend calls it."""
    steps: Sequence[int]
    """When it was measured."""
    values: Sequence[float]
    """What it was."""


def save_panels(path: Path, panels: Sequence[Panel], title: str, proof: str = "") -> None:
    """Draw heat maps side by side.

    Args:
        path: A .png or .svg file.
        panels: The heat maps.
        title: What stands above them.
        proof: The check of these numbers, which stands below them.

    Raises:
        ClearheadError: It is neither .png nor .svg, or cannot be written.
    """
    across = 2 if len(panels) == 4 else min(len(panels), _PANELS_A_ROW)
    down = -(-len(panels) // across)
    tall = max(2.6, *(0.6 + 0.27 * min(len(panel.values), _MOST_LABELS) for panel in panels))
    figure = _figure(5.2 * across, 0.8 + tall * down, title, proof)
    for axes, panel in zip(figure.subplots(down, across, squeeze=False).flat, panels, strict=False):
        _draw(axes, panel)
    for axes in figure.axes[len(panels) : down * across]:
        axes.remove()
    _save(figure, path)


def save_curves(path: Path, curves: Sequence[Curve], title: str, unit: str) -> None:
    """Draw numbers over the steps of a run.

    Args:
        path: A .png or .svg file.
        curves: What to draw.
        title: What stands above.
        unit: What the numbers are.

    Raises:
        ClearheadError: It is neither .png nor .svg, or cannot be written.
    """
    figure = _figure(8, 5, title, "")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(curve.steps, curve.values, "o-", markersize=3, label=curve.label)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def check_picture(path: Path) -> Path:
    """Return a picture's path, if it can be one.

    Raises:
        ClearheadError: It is neither .png nor .svg, or its folder does not exist.
    """
    if not path.parent.is_dir():
        raise ClearheadError(f"cannot write {path}: there is no folder {path.parent}")
    if path.suffix.lower() not in _FORMATS:
        raise ClearheadError(f"{path} is neither .png nor .svg; pictures are saved as one of them")
    return path


def _figure(width: float, height: float, title: str, proof: str) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    if proof:
        figure.supxlabel(proof, fontsize="small", color="#555555")
    return figure


def _draw(axes: Any, panel: Panel) -> None:
    from matplotlib import colormaps

    low, high = panel.bounds()
    colours = colormaps[_DIVERGING if panel.centred else _SEQUENTIAL].with_extremes(bad=_BLANK)
    values = panel.values.double().numpy()
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.set_title(panel.title)
    axes.set_xlabel(panel.columns)
    axes.set_ylabel(panel.rows)
    names = (panel.row_labels, panel.column_labels)
    for axis, labels, size in zip((axes.yaxis, axes.xaxis), names, values.shape, strict=True):
        step = -(-size // _MOST_LABELS)
        places = range(0, size, step)
        axis.set_ticks(places, [labels[at] if labels else str(at) for at in places])
    if any(len(label) > 2 for label in panel.column_labels):
        axes.tick_params(axis="x", rotation=90)
    axes.tick_params(labelsize="small")
    axes.figure.colorbar(image, ax=axes, label=panel.unit, shrink=0.9)


def _save(figure: "Figure", path: Path) -> None:
    kind = check_picture(path).suffix.lower().removeprefix(".")
    try:
        with atomic_write(path) as file:
            figure.savefig(file, format=kind, dpi=120)
    except OSError as error:
        raise ClearheadError(f"cannot write {path}: {error.strerror}") from error
