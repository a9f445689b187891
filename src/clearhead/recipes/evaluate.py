"""A checkpoint's figures on benchmarks and texts, kept question by question."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clearhead import checkpoint
from clearhead.checkpoint.checksums import write_json
from clearhead.checkpoint.download import download
from clearhead.errors import ClearheadError, nearest
from clearhead.evaluate import (
    TASKS,
    Difference,
    Figure,
    Question,
    Score,
    Task,
    bootstrap,
    compare,
    encode_pair,
    find_task,
    perplexity,
    score_continuations,
    values,
)
from clearhead.files import sha256_file
from clearhead.finetune import Examples, Row, read_examples
from clearhead.model import GPT
from clearhead.recipes.classify import evaluate_classifier, read_texts
from clearhead.recipes.load import load
from clearhead.tokenizer import Tokenizer

PERPLEXITY, CLASSIFICATION = "perplexity", "classification"
TASK_NAMES = (PERPLEXITY, CLASSIFICATION, *TASKS)
_AT_ONCE = 128  # questions between two notes of how far it is
_LARGEST_TEXT = 2**28
Progress = Callable[[int, int], None]
FileProgress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class TaskResult:
    """What a model scored on a task."""

    task: str
    """The task's name."""
    protocol: str
    """How it was done, in words."""
    n: int
    """How many questions, or tokens."""
    figures: dict[str, Figure]
    """Each metric with its 95 % interval, by bootstrap over questions or windows."""
    published: list[dict[str, Any]]
    """What others published: `model`, `metric`, `value`."""
    data: dict[str, str]
    """The `path` and the `sha256` of the data."""
    checkpoint: dict[str, str]
    """The same of the checkpoint, by its weights."""
    seconds: float
    """How long it took, of this call."""


def evaluate_model(
    directory: Path,
    task: str,
    data: Path | None = None,
    *,
    limit: int | None = None,
    batch_tokens: int = 4096,
    stride: int | None = None,
    resume: bool = False,
    out: Path | None = None,
    device: str = "auto",
    on_done: Progress | None = None,
) -> TaskResult:
    """Evaluate a checkpoint on a task; what was found lies in `OUT/TASK.json` afterwards.

    Args:
        directory: A checkpoint, or a run's folder.
        task: perplexity, classification, or a benchmark's name.
        data: The file of questions, the text, or the labelled texts; of a benchmark by default the
            one in the cache.
        limit: The most questions, or tokens of text.
        batch_tokens: The most tokens of a batch.
        stride: For perplexity, by how much the window moves.
        resume: Go on where an interrupted evaluation stopped.
        out: Where to keep what was found; `evaluations` in the directory by default.
        device: Where to compute.
        on_done: Called with the questions (or tokens) done so far, and in all.

    Raises:
        ClearheadError: There is no such task or data, a row is bad, or an evaluation that is to go
            on was of another model or other data.
    """
    if task not in TASK_NAMES:
        raise ClearheadError(f"there is no task {task!r}; {nearest(task, list(TASK_NAMES))}")
    if limit is not None and limit < 1:
        raise ClearheadError(f"limit is {limit}; it must be at least 1")
    if batch_tokens < 1:
        raise ClearheadError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    place = data or task_data(task)
    folder = checkpoint.resolve(directory)
    out = out or directory / "evaluations"
    model, tokenizer = load(folder, device=device)
    if bool(model.config.labels) != (task == CLASSIFICATION):
        kind = "a classifier" if model.config.labels else "a language model"
        raise ClearheadError(f"{directory} is {kind}; {task} is not for it")
    identity = {"path": str(folder), "sha256": _weights_sha256(folder)}
    began = time.perf_counter()
    if task == PERPLEXITY:
        found = _perplexity(model, tokenizer, place, limit, batch_tokens, stride, on_done)
    elif task == CLASSIFICATION:
        found = _classification(model, tokenizer, place, limit)
    else:
        found = _benchmark(
            model,
            tokenizer,
            TASKS[task],
            place,
            _Answers(out / f"{task}.answers.jsonl", task, identity["sha256"], resume),
            limit,
            batch_tokens,
            on_done,
        )
    result = TaskResult(**found, checkpoint=identity, seconds=time.perf_counter() - began)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{task}.json", asdict(result))
    except OSError as error:
        raise ClearheadError(f"{out} cannot be written: {error.strerror}; name --out") from error
    return result


