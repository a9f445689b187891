"""Texts with labels: a table's rows, and their division into parts."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from clearhead.errors import ClearheadError
from clearhead.finetune.table import Row, text_of
from clearhead.tokenizer import END_OF_TEXT, Tokenizer

_SHOWN = 10
_LEAST_A_LABEL = 2


@dataclass(frozen=True, eq=False)
class LabelledText:
    """A text, and what it is."""

    text: str
    """The text."""
    label: str
    """Its label."""
    ids: Int64[np.ndarray, " N"]
    """Its tokens, at least one."""


@dataclass(frozen=True)
class Parts:
    """Labelled texts, divided."""

    train: tuple[LabelledText, ...]
    """Those to learn from."""
    validation: tuple[LabelledText, ...]
    """Those that the run is watched by."""
    test: tuple[LabelledText, ...]
    """Those that nothing is decided by."""
    n_repeated: int
    """How many texts stand in the data once more."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that are learnt, in the alphabet's order."""
        return tuple(sorted({one.label for one in self.train}))


def labelled_text(row: Row, tokenizer: Tokenizer, *, text: str, label: str) -> LabelledText:
    """Return a row's text, in tokens too, and its label.

    Args:
        row: Of a file of examples.
        tokenizer: The model's.
        text: The column or field of the text.
        label: That of the label: a text, a whole number, true or false.

    Raises:
        ClearheadError: One of them is missing or empty, or the text cannot be encoded.
    """
    words = text_of(row, text)
    return LabelledText(words, label_of(row, label), encode_text(tokenizer, words))


def label_of(row: Row, name: str) -> str:
    """Return a row's label.

    Raises:
        ClearheadError: There is none, or it is neither a text nor a whole number, true or false.
    """
    value = row.get(name)
    plain = json.dumps(value) if isinstance(value, int) else value
    return text_of(row | {name: plain}, name).strip()


def encode_text(tokenizer: Tokenizer, text: str) -> Int64[np.ndarray, " N"]:
    """Return the tokens of a text that is to be told apart from others.

    Raises:
        ClearheadError: It is empty, holds the end-of-text token, which pads, or has a character
            that the tokenizer lacks.
    """
    if END_OF_TEXT in text:
        raise ClearheadError(f"the text holds {END_OF_TEXT}, which ends a text; take it out")
    ids = tokenizer.encode(text).astype(np.int64)
    if not len(ids):
        raise ClearheadError("the text is empty; give one of at least one token")
    return ids


def split_texts(
    texts: Sequence[LabelledText], *, val_fraction: float, test_fraction: float, seed: int
) -> Parts:
    """Divide texts so that each part has each label as often as all have it.

    Texts that differ in nothing but case and blanks come into the same part, so that nothing is
    tested that was learnt.

    Args:
        texts: What to divide.
        val_fraction: The share of the validation part.
        test_fraction: The share of the test part.
        seed: Decides which texts come where.

    Raises:
        ClearheadError: There are fewer than two labels, nearly as many labels as texts, no text to
            validate with, or a label that no text of the training part has.
    """
    _check_labels(texts)
    groups: dict[str, list[LabelledText]] = {}
    for one in texts:
        groups.setdefault(" ".join(one.text.split()).casefold(), []).append(one)
    strata: dict[str, list[list[LabelledText]]] = {}
    for group in groups.values():
        strata.setdefault(group[0].label, []).append(group)
    random = np.random.Generator(np.random.Philox(seed))
    parts: tuple[list[LabelledText], ...] = ([], [], [])
    for label in sorted(strata):
        order = random.permutation(len(strata[label]))
        some = _divided([strata[label][at] for at in order], val_fraction, test_fraction)
        for part, added in zip(parts, some, strict=True):
            part += added
    train, validation, test = parts
    if not validation:
        raise ClearheadError(
            f"{len(texts)} texts leave none to validate with; give more, or a larger val_fraction"
        )
    check_known((one.label for one in [*validation, *test]), {one.label for one in train})
    n_repeated = len(texts) - len(groups)
    return Parts(tuple(train), tuple(validation), tuple(test), n_repeated)


def check_known(labels: Iterable[str], known: Iterable[str]) -> None:
    """Refuse labels that the model was not taught.

    Raises:
        ClearheadError: There are such; they are named.
    """
    if unseen := sorted(set(labels) - set(known)):
        raise ClearheadError(
            f"labels unseen in training: {_listed(unseen)}; the model tells {_listed(known)} "
            "apart; take these rows out, or train with more of such texts"
        )


def _check_labels(texts: Sequence[LabelledText]) -> None:
    labels = {one.label for one in texts}
    if len(labels) < _LEAST_A_LABEL:
        raise ClearheadError(
            f"all {len(texts)} texts are labelled {_listed(labels)}; give two labels or more"
        )
    if len(labels) * _LEAST_A_LABEL > len(texts):
        raise ClearheadError(
            f"{len(texts)} texts have {len(labels)} different labels ({_listed(labels)}); give "
            "more texts for each, or name the column of the labels with --label"
        )


def _divided(
    groups: Sequence[list[LabelledText]], val_fraction: float, test_fraction: float
) -> tuple[list[LabelledText], list[LabelledText], list[LabelledText]]:
    """Divide one label's groups of equal texts; the first always goes to training."""
    n = sum(len(group) for group in groups)
    n_validation, n_test = round(val_fraction * n), round(test_fraction * n)
    train, validation, test = list(groups[0]), list[LabelledText](), list[LabelledText]()
    for group in groups[1:]:
        if len(test) + len(group) <= n_test:
            test += group
        elif len(validation) + len(group) <= n_validation:
            validation += group
        else:
            train += group
    return train, validation, test


def _listed(labels: Iterable[str]) -> str:
    names = sorted(labels)
    shown = ", ".join(name[:40] for name in names[:_SHOWN])
    return f"{shown}, …" if len(names) > _SHOWN else shown
