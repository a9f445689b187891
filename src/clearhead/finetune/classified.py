"""What a classifier says of texts, and how well that agrees with what they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from clearhead.errors import ClearheadError
from clearhead.finetune.classify import Ids, label_logits
from clearhead.finetune.labelled import check_known
from clearhead.model import GPT

_RESAMPLES = 10_000
_BINS = 10
_TOKENS_AT_ONCE = 2**14


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model thinks of texts, in their order."""

    labels: tuple[str, ...]
    """What it tells apart."""
    log_probabilities: Float[np.ndarray, "N C"]
    """The logarithm of how likely it thinks each label, in nats."""
    n_cut: int
    """How many texts were longer than the context, and were judged by their beginning."""

    @property
    def probabilities(self) -> Float[np.ndarray, "N C"]:
        """How likely it thinks each label."""
        return np.exp(self.log_probabilities)

    @property
    def best(self) -> Int64[np.ndarray, " N"]:
        """The number of the likeliest label of each text."""
        return self.log_probabilities.argmax(-1)


@dataclass(frozen=True)
class ClassScores:
    """How well one label is told."""

    label: str
    """The label."""
    n: int
    """How many texts have it."""
    n_predicted: int
    """How many the model gives it."""
    precision: float
    """The share of those the model gives it that have it; 0 where it gives it to none."""
    recall: float
    """The share of those that have it that the model gives it; 0 where none has it."""
    f1: float
    """The harmonic mean of the two."""


@dataclass(frozen=True)
class CalibrationBin:
    """The texts whose likeliest label has a probability above `low`, up to `high`."""

    low: float
    """Where the bin begins."""
    high: float
    """Where it ends."""
    n: int
    """How many texts there are."""
    confidence: float | None
    """The mean of these probabilities; None where there is no text."""
    accuracy: float | None
    """How many of these labels are right, as a share."""


@dataclass(frozen=True)
class Calibration:
    """Whether the model is right as often as it thinks (Guo et al. 2017)."""

    error: float
    """Expected calibration error: the mean distance of confidence and accuracy over all texts."""
    bins: tuple[CalibrationBin, ...]
    """Ten bins of equal width."""


@dataclass(frozen=True)
class Metrics:
    """How well a model's labels agree with the right ones."""

    n: int
    """How many texts."""
    loss: float
    """Mean loss in nats a text."""
    accuracy: float
    """The share of labels that are right."""
    interval: tuple[float, float]
    """The accuracy's 95 % interval, by bootstrap over the texts."""
    macro_precision: float
    """The mean over the labels that a text has or is given."""
    macro_recall: float
    """The same mean."""
    macro_f1: float
    """The same mean."""
    classes: tuple[ClassScores, ...]
    """Each label of the model, in its order."""
    confusion: tuple[tuple[int, ...], ...]
    """How many texts of each label (the row) the model gives each label (the column)."""
    calibration: Calibration
    """Whether its probabilities can be believed."""


@torch.no_grad()
def predict(
    model: GPT, texts: Sequence[Ids], end_of_text: int, *, max_length: int | None = None
) -> Predictions:
    """Judge texts, like lengths together.

    Args:
        model: A model with labels, in evaluation mode.
        texts: Their tokens.
        end_of_text: The token that pads.
        max_length: The most tokens of a text; longer ones keep their beginning. By default the
            context.

    Raises:
        ClearheadError: The model has no labels.
    """
    if not model.config.labels:
        raise ClearheadError(
            "the model is a language model and has no labels; make a classifier of it with "
            "clearhead finetune classify"
        )
    limit = max_length or model.config.context_length
    n_cut = sum(len(ids) > limit for ids in texts)
    texts = [ids[:limit] for ids in texts]
    found = np.empty((len(texts), len(model.config.labels)))
    for batch in _batches(texts):
        logits = label_logits(model, [texts[at] for at in batch], end_of_text)
        found[batch] = logits.double().log_softmax(-1).cpu().numpy()
    return Predictions(model.config.labels, found, n_cut)


def measure(predictions: Predictions, labels: Sequence[str]) -> Metrics:
    """Compare predictions with the right labels.

    Args:
        predictions: What the model says.
        labels: The right label of each text.

    Raises:
        ClearheadError: There is no text, or a label is unknown to the model.
    """
    n = len(labels)
    if n != len(predictions.log_probabilities) or not n:
        raise ClearheadError(
            f"{len(predictions.log_probabilities)} texts have {n} labels; give at least one text, "
            "and each one label"
        )
    check_known(labels, predictions.labels)
    right = np.array([predictions.labels.index(label) for label in labels])
    best = predictions.best
    confusion = np.zeros((len(predictions.labels),) * 2, dtype=np.int64)
    np.add.at(confusion, (right, best), 1)
    classes = tuple(_scores(label, confusion, k) for k, label in enumerate(predictions.labels))
    seen = [one for one in classes if one.n or one.n_predicted]
    n_right = int((best == right).sum())
    return Metrics(
        n=n,
        loss=float(-predictions.log_probabilities[np.arange(n), right].mean()),
        accuracy=n_right / n,
        interval=bootstrap_interval(n_right, n),
        macro_precision=float(np.mean([one.precision for one in seen])),
        macro_recall=float(np.mean([one.recall for one in seen])),
        macro_f1=float(np.mean([one.f1 for one in seen])),
        classes=classes,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        calibration=calibrate(predictions.probabilities.max(-1), best == right),
    )


def bootstrap_interval(n_right: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, by the percentile bootstrap.

    To draw n of n texts with replacement and count the right ones is a binomial draw; 10,000 of
    these are made, always the same.
    """
    random = np.random.Generator(np.random.Philox(0))
    low, high = np.quantile(random.binomial(n, n_right / n, _RESAMPLES) / n, (0.025, 0.975))
    return float(low), float(high)


def calibrate(confidence: Float[np.ndarray, " N"], is_right: Bool[np.ndarray, " N"]) -> Calibration:
    """Compare how sure a model is with how often it is right, in ten bins of equal width.

    Args:
        confidence: The probability of each text's likeliest label.
        is_right: Whether that label is right.
    """
    number = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    bins, error = [], 0.0
    for k in range(_BINS):
        here = number == k
        n = int(here.sum())
        sure = float(confidence[here].mean()) if n else None
        accuracy = float(is_right[here].mean()) if n else None
        if sure is not None and accuracy is not None:
            error += n / len(confidence) * abs(accuracy - sure)
        bins.append(CalibrationBin(k / _BINS, (k + 1) / _BINS, n, sure, accuracy))
    return Calibration(error, tuple(bins))


def _scores(label: str, confusion: Int64[np.ndarray, "C C"], k: int) -> ClassScores:
    hits, n = int(confusion[k, k]), int(confusion[k].sum())
    n_predicted = int(confusion[:, k].sum())
    return ClassScores(
        label=label,
        n=n,
        n_predicted=n_predicted,
        precision=hits / max(1, n_predicted),
        recall=hits / max(1, n),
        f1=2 * hits / max(1, n + n_predicted),
    )


def _batches(texts: Sequence[Ids]) -> Iterator[list[int]]:
    """Yield the numbers of texts of like length, as many as fit into the tokens at once."""
    batch: list[int] = []
    for at in sorted(range(len(texts)), key=lambda at: len(texts[at])):
        if batch and (len(batch) + 1) * len(texts[at]) > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