def compare_models(
    first: Path, second: Path, task: str, data: Path | None = None, **options: Any
) -> tuple[Difference, TaskResult, TaskResult]:
    """Compare two checkpoints on the same questions, by the task's first metric.

    Args:
        first: A checkpoint, or a run's folder.
        second: Another.
        task: A benchmark's name.
        data: As in `evaluate_model`.
        options: As in `evaluate_model`.

    Raises:
        ClearheadError: As in `evaluate_model`; or the task has no questions.
    """
    chosen = find_task(task)
    results = [evaluate_model(one, task, data, **options) for one in (first, second)]
    out = options.get("out")
    tables = [
        _Answers(
            (out or one / "evaluations") / f"{task}.answers.jsonl",
            task,
            result.checkpoint["sha256"],
            resume=True,
        ).table(chosen, _questions(data or task_data(task), chosen, options.get("limit")))
        for one, result in zip((first, second), results, strict=True)
    ]
    return compare(*tables), results[0], results[1]


def task_data(task: str, *, progress: FileProgress = lambda *_: None) -> Path:
    """Return the data of a task from the cache; it is fetched into it where that can be.

    The cache is `clearhead/eval` in the folder for caches (XDG_CACHE_HOME, or ~/.cache).

    Args:
        task: The task's name.
        progress: Is told how far a transfer is.

    Raises:
        ClearheadError: It is not there and cannot be fetched; the message says where to get it,
            and where to put it.
    """
    if task not in TASKS:
        raise ClearheadError(f"{task} is measured on data of your own; name it by --data FILE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clearhead" / "eval"
    found = sorted([*cache.glob(f"{task}*.jsonl"), *(cache / task).glob("*.jsonl")])
    if found:
        return found[0]
    where = TASKS[task].where
    if not where.endswith(".jsonl"):
        raise ClearheadError(
            f"no data for {task}: fetch it from {where} and put it at {cache / task}.jsonl, or "
            "name it by --data"
        )
    got = download(task, cache / task, source=where, progress=progress)
    return got.folder / next(iter(got.files))


def in_folder(folder: Path) -> dict[str, Path]:
    """Return the benchmarks whose data a folder holds: files whose names begin with a task's."""
    found = {}
    for task in TASKS:
        files = sorted(folder.glob(f"{task}*.jsonl"))
        if files:
            found[task] = files[0]
    return found


def _weights_sha256(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return "+".join(sha256_file(file) for file in files)


def _questions(path: Path, task: Task, limit: int | None) -> Examples[Question]:
    def parse(row: Row) -> Question:
        question = task.question(row)
        if any(not text.strip() for _, text in question.pairs):
            raise ClearheadError("one of its choices is empty")
        return question

    found = read_examples(path, parse, skip_bad=None)
    return found if limit is None else replace(found, rows=found.rows[:limit])


class _Answers:
    """What a model said to each question, a line each, so that an evaluation can go on."""

    def __init__(self, path: Path, task: str, model: str, resume: bool) -> None:
        self.path, self._task, self._model = path, task, model
        self.found: dict[int, tuple[Score, ...]] = {}
        self._resume = resume

    def begin(self, data: str) -> None:
        """Read what is there, if it is to go on; begin anew otherwise."""
        identity = {"task": self._task, "data": data, "model": self._model}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
            if self._resume and lines:
                self._read(lines[:-1], identity)
                return
            self.path.write_text(json.dumps(identity) + "\n")
        except OSError as error:
            raise ClearheadError(
                f"{self.path} cannot be written: {error.strerror}; name another --out"
            ) from error

    def _read(self, lines: Sequence[bytes], identity: dict[str, str]) -> None:
        """Take the whole lines; what a crash cut short is dropped."""
        try:
            first, *rest = [json.loads(line) for line in lines]
            if first != identity:
                raise ClearheadError(
                    f"{self.path} is of another model or other data; leave --resume out to begin "
                    "anew, or name another --out"
                )
            for row in rest:
                self.found[int(row["question"])] = tuple(Score(*one) for one in row["scores"])
        except (ValueError, KeyError, TypeError) as error:
            raise ClearheadError(f"{self.path} is damaged; leave --resume out") from error
        with self.path.open("wb") as file:
            file.write(b"".join(line + b"\n" for line in lines))

    def add(self, scores: dict[int, tuple[Score, ...]]) -> None:
        """Write some answers down."""
        with self.path.open("a", encoding="utf-8") as file:
            for number, some in scores.items():
                kept = [[one.log_probability, one.n_tokens, one.greedy] for one in some]
                file.write(json.dumps({"question": number, "scores": kept}) + "\n")
        self.found |= scores

    def table(self, task: Task, questions: Examples[Question]) -> Float[np.ndarray, " n"]:
        """Return what each question adds to the task's first metric."""
        self.begin(questions.sha256)
        rows = [
            values(task.metrics[0], question, self.found[number])
            for number, question in enumerate(questions.rows)
        ]
        return np.concatenate(rows)


def _benchmark(
    model: GPT,
    tokenizer: Tokenizer,
    task: Task,
    path: Path,
    answers: _Answers,
    limit: int | None,
    batch_tokens: int,
    on_done: Progress | None,
) -> dict[str, Any]:
    questions = _questions(path, task, limit)
    answers.begin(questions.sha256)
    missing = [at for at in range(len(questions.rows)) if at not in answers.found]
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        pairs = [
            (at, encode_pair(tokenizer, *pair)) for at in some for pair in questions.rows[at].pairs
        ]
        scores = iter(
            score_continuations(model, [one for _, one in pairs], batch_tokens=batch_tokens)
        )
        answers.add({at: tuple(next(scores) for _ in questions.rows[at].pairs) for at in some})
        if on_done is not None:
            on_done(len(questions.rows) - len(missing) + start + len(some), len(questions.rows))
    figures = {}
    for metric in task.metrics:
        rows = [
            values(metric, question, answers.found[number])
            for number, question in enumerate(questions.rows)
        ]
        statistic = (lambda means: np.exp(means[:, 0])) if metric == PERPLEXITY else None
        figures[metric] = bootstrap(np.stack(rows), statistic)
    return {
        "task": task.name,
        "protocol": task.protocol,
        "n": len(questions.rows),
        "figures": figures,
        "published": [
            {"model": model, "metric": metric, "value": value}
            for model, metric, value in task.published
        ],
        "data": {"path": str(path), "sha256": questions.sha256},
    }


def _perplexity(
    model: GPT,
    tokenizer: Tokenizer,
    path: Path,
    limit: int | None,
    batch_tokens: int,
    stride: int | None,
    on_done: Progress | None,
) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise ClearheadError(f"{path} is larger than {_LARGEST_TEXT >> 20} MiB; cut it")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ClearheadError(f"{path} is not UTF-8, at byte {error.start}") from error
    ids = tokenizer.encode(text).astype(np.int64)
    if limit is not None and len(ids) > limit + 1:
        ids = ids[: limit + 1]
        text = tokenizer.decode(ids)
    found = perplexity(
        model,
        ids,
        n_words=len(text.split()),
        n_bytes=len(text.encode()),
        stride=stride,
        batch_tokens=batch_tokens,
        on_done=on_done,
    )
    names = ("per_token", "per_word", "bits_per_byte", "nats_per_token")
    return {
        "task": PERPLEXITY,
        "protocol": (
            f"A window of {model.config.context_length} tokens moves by {found.stride}; each token "
            "but the first is predicted once, by the first window that holds it."
        ),
        "n": found.n_tokens,
        "figures": {name: getattr(found, name) for name in names},
        "published": [],
        "data": {"path": str(path), "sha256": sha256_file(path)},
    }


def _classification(
    model: GPT, tokenizer: Tokenizer, path: Path, limit: int | None
) -> dict[str, Any]:
    found = read_texts(path, tokenizer)
    rows = found.rows[:limit]
    labels = [label for _, label in rows if label is not None]
    if len(labels) < len(rows):
        raise ClearheadError(f"{path} has no column 'label', so that nothing says what is right")
    metrics = evaluate_classifier(model, tokenizer, [text for text, _ in rows], labels)
    return {
        "task": CLASSIFICATION,
        "protocol": "The likeliest label of each text; clearhead classify tells more.",
        "n": len(rows),
        "figures": {"accuracy": Figure(metrics.accuracy, *metrics.interval)},
        "published": [],
        "data": {"path": str(path), "sha256": found.sha256},
    }
