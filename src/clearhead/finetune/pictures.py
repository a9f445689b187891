"""Pictures of how well a classifier does: what it takes for what, and how far to believe it."""

from pathlib import Path
from typing import Any

import numpy as np

from clearhead.errors import ClearheadError
from clearhead.files import atomic_write
from clearhead.finetune.classified import Calibration, Metrics
from clearhead.lens.plots import check_picture

_SHARES, _BAR, _LINE = "cividis", "#0072b2", "#555555"
_MOST_CELLS = 12
_DARK = 0.5


def save_metrics(path: Path, metrics: Metrics, title: str) -> None:
    """Draw the confusion matrix and the reliability diagram side by side.

    Args:
        path: A .png or .svg file.
        metrics: What was measured.
        title: What stands above.

    Raises:
        ClearheadError: It is neither .png nor .svg, or cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind = check_picture(path).suffix.lower().removeprefix(".")
    size = max(4.6, 0.5 * len(metrics.classes))
    figure = Figure(figsize=(size + 6.2, size), layout="constrained")
    FigureCanvasAgg(figure)
    low, high = metrics.interval
    figure.suptitle(f"{title}: {metrics.accuracy:.1%} right ({low:.1%} to {high:.1%})")
    left, right = figure.subplots(1, 2)
    _draw_confusion(left, metrics)
    _draw_reliability(right, metrics.calibration, metrics.n)
    try:
        with atomic_write(path) as file:
            figure.savefig(file, format=kind, dpi=120)
    except OSError as error:
        raise ClearheadError(f"cannot write {path}: {error.strerror}") from error


def _draw_confusion(axes: Any, metrics: Metrics) -> None:
    """Draw how many texts of each label are given each label, coloured by their share of a row."""
    counts = np.array(metrics.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [one.label for one in metrics.classes]
    image = axes.imshow(shares, cmap=_SHARES, vmin=0, vmax=1)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=0 if len(names) < 4 else 90)
    axes.set_yticks(places, names)
    axes.set_xlabel("label given")
    axes.set_ylabel("right label")
    axes.set_title(f"what is taken for what ({metrics.n:,} texts)")
    if len(names) <= _MOST_CELLS:
        for row in places:
            for column in places:
                colour = "white" if shares[row, column] < _DARK else "black"
                told = f"{counts[row, column]:,}\n{shares[row, column]:.1%}"
                axes.text(column, row, told, ha="center", va="center", color=colour)
    axes.figure.colorbar(image, ax=axes, label="share of the right label's texts", shrink=0.9)


def _draw_reliability(axes: Any, calibration: Calibration, n: int) -> None:
    """Draw how often the label is right by how sure the model is."""
    axes.plot([0, 1], [0, 1], "--", color=_LINE, linewidth=1, label="as often as it thinks")
    for one in calibration.bins:
        if one.accuracy is not None:
            middle, width = (one.low + one.high) / 2, 0.9 * (one.high - one.low)
            axes.bar(middle, one.accuracy, width=width, color=_BAR, alpha=0.75)
            axes.plot([one.confidence], [one.accuracy], "o", color="black", markersize=3)
            axes.annotate(f"{one.n:,}", (middle, one.accuracy), ha="center", va="bottom")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.08)
    axes.set_xlabel("probability of the label given (dot: its mean)")
    axes.set_ylabel("share that is right")
    axes.set_title(f"calibration error {calibration.error:.1%}; texts on each bar, {n:,} in all")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
