"""Learning to answer: conversations, of which the answers alone are learnt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from clearhead.data import IGNORED, Rows
from clearhead.data.packing import pack
from clearhead.errors import ClearheadError
from clearhead.finetune.table import Row, text_of
from clearhead.model import GPT
from clearhead.tokenizer import END_OF_TEXT, Message, Tokenizer, render_chat
from clearhead.train import Evaluation, evaluate, next_token_loss

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """A conversation in tokens."""

    ids: Int64[np.ndarray, " N"]
    """Its tokens."""
    learnt: Bool[np.ndarray, " N"]
    """Which of them belong to an answer."""

    @property
    def length(self) -> int:
        """How many positions it takes in a row: its last token is only ever a target."""
        return len(self.ids) - 1


def messages_of(row: Row) -> list[Message]:
    """Return a row's conversation.

    Args:
        row: `messages`, each with a role and its content; or `instruction`, `input` (may be left
            out) and `output`.

    Raises:
        ClearheadError: It is neither, has no answer, or its text holds the end-of-text token.
    """
    if "messages" in row:
        messages = _checked(row["messages"])
    else:
        asked, given = text_of(row, "instruction"), text_of(row, "input", default="").strip()
        messages = [
            {"role": "user", "content": f"{asked.strip()}\n\n{given}" if given else asked},
            {"role": "assistant", "content": text_of(row, "output")},
        ]
    if any(END_OF_TEXT in message["content"] for message in messages):
        raise ClearheadError(f"it holds {END_OF_TEXT}, which ends a text; take it out")
    return messages


def encode_conversation(
    tokenizer: Tokenizer, template: str, messages: Sequence[Message]
) -> Example:
    """Return a conversation in tokens, and which of them are to be learnt.

    An answer is what the template adds when an assistant's message follows what was said before:
    with the answer's end, without the heading before it.

    Raises:
        ClearheadError: The template changes what was said before when more is said.
    """
    spans: list[tuple[int, int]] = []
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render_chat(template, messages[:at], add_generation_prompt=True)
            upto = render_chat(template, messages[: at + 1])
            if not upto.startswith(before):
                raise ClearheadError(
                    "the chat template does not continue what it writes before an answer, so "
                    "that answers cannot be told apart; take another template"
                )
            spans.append((len(before.encode()), len(upto.encode())))
    text = render_chat(template, messages)
    ids = tokenizer.encode(text).astype(np.int64)
    lengths = tokenizer.token_bytes()[ids]
    lengths[ids == tokenizer.end_of_text] = len(END_OF_TEXT)
    begins = np.cumsum(lengths) - lengths
    learnt = np.zeros(len(ids), dtype=bool)
    for start, stop in spans:
        learnt |= (begins >= start) & (begins < stop)
    return Example(ids, learnt)


class Answers:
    """Predict each token of the answers (an objective).

    Args:
        train: What to train on.
        held_out: What to evaluate on.
        tokenizer: Whose tokens they are.
        batch_size: Rows in a batch.
        context_length: The model's; longer conversations lose their end, and those whose answers
            are lost with it are left out.
        packed: Lay several conversations into a row, each of which sees only itself; otherwise
            each is a row, in batches of like length.
        seed: Decides the order.

    Raises:
        ClearheadError: Nothing is left to learn.
    """

    def __init__(
        self,
        train: Sequence[Example],
        held_out: Sequence[Example],
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        context_length: int,
        packed: bool,
        seed: int,
    ) -> None:
        self._end, self._seed = tokenizer.end_of_text, seed
        self._token_bytes = torch.from_numpy(tokenizer.token_bytes())
        self._batch_size, self._packed = batch_size, packed
        self.n_cut = self.n_left_out = 0
        self._capacity = context_length
        self._train, self._held_out = self._fitted(train), self._fitted(held_out)
        if not self._train or not self._held_out:
            raise ClearheadError(
                f"no answer fits the context of {context_length} tokens; give shorter conversations"
            )
        self._batches = self._grouped(self._train)
        self.train_tokens = sum(example.length for example in self._train)
        self.held_out_tokens = sum(example.length for example in self._held_out)
        self.evaluation_cost = self.held_out_tokens * len(self._batches) / self.train_tokens

    @property
    def steps_per_epoch(self) -> int:
        """How many batches go once through what there is to train on."""
        return len(self._batches)

    @cached_property
    def padding(self) -> float:
        """The share of the rows' positions at which there is no token."""
        places = sum(len(rows) * max(self._width(row) for row in rows) for rows in self._batches)
        return 1 - self.train_tokens / places

    def at(self, step: int) -> Rows:
        """Return the batch of a step; each epoch has an order of its own."""
        epoch, within = divmod(step, len(self._batches))
        seeds = np.random.SeedSequence([self._seed, epoch])
        order = np.random.Generator(np.random.Philox(seeds)).permutation(len(self._batches))
        return self._rows(self._train, self._batches[order[within]])

    def loss(self, model: GPT, rows: Rows) -> Tensor:
        """Return the summed loss on the answers' tokens."""
        return next_token_loss(model, rows)

    def evaluate(self, model: GPT, dtype: torch.dtype) -> Evaluation:
        """Measure the loss on the answers of all conversations held out."""
        return evaluate(model, self._evaluated(), self._token_bytes, dtype)

    def _evaluated(self) -> Iterator[Rows]:
        for rows in self._grouped(self._held_out):
            yield self._rows(self._held_out, rows)

    def _fitted(self, examples: Sequence[Example]) -> list[Example]:
        kept = []
        for example in examples:
            if example.length > self._capacity:
                self.n_cut += 1
                size = self._capacity + 1
                example = Example(example.ids[:size], example.learnt[:size])
            if example.learnt[1:].any():
                kept.append(example)
            else:
                self.n_left_out += 1
        return kept

    def _grouped(self, examples: Sequence[Example]) -> list[list[list[int]]]:
        """Return batches of rows of the numbers of examples."""
        lengths = [example.length for example in examples]
        if self._packed:
            rows = pack(lengths, self._capacity)
            order = np.random.Generator(np.random.Philox(self._seed)).permutation(len(rows))
            rows = [rows[at] for at in order]
        else:
            rows = [[at] for at in sorted(range(len(lengths)), key=lengths.__getitem__)]
        size = self._batch_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _width(self, row: Sequence[int]) -> int:
        return sum(self._train[at].length for at in row)

    def _rows(self, examples: Sequence[Example], rows: Sequence[Sequence[int]]) -> Rows:
        width = max(sum(examples[at].length for at in row) for row in rows)
        inputs = torch.full((len(rows), width), self._end)  # [B, T]
        targets = torch.full_like(inputs, IGNORED)
        documents = torch.full_like(inputs, -1)
        for number, row in enumerate(rows):
            start = 0
            for document, at in enumerate(row):
                example = examples[at]
                here = slice(start, start + example.length)
                inputs[number, here] = torch.from_numpy(example.ids[:-1])
                wanted = np.where(example.learnt[1:], example.ids[1:], IGNORED)
                targets[number, here] = torch.from_numpy(wanted)
                documents[number, here] = document
                start += example.length
        return Rows(inputs, targets, documents if self._packed else None)


def _checked(messages: object) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise ClearheadError("'messages' is no list of messages")
    found: list[Message] = []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ClearheadError(f"a message has no role of {', '.join(ROLES)}")
        found.append({"role": message["role"], "content": text_of(message, "content")})
    if not any(message["role"] == "assistant" for message in found):
        raise ClearheadError("no message is the assistant's, so that there is nothing to learn")
    return found
