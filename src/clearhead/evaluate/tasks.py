"""Benchmarks: what each asks, how it is scored, and what GPT-2 was published to reach."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from clearhead.errors import ClearheadError, nearest
from clearhead.evaluate.choices import Score

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """Continuations of texts, of which one is right."""

    pairs: tuple[tuple[str, str], ...]
    """Each a context and what follows it."""
    answer: int
    """The number of the right one."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many characters each choice has, its space in front left out, as lm-eval counts."""
        return tuple(len(text.removeprefix(" ")) for _, text in self.pairs)


@dataclass(frozen=True)
class Task:
    """A benchmark."""

    name: str
    """How it is asked for."""
    question: Callable[[Row], Question]
    """Makes a question of a row; raises ClearheadError with what is wrong with it."""
    metrics: tuple[str, ...]
    """accuracy, accuracy_norm, perplexity; the first is the one that models are compared by."""
    protocol: str
    """How it is done, in words."""
    where: str
    """Where the data is to be had: a file's address, or a page's."""
    published: tuple[tuple[str, str, float], ...] = ()
    """Model, metric and value of published figures."""


def values(
    metric: str, question: Question, scores: tuple[Score, ...]
) -> Float[np.ndarray, " columns"]:
    """Return what a question adds to a metric, whose means over questions `figure` is made of.

    Args:
        metric: accuracy: the right choice is the likeliest, or, where there is but one, it is
            greedily said; accuracy_norm: the likeliest a character; perplexity: of the choice.
        question: The question.
        scores: The scores of its choices.
    """
    found = np.array([score.log_probability for score in scores])
    if metric == "perplexity":
        return np.array([-found[question.answer]])
    if len(scores) == 1:
        return np.array([float(scores[0].greedy)])
    if metric == "accuracy_norm":
        found = found / np.maximum(1, np.array(question.lengths))
    return np.array([float(found.argmax() == question.answer)])


def find_task(name: str) -> Task:
    """Return a task by its name.

    Raises:
        ClearheadError: There is none.
    """
    if name not in TASKS:
        raise ClearheadError(f"there is no task {name!r}; {nearest(name, list(TASKS))}")
    return TASKS[name]


def _text(row: Row, *names: str) -> str:
    for name in names:
        if isinstance(row.get(name), str):
            return str(row[name])
    shown = ", ".join(repr(str(key)[:20]) for key in list(row)[:8])
    raise ClearheadError(f"it has no text under {' or '.join(map(repr, names))}, but {shown}")


def _texts(row: Row, *names: str) -> list[str]:
    for name in names:
        found = row.get(name)
        if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
            return found
    raise ClearheadError(f"it has no list of texts under {' or '.join(map(repr, names))}")


def _number(row: Row, count: int, *names: str, first: int = 0) -> int:
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) < 3:
            value = int(value)
        if type(value) is int:
            if first <= value < count + first:
                return value - first
            raise ClearheadError(f"{name!r} is {value}; there are {count} choices")
    raise ClearheadError(f"it has no number under {' or '.join(map(repr, names))}")


def _of_one_context(context: str, choices: list[str], answer: int) -> Question:
    return Question(tuple((context, f" {choice}") for choice in choices), answer)


def _hellaswag(row: Row) -> Question:
    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    begun = f"{_text(row, 'ctx_a')} {_text(row, 'ctx_b').capitalize()}"
    endings = [clean(one) for one in _texts(row, "endings")]
    context = clean(f"{_text(row, 'activity_label')}: {begun}")
    return _of_one_context(context, endings, _number(row, len(endings), "label"))


def _arc(row: Row) -> Question:
    if isinstance(row.get("choices"), dict):
        labels, choices = _texts(row["choices"], "label"), _texts(row["choices"], "text")
        key = _text(row, "answerKey")
        if key not in labels or len(labels) != len(choices):
            raise ClearheadError(f"answerKey is {key[:9]!r}, which is none of its labels")
        context, answer = f"Question: {_text(row, 'question')}", labels.index(key)
    else:
        choices = _texts(row, "choices")
        context, answer = _text(row, "query").rstrip(), _number(row, len(choices), "gold")
    return _of_one_context(f"{context}\nAnswer:", choices, answer)


def _piqa(row: Row) -> Question:
    if "sol1" in row:
        choices = [_text(row, "sol1"), _text(row, "sol2")]
        return _of_one_context(
            f"Question: {_text(row, 'goal')}\nAnswer:", choices, _number(row, 2, "label")
        )
    return _arc(row)


def _winogrande(row: Row) -> Question:
    if "sentence" in row:
        before, found, after = _text(row, "sentence").partition("_")
        if not found:
            raise ClearheadError("its sentence has no '_' for the options to stand in")
        contexts = [before + _text(row, name) for name in ("option1", "option2")]
        answer, rest = _number(row, 2, "answer", first=1), after.strip()
    else:
        contexts, rest = _texts(row, "context_options"), _text(row, "continuation")
        answer = _number(row, len(contexts), "gold")
    return Question(tuple((context, f" {rest}") for context in contexts), answer)


def _lambada(row: Row) -> Question:
    if "continuation" in row:
        context, word = _text(row, "context"), _text(row, "continuation")
    else:
        context, found, word = _text(row, "text").rstrip().rpartition(" ")
        if not found:
            raise ClearheadError("its text has one word; it needs one to be given, one to be said")
    return Question(((context, f" {word}"),), 0)


def _blimp(row: Row) -> Question:
    return Question((("", _text(row, "sentence_good")), ("", _text(row, "sentence_bad"))), 0)


_NORM = ("accuracy", "accuracy_norm")
_LIKELIEST = (
    "Zero-shot, by log-likelihood of each choice after the context; accuracy_norm divides it by "
    "the choice's characters. As lm-eval does."
)
TASKS = {
    task.name: task
    for task in (
        Task(
            "lambada",
            _lambada,
            ("accuracy", "perplexity"),
            "The last word of each passage (OpenAI's version of the text): right if each of its "
            "tokens is the likeliest; perplexity of the word. As lm-eval's lambada_openai.",
            "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
            (("GPT-2 124M", "accuracy", 0.3256), ("GPT-2 124M", "perplexity", 40.06)),
        ),
        Task(
            "hellaswag",
            _hellaswag,
            ("accuracy_norm", "accuracy"),
            _LIKELIEST,
            "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
            (("GPT-2 124M", "accuracy", 0.2892), ("GPT-2 124M", "accuracy_norm", 0.3114)),
        ),
        Task("arc_easy", _arc, _NORM, _LIKELIEST, "allenai.org/data/arc"),
        Task("arc_challenge", _arc, _NORM, _LIKELIEST, "allenai.org/data/arc"),
        Task("piqa", _piqa, _NORM, _LIKELIEST, "yonatanbisk.com/piqa"),
        Task(
            "winogrande",
            _winogrande,
            ("accuracy",),
            "The rest of the sentence is scored after each option (partial evaluation); the "
            "likelier one is the answer. As lm-eval does.",
            "winogrande.allenai.org",
        ),
        Task(
            "blimp",
            _blimp,
            ("accuracy",),
            "The grammatical sentence of each pair is to be the likelier, from its first token on.",
            "github.com/alexwarstadt/blimp, data/*.jsonl",
        ),
    )
}
