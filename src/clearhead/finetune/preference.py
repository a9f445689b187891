"""Learning from preferences: of two answers to one question, the better one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.data import IGNORED, Rows
from clearhead.errors import ClearheadError
from clearhead.finetune.instruct import Example, encode_conversation
from clearhead.finetune.table import Row, text_of
from clearhead.model import GPT
from clearhead.model.linear import linear
from clearhead.tokenizer import END_OF_TEXT, Message, Tokenizer
from clearhead.train import Evaluation
from clearhead.train.step import precision

Kind = Literal["dpo", "ipo", "simpo"]


@dataclass(frozen=True)
class PreferenceLoss:
    """How preferences become a loss."""

    kind: Kind = "dpo"
    """dpo: Rafailov et al. 2023; ipo: Azar et al. 2023; simpo, which needs no reference: Meng et
    al. 2024."""
    beta: float = 0.1
    """How closely to stay with the model that was started from (dpo, ipo); how steep (simpo)."""
    margin: float = 0.5
    """By how much, in nats a token times beta, simpo wants the better answer ahead."""

    def __post_init__(self) -> None:
        if self.kind not in ("dpo", "ipo", "simpo"):
            raise ClearheadError(f"loss.kind is {self.kind!r}; it must be dpo, ipo or simpo")
        if not 0 < self.beta < float("inf"):
            raise ClearheadError(f"loss.beta is {self.beta}; it must be more than 0")
        if not 0 <= self.margin < float("inf"):
            raise ClearheadError(f"loss.margin is {self.margin}; it must be 0 or more")

    @property
    def needs_reference(self) -> bool:
        """Whether answers are judged by how far their probability has moved."""
        return self.kind != "simpo"

    def __call__(
        self,
        ahead: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Return each pair's loss, in nats.

        Args:
            ahead: How much further the better answer's log-probability lies ahead than it did in
                the reference; for simpo, how far it lies ahead a token.
        """
        if self.kind == "ipo":
            return (ahead - 1 / (2 * self.beta)).square()
        if self.kind == "simpo":
            return -F.logsigmoid(self.beta * ahead - self.margin)
        return -F.logsigmoid(self.beta * ahead)


@dataclass(frozen=True)
class Pairs(Rows):
    """Rows of two answers each, the better one first; `inputs` and `targets` are [B, 2, T]."""

    reference: Float[Tensor, "B 2"] | None = None
    """The log-probabilities of the answers in the model that was started from."""

    def total(self) -> float:
        """Return the number of pairs, over which the loss is averaged."""
        return float(len(self))


def pair_of(row: Row) -> tuple[list[Message], list[Message]]:
    """Return a row's conversation with the better answer, and with the worse.

    Args:
        row: `chosen` and `rejected` as answers to `prompt`, or to `instruction` with `input`.

    Raises:
        ClearheadError: A part is missing, both answers are the same, or a text holds the
            end-of-text token.
    """
    if "prompt" in row:
        asked = text_of(row, "prompt")
    else:
        asked = text_of(row, "instruction").strip()
        if given := text_of(row, "input", default="").strip():
            asked = f"{asked}\n\n{given}"
    answers = [text_of(row, "chosen"), text_of(row, "rejected")]
    if answers[0].strip() == answers[1].strip():
        raise ClearheadError("'chosen' and 'rejected' are the same")
    if any(END_OF_TEXT in text for text in (asked, *answers)):
        raise ClearheadError(f"it holds {END_OF_TEXT}, which ends a text; take it out")
    question: Message = {"role": "user", "content": asked}
    better, worse = ({"role": "assistant", "content": answer} for answer in answers)
    return [question, better], [question, worse]


def encode_pair(
    tokenizer: Tokenizer, template: str, pair: tuple[list[Message], list[Message]]
) -> tuple[Example, Example]:
    """Return a pair of conversations in tokens; see `encode_conversation`."""
    better, worse = (encode_conversation(tokenizer, template, one) for one in pair)
    return better, worse


def answer_log_probabilities(
    model: GPT, inputs: Int[Tensor, "N T"], targets: Int[Tensor, "N T"]
) -> Float[Tensor, " N"]:
    """Return each row's log-probability of its targets, in nats, without all positions' logits."""
    hidden = model.hidden(inputs)  # [N, T, D]
    learnt = targets != IGNORED
    logits = linear(hidden[learnt], model.head.weight)  # [positions, V]
    precise = torch.promote_types(logits.dtype, torch.float32)
    found = torch.log_softmax(logits, dim=-1, dtype=precise).gather(1, targets[learnt][:, None])[
        :, 0
    ]
    row = learnt.nonzero()[:, 0]
    return found.new_zeros(len(inputs)).index_add(0, row, found)


