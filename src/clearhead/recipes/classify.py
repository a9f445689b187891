"""Make a classifier of a language model, and use it."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clearhead.errors import ClearheadError
from clearhead.files import atomic_write
from clearhead.finetune import (
    Balance,
    Classification,
    Examples,
    LabelledText,
    Metrics,
    Predictions,
    Row,
    check_known,
    encode_text,
    label_model,
    label_of,
    labelled_text,
    measure,
    predict,
    read_examples,
    split_texts,
    text_of,
)
from clearhead.model import GPT
from clearhead.tokenizer import Tokenizer

TEXT, LABEL = "text", "label"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassifyOptions:
    """What there is to tell apart, and how it is divided."""

    text: str = TEXT
    """The column or field that holds the text; a number from 1 on in a table without a header."""
    label: str = LABEL
    """The column or field that holds the label; a number from 1 on in a table without a header."""
    balance: Balance = "none"
    """What to do where labels are of different frequency: nothing, count the texts of rare ones
    more, or draw each label equally often."""
    val_fraction: float = 0.1
    """The part of the texts that the run is watched by, with each label in its share."""
    test_fraction: float = 0.2
    """The part that is kept for a test at the end."""
    max_length: int | None = None
    """The most tokens of a text to learn from; longer ones keep their beginning. By default the
    model's context."""
    skip_bad: bool = False
    """Leave bad rows out, and tell how many."""

    def __post_init__(self) -> None:
        if self.text == self.label:
            raise ClearheadError(f"text and label are both {self.text!r}; name two columns")
        if self.balance not in ("none", "weights", "sample"):
            raise ClearheadError(f"balance is {self.balance!r}; it must be none, weights or sample")
        if not 0 < self.val_fraction < 1:
            raise ClearheadError(
                f"val_fraction is {self.val_fraction}; it must lie between 0 and 1"
            )
        if not 0 <= self.test_fraction < 1 - self.val_fraction:
            raise ClearheadError(
                f"test_fraction is {self.test_fraction}; with val_fraction {self.val_fraction} "
                f"it must lie between 0 and {1 - self.val_fraction:g}"
            )
        if self.max_length is not None and self.max_length < 1:
            raise ClearheadError(f"max_length is {self.max_length}; it must be at least 1")


def read_labelled(
    path: Path, tokenizer: Tokenizer, options: ClassifyOptions
) -> Examples[LabelledText]:
    """Read texts with labels.

    Args:
        path: A .tsv, .csv, .json or .jsonl file.
        tokenizer: The model's.
        options: Which columns, and what to do about a bad row.

    Raises:
        ClearheadError: The file has no such columns, a bad row, or no good one.
    """

    def parse(row: Row) -> LabelledText:
        return labelled_text(row, tokenizer, text=options.text, label=options.label)

    columns = (options.text, options.label)
    return read_examples(path, parse, columns=columns, skip_bad=options.skip_bad)


def build_classification(
    model: GPT,
    tokenizer: Tokenizer,
    texts: Sequence[LabelledText],
    options: ClassifyOptions,
    *,
    batch_size: int,
    seed: int,
) -> tuple[GPT, Classification]:
    """Return a model with a head for the labels of texts, and what it is to learn.

    Args:
        model: A language model, which gets a fresh head and is not to be used any longer; or a
            classifier, which keeps its own.
        tokenizer: The model's.
        texts: What `read_labelled` read.
        options: How the texts are divided, cut and balanced.
        batch_size: Texts in a batch.
        seed: Decides the division, the order, and the head's first weights.

    Raises:
        ClearheadError: The texts cannot be divided, the classifier lacks a label, or
            `max_length` is more than the context.
    """
    context_length = model.config.context_length
    if options.max_length is not None and options.max_length > context_length:
        raise ClearheadError(
            f"max_length is {options.max_length}, and the model's context {context_length} tokens"
        )
    parts = split_texts(
        texts, val_fraction=options.val_fraction, test_fraction=options.test_fraction, seed=seed
    )
    if not model.config.labels:
        model = label_model(model, parts.labels, seed)
    objective = Classification(
        parts,
        model.config.labels,
        tokenizer.end_of_text,
        batch_size=batch_size,
        max_length=options.max_length or context_length,
        balance=options.balance,
        seed=seed,
    )
    _log.info("%s", objective)
    return model, objective


def save_texts(path: Path, texts: Sequence[LabelledText]) -> None:
    """Write texts with labels as JSON lines, which `clearhead classify --data` reads."""
    with atomic_write(path) as file:
        for one in texts:
            line = json.dumps({TEXT: one.text, LABEL: one.label}, ensure_ascii=False)
            file.write(f"{line}\n".encode())


def read_texts(
    path: Path,
    tokenizer: Tokenizer,
    *,
    text: str = TEXT,
    label: str | None = None,
    skip_bad: bool = False,
) -> Examples[tuple[str, str | None]]:
    """Read texts to classify, and their right labels, if the file has any.

    Args:
        path: A .tsv, .csv, .json or .jsonl file.
        tokenizer: The model's.
        text: The column or field of the text.
        label: That of the label; by default `label`, where the first row has one.
        skip_bad: Leave bad rows out.

    Returns:
        Each text and its label; all have one, or none has.

    Raises:
        ClearheadError: The file has no such columns, a bad row, or no good one.
    """
    is_labelled = None if label is None else True

    def parse(row: Row) -> tuple[str, str | None]:
        nonlocal is_labelled
        if is_labelled is None:
            is_labelled = LABEL in row
        words = text_of(row, text)
        encode_text(tokenizer, words)
        return words, label_of(row, label or LABEL) if is_labelled else None

    columns = (text,) if label is None else (text, label)
    return read_examples(path, parse, columns=columns, skip_bad=skip_bad)


def classify(model: GPT, tokenizer: Tokenizer, texts: Sequence[str]) -> Predictions:
    """Say what texts are, and how sure that is.

    Args:
        model: A classifier.
        tokenizer: The one that it was trained with.
        texts: What to classify; one that is longer than the context is judged by its beginning.

    Raises:
        ClearheadError: The model is no classifier, or a text is empty, or holds what the tokenizer
            cannot encode.
    """
    ids = [encode_text(tokenizer, text) for text in texts]
    return predict(model, ids, tokenizer.end_of_text)


def evaluate_classifier(
    model: GPT, tokenizer: Tokenizer, texts: Sequence[str], labels: Sequence[str]
) -> Metrics:
    """Measure how well a classifier does.

    Args:
        model: A classifier.
        tokenizer: The one that it was trained with.
        texts: What to classify.
        labels: What each of them is.

    Raises:
        ClearheadError: As in `classify`; or there is no text, or a label unknown to the model,
            which is named.
    """
    if model.config.labels:
        check_known(labels, model.config.labels)
    return measure(classify(model, tokenizer, texts), labels)
