"""`clearhead classify`: what a text is, or how well a classifier does on many."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.parse import Flag, parse, text
from clearhead.errors import ClearheadError
from clearhead.finetune import Examples, Metrics, Predictions, measure, save_metrics
from clearhead.lens.plots import check_picture
from clearhead.recipes.classify import TEXT, read_texts
from clearhead.recipes.classify import classify as predict_texts
from clearhead.recipes.load import load
from clearhead.train import keep_freed_memory

_MOST_COLUMNS = 12


@dataclass(frozen=True)
class Arguments:
    """Tell what a text is, or what each text of a file is.

    If the file has the right labels, it is told how well the model does instead.
    """

    directory: Positional[Path]
    """A classifier's checkpoint, or the folder of its run: then its newest checkpoint."""
    text: str | None = None
    """A text."""
    data: Path | None = None
    """A .tsv, .csv, .json or .jsonl file of texts."""
    text_column: str = TEXT
    """Its column or field with the text; a number from 1 on in a table without a header."""
    label_column: str | None = None
    """Its column or field with the right label; by default 'label', if the first row has one."""
    skip_bad: Flag = False
    """Leave bad rows out, and tell which."""
    best: Flag = False
    """Take the run's best checkpoint, not its newest."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    plot: Path | None = None
    """Draw what is taken for what, and the calibration, into this .png or .svg file."""
    json: Flag = False
    """Print the result as one JSON object."""


def classify(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    show.one_of(("text", "data"), vars(parsed))
    if parsed.plot is not None:
        check_picture(parsed.plot)
    if parsed.text is None and parsed.data is None:
        raise ClearheadError("nothing to classify; give --text TEXT or --data FILE")
    keep_freed_memory()
    which: Literal["best", "newest"] = "best" if parsed.best else "newest"
    model, tokenizer = load(parsed.directory, which=which, device=parsed.device)
    if parsed.data is None:
        _refuse_plot(parsed)
        found = predict_texts(model, tokenizer, [text(parsed.text or "", "--text")])
        _show_text(found, parsed)
        return 0
    read = read_texts(
        parsed.data,
        tokenizer,
        text=parsed.text_column,
        label=parsed.label_column,
        skip_bad=parsed.skip_bad,
    )
    texts = [words for words, _ in read.rows]
    labels = [label for _, label in read.rows if label is not None]
    if not labels:
        _refuse_plot(parsed)
    found = predict_texts(model, tokenizer, texts)
    if labels:
        _show_metrics(measure(found, labels), found, read, parsed)
    else:
        _show_texts(texts, found, read, parsed)
    return 0


def _refuse_plot(parsed: Arguments) -> None:
    if parsed.plot is not None:
        raise ClearheadError(
            "--plot draws how well the model does, which only right labels tell; give --data with "
            "a --label-column"
        )


def _show_text(found: Predictions, parsed: Arguments) -> None:
    likely = _likely(found, 0)
    if parsed.json:
        show.as_json({**_told(found, 0), "probabilities": likely, "cut": bool(found.n_cut)})
        return
    show.line(show.result(), next(iter(likely)))
    show.table("", ("label", "probability"), [(name, f"{p:.2%}") for name, p in likely.items()])
    _tell_cut(found)


def _show_texts(
    texts: Sequence[str], found: Predictions, read: Examples[Any], parsed: Arguments
) -> None:
    rows = [{"text": words, **_told(found, at)} for at, words in enumerate(texts)]
    if parsed.json:
        show.as_json({"labels": found.labels, "texts": rows, **_about(found, read)})
        return
    for row in rows:
        words = " ".join(str(row["text"]).split())
        show.text(f"{row['label']}\t{row['probability']:.4f}\t{words}\n")
    _tell_cut(found)
    _tell_skipped(read)


def _show_metrics(
    metrics: Metrics, found: Predictions, read: Examples[Any], parsed: Arguments
) -> None:
    if parsed.plot is not None:
        save_metrics(parsed.plot, metrics, read.path.name)
    if parsed.json:
        picture = {"plot": None if parsed.plot is None else str(parsed.plot)}
        show.as_json({**asdict(metrics), **_about(found, read), **picture})
        return
    low, high = metrics.interval
    show.facts(
        {
            "texts": f"{metrics.n:,}",
            "accuracy": f"{metrics.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%})",
            "F1, mean of labels": f"{metrics.macro_f1:.4f}",
            "loss": f"{metrics.loss:.4f} nats a text",
            "calibration error": f"{metrics.calibration.error:.2%}",
            "picture": parsed.plot,
        }
    )
    show.table(
        "labels",
        ("label", "texts", "given", "precision", "recall", "F1"),
        [(c.label, c.n, c.n_predicted, c.precision, c.recall, c.f1) for c in metrics.classes],
    )
    names = [one.label for one in metrics.classes]
    if len(names) <= _MOST_COLUMNS:
        counts = zip(names, metrics.confusion, strict=True)
        columns = ("right label", *(f"given {name}" for name in names))
        show.table("what is taken for what", columns, [(name, *row) for name, row in counts])
    _tell_cut(found)
    _tell_skipped(read)


def _likely(found: Predictions, at: int) -> dict[str, float]:
    """Return each label's probability for a text, the likeliest first."""
    both = zip(found.labels, found.probabilities[at].tolist(), strict=True)
    return dict(sorted(both, key=lambda one: -one[1]))


def _told(found: Predictions, at: int) -> dict[str, Any]:
    best = int(found.best[at])
    return {"label": found.labels[best], "probability": float(found.probabilities[at, best])}


def _about(found: Predictions, read: Examples[Any]) -> dict[str, Any]:
    return {"cut": found.n_cut, "n_skipped": read.n_skipped, "skipped": read.skipped}


def _tell_cut(found: Predictions) -> None:
    if found.n_cut:
        said = f"{found.n_cut:,} longer than the context, judged by the beginning"
        show.line(show.progress(), said, "dim")


def _tell_skipped(read: Examples[Any]) -> None:
    console = show.progress()
    for one in read.skipped:
        show.line(console, f"skipped {one}", "yellow")
    if more := read.n_skipped - len(read.skipped):
        show.line(console, f"skipped {more:,} more", "yellow")
