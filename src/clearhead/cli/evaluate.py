"""`clearhead eval` and `clearhead compare`: what models are worth, and how sure that is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.parse import Flag, parse
from clearhead.errors import ClearheadError
from clearhead.evaluate import TASKS
from clearhead.recipes.evaluate import (
    TaskResult,
    compare_models,
    evaluate_model,
    in_folder,
    task_data,
)
from clearhead.recipes.samples import read_prompts, side_by_side

_ALL, _GENERATION = "all", "generation"


@dataclass(frozen=True)
class Arguments:
    """Measure a model on a benchmark or a text; each figure comes with its 95 % interval."""

    directory: Positional[Path]
    """A checkpoint, or the folder of a run: then its newest checkpoint."""
    task: str
    """perplexity, classification, lambada, hellaswag, arc_easy, arc_challenge, piqa, winogrande,
    blimp; or all benchmarks whose data lies in the folder --data."""
    data: Path | None = None
    """The file of questions, the text for perplexity, the labelled texts for classification; of a
    benchmark by default what lies in the cache, or is fetched into it."""
    limit: int | None = None
    """The most questions, or tokens of text; all by default."""
    batch_tokens: int = 4096
    """The most tokens that go through the model at once."""
    stride: int | None = None
    """For perplexity, by how many tokens the window moves; half of the context by default."""
    resume: Flag = False
    """Go on where an interrupted evaluation stopped."""
    out: Path | None = None
    """Where to keep what was found; the folder evaluations in DIR by default."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    plot: Path | None = None
    """Draw the figures with their intervals into this .png or .svg file."""
    json: Flag = False
    """Print the result as one JSON object."""


@dataclass(frozen=True)
class CompareArguments:
    """Compare two models on the same questions, by a paired test; or read them side by side."""

    first: Positional[Path]
    """A checkpoint, or the folder of a run."""
    second: Positional[Path]
    """Another."""
    task: str
    """lambada, hellaswag, arc_easy, arc_challenge, piqa, winogrande or blimp; or generation, to
    read what both write."""
    data: Path | None = None
    """The file of questions, by default what lies in the cache; or of prompts, a line each."""
    limit: int | None = None
    """The most questions; all by default."""
    batch_tokens: int = 4096
    """The most tokens that go through a model at once."""
    resume: Flag = False
    """Go on where an interrupted comparison stopped."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    json: Flag = False
    """Print the result as one JSON object."""


def eval_(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    results = []
    for task, data in _chosen(parsed).items():
        with _bar(task) as on_done:
            results.append(
                evaluate_model(
                    parsed.directory,
                    task,
                    data,
                    limit=parsed.limit,
                    batch_tokens=parsed.batch_tokens,
                    stride=parsed.stride,
                    resume=parsed.resume,
                    out=parsed.out,
                    device=parsed.device,
                    on_done=on_done,
                )
            )
    if parsed.plot is not None:
        from clearhead.evaluate.pictures import save_figures

        save_figures(parsed.plot, {one.task: one.figures for one in results}, str(parsed.directory))
    if parsed.json:
        show.as_json({"results": [asdict(one) for one in results]})
    else:
        for one in results:
            _show(one)
    return 0


def compare(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(CompareArguments, arguments, prog)
    if parsed.task == _GENERATION:
        return _read(parsed)
    with _bar(parsed.task) as on_done:
        found, first, second = compare_models(
            parsed.first,
            parsed.second,
            parsed.task,
            parsed.data,
            limit=parsed.limit,
            batch_tokens=parsed.batch_tokens,
            resume=parsed.resume,
            device=parsed.device,
            on_done=on_done,
        )
    metric = next(iter(first.figures))
    if parsed.json:
        values = {"metric": metric, **asdict(found)}
        show.as_json({**values, "first": asdict(first), "second": asdict(second)})
        return 0
    sure = "sure" if found.p_value < 0.05 else "not sure"
    show.facts(
        {
            "first": f"{first.figures[metric]} {metric}",
            "second": f"{second.figures[metric]} {metric}",
            "difference": f"{found.difference}",
            "p": f"{found.p_value:.4f}: {sure} that they differ, on {found.n:,} questions",
        }
    )
    return 0


def _read(parsed: CompareArguments) -> int:
    """Show what both models write after the same prompts."""
    if parsed.data is None:
        raise ClearheadError("generation needs prompts; name a file of them by --data")
    both, prompts = [parsed.first, parsed.second], read_prompts(parsed.data)[: parsed.limit]
    found = side_by_side(both, prompts, device=parsed.device)
    if parsed.json:
        show.as_json({"models": both, "samples": [asdict(one) for one in found]})
        return 0
    for one in found:
        rows = [(str(name), text) for name, text in zip(both, one.texts, strict=True)]
        show.table(show.visible(one.prompt), ("model", "goes on"), rows)
    return 0


def _chosen(parsed: Arguments) -> dict[str, Path | None]:
    """Return the tasks to run, with the data of each where it is named."""
    if parsed.task != _ALL:
        return {parsed.task: parsed.data or _fetched(parsed.task)}
    if parsed.data is None or not parsed.data.is_dir():
        raise ClearheadError("--task all takes the data from a folder; name it by --data")
    found = in_folder(parsed.data)
    if not found:
        raise ClearheadError(
            f"{parsed.data} holds no file that is called after a task, such as hellaswag.jsonl"
        )
    left = [name for name in TASKS if name not in found]
    if left:
        show.line(show.progress(), f"no data there for {', '.join(left)}", "dim")
    return dict(found)


def _fetched(task: str) -> Path | None:
    """Return a benchmark's data from the cache, fetched with a bar if it is not there."""
    if task not in TASKS:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=show.progress(), transient=True) as progress:
        bar = progress.add_task(task, total=None)
        return task_data(
            task,
            progress=lambda name, done, total: progress.update(
                bar, description=name, completed=done, total=total
            ),
        )


@contextmanager
def _bar(task: str) -> Iterator[Any]:
    """Show how far an evaluation is, and how long it will still take."""
    columns = (TextColumn(task), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=show.progress(), transient=True) as progress:
        bar = progress.add_task(task, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _show(result: TaskResult) -> None:
    published = {one["metric"]: one for one in result.published}
    rows = []
    for name, figure in result.figures.items():
        known = published.get(name)
        beside = f"{known['value']:.4f} ({known['model']})" if known else ""
        interval = f"{figure.low:.4f} to {figure.high:.4f}"
        rows.append((name, figure.value, interval, beside))
    show.table(
        f"{result.task}, n = {result.n:,}", ("figure", "value", "95 % interval", "published"), rows
    )
    show.line(show.result(), result.protocol, "dim")
