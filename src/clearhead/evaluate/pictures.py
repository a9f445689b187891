"""Figures as a picture."""

from collections.abc import Mapping
from pathlib import Path

from clearhead.errors import ClearheadError
from clearhead.evaluate.intervals import Figure
from clearhead.files import atomic_write


def save_figures(path: Path, figures: Mapping[str, Mapping[str, Figure]], title: str) -> None:
    """Draw each metric's figures with their intervals, a panel a metric.

    Args:
        path: A .png or .svg file.
        figures: By task and metric.
        title: What stands above.

    Raises:
        ClearheadError: It is neither .png nor .svg, or cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise ClearheadError(f"{path}: a picture's name ends in .png or .svg")
    metrics = list(dict.fromkeys(name for some in figures.values() for name in some))
    picture = Picture(figsize=(4.2 * len(metrics), 1.2 + 0.5 * len(figures)), layout="constrained")
    FigureCanvasAgg(picture)
    picture.suptitle(title)
    for axes, metric in zip(
        picture.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        for place, some in enumerate(figures.values()):
            if metric in some:
                one = some[metric]
                error = [[one.value - one.low], [one.high - one.value]]
                axes.errorbar(one.value, place, xerr=error, fmt="o", color="#0072b2", capsize=4)
        axes.set_yticks(range(len(figures)), list(figures))
        axes.set_ylim(len(figures) - 0.5, -0.5)
        axes.set_xlabel(f"{metric}, with its 95 % interval")
        axes.grid(alpha=0.3, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
    try:
        with atomic_write(path) as file:
            picture.savefig(file, format=kind, dpi=120)
    except OSError as error:
        raise ClearheadError(f"{path} cannot be written: {error.strerror}") from error