class Preferences:
    """Prefer the better of two answers (an objective).

    Args:
        train: What to train on.
        held_out: What to evaluate on.
        tokenizer: Whose tokens they are.
        loss: How preferences become a loss.
        batch_size: Pairs in a batch.
        context_length: The model's; pairs of which an answer is cut off there are left out.
        seed: Decides the order.

    Raises:
        ClearheadError: No pair fits the context.
    """

    def __init__(
        self,
        train: Sequence[tuple[Example, Example]],
        held_out: Sequence[tuple[Example, Example]],
        tokenizer: Tokenizer,
        *,
        loss: PreferenceLoss,
        batch_size: int,
        context_length: int,
        seed: int,
    ) -> None:
        def fits(pair: tuple[Example, Example]) -> bool:
            return max(one.length for one in pair) <= context_length

        self._end, self._seed, self._loss, self._batch_size = (
            tokenizer.end_of_text,
            seed,
            loss,
            batch_size,
        )
        self._train = [pair for pair in train if fits(pair)]
        self._held_out = [pair for pair in held_out if fits(pair)]
        self.n_left_out = len(train) + len(held_out) - len(self._train) - len(self._held_out)
        if not self._train or not self._held_out:
            raise ClearheadError(
                f"no pair fits the context of {context_length} tokens; give shorter ones"
            )
        self.train_tokens = sum(one.length for pair in self._train for one in pair)
        self.held_out_tokens = sum(one.length for pair in self._held_out for one in pair)
        self.evaluation_cost = self.held_out_tokens * self.steps_per_epoch / self.train_tokens
        self._references: tuple[Tensor, Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """How many batches go once through what there is to train on."""
        return -(-len(self._train) // self._batch_size)

    def refer_to(self, model: GPT, dtype: torch.dtype) -> None:
        """Note what the model that is started from says of all answers, if the loss asks for it."""
        if self._loss.needs_reference:
            self._references = (
                self._judged(model, self._train, dtype),
                self._judged(model, self._held_out, dtype),
            )

    def at(self, step: int) -> Pairs:
        """Return the batch of a step; each epoch has an order of its own."""
        epoch, within = divmod(step, self.steps_per_epoch)
        seeds = np.random.SeedSequence([self._seed, epoch])
        order = np.random.Generator(np.random.Philox(seeds)).permutation(len(self._train))
        some = order[within * self._batch_size : (within + 1) * self._batch_size]
        reference = self._references and self._references[0]
        return self._pairs(self._train, some.tolist(), reference)

    def loss(self, model: GPT, rows: Rows) -> Tensor:
        """Return the summed loss of some pairs."""
        return self._loss(self._ahead(model, rows)).sum()

    @torch.no_grad()
    def evaluate(self, model: GPT, dtype: torch.dtype) -> Evaluation:
        """Measure the loss on all pairs held out, and how often the better answer is ahead."""
        was_training = model.training
        model.eval()
        total, right = 0.0, 0
        reference = self._references and self._references[1]
        for some in self._chunks(self._held_out):
            pairs = self._pairs(self._held_out, some, reference).to(model.device)
            with precision(model.device, dtype):
                ahead = self._ahead(model, pairs)
            total += float(self._loss(ahead).sum())
            right += int((ahead > 0).sum())
        model.train(was_training)
        n = len(self._held_out)
        return Evaluation(total / n, n, accuracy=right / n, unit="nats a pair")

    def _ahead(self, model: GPT, rows: Rows) -> Float[Tensor, " B"]:
        """Return by how much the better answers are ahead of the worse."""
        inputs, targets = rows.inputs.flatten(0, 1), rows.targets.flatten(0, 1)  # [2·B, T]
        found = answer_log_probabilities(model, inputs, targets).view(-1, 2)
        if not self._loss.needs_reference:
            found = found / (targets != IGNORED).sum(-1).view(-1, 2)
        elif isinstance(rows, Pairs) and rows.reference is not None:
            found = found - rows.reference
        else:
            raise ValueError("refer_to must come first: the loss compares with a reference")
        return found[:, 0] - found[:, 1]

    @torch.no_grad()
    def _judged(
        self, model: GPT, pairs: Sequence[tuple[Example, Example]], dtype: torch.dtype
    ) -> Float[Tensor, "n 2"]:
        was_training = model.training
        model.eval()
        found = []
        for some in self._chunks(pairs):
            rows = self._pairs(pairs, some, None).to(model.device)
            with precision(model.device, dtype):
                flat = rows.inputs.flatten(0, 1), rows.targets.flatten(0, 1)
                found.append(answer_log_probabilities(model, *flat).view(-1, 2).cpu())
        model.train(was_training)
        return torch.cat(found)

    def _chunks(self, pairs: Sequence[tuple[Example, Example]]) -> list[list[int]]:
        size = self._batch_size
        return [
            list(range(start, min(start + size, len(pairs))))
            for start in range(0, len(pairs), size)
        ]

    def _pairs(
        self,
        pairs: Sequence[tuple[Example, Example]],
        some: Sequence[int],
        reference: Float[Tensor, "n 2"] | None,
    ) -> Pairs:
        width = max(one.length for at in some for one in pairs[at])
        inputs = torch.full((len(some), 2, width), self._end)  # [B, 2, T]
        targets = torch.full_like(inputs, IGNORED)
        for number, at in enumerate(some):
            for side, example in enumerate(pairs[at]):
                inputs[number, side, : example.length] = torch.from_numpy(example.ids[:-1])
                wanted = np.where(example.learnt[1:], example.ids[1:], IGNORED)
                targets[number, side, : example.length] = torch.from_numpy(wanted)
        chosen = None if reference is None else reference[list(some)]
        return Pairs(inputs, targets, reference=chosen)
