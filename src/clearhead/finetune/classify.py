"""Learning to tell texts apart: the label is said after the last token of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from clearhead.data import IGNORED, Rows
from clearhead.errors import ClearheadError
from clearhead.finetune.labelled import LabelledText, Parts, check_known
from clearhead.model import GPT
from clearhead.train import Evaluation, next_token_loss
from clearhead.train.step import precision

Balance = Literal["none", "weights", "sample"]
Ids = Int64[np.ndarray, " _"]
_POOL = 16  # batches whose texts are sorted together: like lengths, yet other company each epoch


def label_model(model: GPT, labels: Sequence[str], seed: int) -> GPT:
    """Return a trained language model with a fresh head for labels in place of its own.

    All else is the given model's, not a copy of it: that one is not to be used any longer.

    Args:
        model: The language model.
        labels: What the head is to tell apart.
        seed: Decides the head's first weights, N(0, 0.02) as GPT-2's.

    Raises:
        ClearheadError: There are fewer than two labels, or one twice.
    """
    config = replace(model.config, labels=tuple(labels), tied_head=False)
    with torch.device("meta"):
        labelled = GPT(config)
    for name, part in model.named_children():
        if name != "head":
            setattr(labelled, name, part)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(config.n_outputs, config.d_model).normal_(std=0.02, generator=generator)
    like = model.token_embedding.weight
    labelled.head.weight = torch.nn.Parameter(weight.to(like.device, like.dtype))
    return labelled.train(model.training)


def label_logits(model: GPT, texts: Sequence[Ids], end_of_text: int) -> Float[Tensor, "B C"]:
    """Return the logit of each label for each text, read after its last token.

    Args:
        model: A model with labels.
        texts: Tokens; none longer than the context.
        end_of_text: What pads the shorter ones on their right.
    """
    inputs, lengths = _padded(texts, end_of_text)
    hidden = model.hidden(inputs.to(model.device))  # [B, T, D]
    last = hidden[torch.arange(len(texts)), lengths - 1]  # [B, D]
    return model.head(last)


class Classification:
    """Say a text's label after its last token (an objective).

    Batches are of texts of like length: each epoch draws the texts anew, sorts them by length
    within pools of 16 batches, cuts the pools into batches, and shuffles these.

    Args:
        parts: What to train on, and what to evaluate on.
        labels: The model's, in its order.
        end_of_text: The token that pads.
        batch_size: The most texts in a batch; an epoch's batches are as equal in size as they can.
        max_length: The most tokens of a text; longer ones keep their beginning.
        balance: "none" learns from the texts as they are; "weights" counts each label's texts
            inversely to their number; "sample" draws each label equally often, so that an epoch
            has some texts several times and others not at all.
        seed: Decides the order.

    Raises:
        ClearheadError: A number is out of range, or the model lacks a label.
    """

    def __init__(
        self,
        parts: Parts,
        labels: Sequence[str],
        end_of_text: int,
        *,
        batch_size: int,
        max_length: int,
        balance: Balance = "none",
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or max_length < 1 or seed < 0:
            raise ClearheadError(
                f"batch_size {batch_size} and max_length {max_length} must be at least 1, "
                f"seed {seed} not negative"
            )
        check_known((one.label for one in [*parts.train, *parts.validation, *parts.test]), labels)
        self.parts, self.labels = parts, tuple(labels)
        self._end, self._balance, self._seed = end_of_text, balance, seed
        self._batch_size, self._max_length = batch_size, max_length
        self.n_cut = sum(len(one.ids) > max_length for one in [*parts.train, *parts.validation])
        """How many texts, of those to train and validate on, lose their end."""
        self._train, self._wanted = self._encoded(parts.train)
        self._held_out, self._expected = self._encoded(parts.validation)
        self._lengths = np.array([len(ids) for ids in self._train])
        counts = np.bincount(self._wanted, minlength=len(self.labels))
        self._weights = len(self._train) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        self._epoch, self._batches = 0, self._batches_of(0)
        self.steps_per_epoch = len(self._batches)
        """How many batches an epoch has."""
        places = sum(len(batch) * self._lengths[batch].max() for batch in self._batches)
        tokens = sum(int(self._lengths[batch].sum()) for batch in self._batches)
        self.padding = 1 - tokens / int(places)
        """The share of the first epoch's positions at which there is no token."""
        self.train_tokens = int(self._lengths.sum())
        self.held_out_tokens = sum(len(ids) for ids in self._held_out)
        self.evaluation_cost = self.held_out_tokens * self.steps_per_epoch / tokens

    def at(self, step: int) -> Rows:
        """Return the batch of a step; each epoch has an order of its own."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._batches_of(epoch)
        batch = self._batches[within]
        inputs, lengths = _padded([self._train[at] for at in batch], self._end)
        last = (torch.arange(len(batch)), lengths - 1)
        wanted = self._wanted[batch]
        targets = torch.full_like(inputs, IGNORED)
        targets[last] = torch.from_numpy(wanted)
        if self._balance != "weights":
            return Rows(inputs, targets)
        weights = torch.zeros(inputs.shape)
        weights[last] = torch.from_numpy(self._weights[wanted]).float()
        return Rows(inputs, targets, weights=weights)

    def loss(self, model: GPT, rows: Rows) -> Tensor:
        """Return the summed loss on the labels."""
        return next_token_loss(model, rows)

    @torch.no_grad()
    def evaluate(self, model: GPT, dtype: torch.dtype) -> Evaluation:
        """Measure the loss, without weights, and the accuracy on all texts held out."""
        was_training = model.training
        model.eval()
        total, n_right, n = 0.0, 0, len(self._held_out)
        order = np.argsort([len(ids) for ids in self._held_out], kind="stable")
        for start in range(0, n, self._batch_size):
            batch = order[start : start + self._batch_size]
            with precision(model.device, dtype):
                logits = label_logits(model, [self._held_out[at] for at in batch], self._end)
            logits, wanted = logits.float().cpu(), torch.from_numpy(self._expected[batch])
            total += F.cross_entropy(logits, wanted, reduction="sum").item()
            n_right += int((logits.argmax(-1) == wanted).sum())
        model.train(was_training)
        return Evaluation(total / n, n, accuracy=n_right / n, unit="nats a text")

    def __str__(self) -> str:
        """Tell what there is to learn from."""
        counts = Counter(one.label for one in self.parts.train)
        each = ", ".join(f"{counts[label]:,} {label}" for label in self.labels[:10])
        told = (
            f"{len(self._train):,} texts to train on ({each}), {len(self._held_out):,} to validate "
            f"with, {len(self.parts.test):,} to test with; {self.padding:.1%} of the positions "
            "are padding"
        )
        if self.parts.n_repeated:
            told += f"; {self.parts.n_repeated:,} texts are repeated"
        return told + (f"; {self.n_cut:,} are cut to {self._max_length}" if self.n_cut else "")

    def _encoded(self, texts: Sequence[LabelledText]) -> tuple[list[Ids], Ids]:
        number = {label: at for at, label in enumerate(self.labels)}
        ids = [one.ids[: self._max_length] for one in texts]
        return ids, np.array([number[one.label] for one in texts], dtype=np.int64)

    def _batches_of(self, epoch: int) -> list[Ids]:
        """Return the numbers of the texts of each of an epoch's batches."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
        drawn, size = self._drawn(random), self._batch_size
        batches: list[Ids] = []
        for pool in np.array_split(drawn, max(1, len(drawn) // (size * _POOL))):
            by_length = pool[np.argsort(self._lengths[pool], kind="stable")]
            batches += np.array_split(by_length, -(-len(pool) // size))
        return [batches[at] for at in random.permutation(len(batches))]

    def _drawn(self, random: np.random.Generator) -> Ids:
        """Return the texts of an epoch: each once, or each label equally often."""
        if self._balance != "sample":
            return random.permutation(len(self._train))
        kinds = [np.flatnonzero(self._wanted == label) for label in range(len(self.labels))]
        kinds = [kind for kind in kinds if len(kind)]
        quota = -(-len(self._train) // len(kinds))
        drawn = [_repeated(random, kind, quota) for kind in kinds]
        return random.permutation(np.concatenate(drawn))


def _repeated(random: np.random.Generator, numbers: Ids, n: int) -> Ids:
    """Return n of the numbers, none of them twice more often than another."""
    rounds = [random.permutation(numbers) for _ in range(-(-n // len(numbers)))]
    return np.concatenate(rounds)[:n]


def _padded(texts: Sequence[Ids], end_of_text: int) -> tuple[Tensor, Tensor]:
    """Return texts as inputs [B, T], padded on the right, and their lengths [B]."""
    lengths = torch.tensor([len(ids) for ids in texts])
    inputs = torch.full((len(texts), int(lengths.max())), end_of_text)  # [B, T]
    for row, ids in enumerate(texts):
        inputs[row, : len(ids)] = torch.from_numpy(ids)
    return inputs, lengths
