"""A checkpoint of any making, read one tensor at a time under our names and layouts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from clearhead.checkpoint.formats.table import Table, Weight, our_weights
from clearhead.checkpoint.tensors import Entry
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import Tokenizer

GPT2_VOCAB = 50257
"""The size of GPT-2's vocabulary, which several tools pad."""
_GPT2_PADDED = 50304
_GPT2_HEADS = {768: 12, 1024: 16, 1280: 20, 1600: 25}
_SHOWN = 16  # names that an error message lists before it says "…"


class Source(ABC):
    """A checkpoint opened for reading; a context manager that lets go of its files."""

    path: Path
    """What the person named."""
    format: str
    """The format's name."""
    config: GPTConfig
    """The model's shape, its vocabulary without padding."""
    dtype: torch.dtype
    """What the weights are stored in; float32 for quantised ones."""
    tokenizer: Tokenizer | None
    """The source's own, if it brings one."""
    notes: list[str]
    """What a person should know about how it was read."""
    files: list[Path]
    """The files that hold it."""

    @abstractmethod
    def read(self, ours: str) -> Tensor:
        """Return a tensor by our name, in our shape and layout.

        Raises:
            ClearheadError: It is damaged.
        """

    @abstractmethod
    def theirs(self, ours: str) -> str:
        """Return what the source calls one of our tensors."""

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class TableSource(Source):
    """A source whose tensors have names of their own, as a table gives them.

    Names and shapes are held against the config before anything is read, so that memory stays
    within the file's size whatever the config says.

    Args:
        path: What the person named.
        table: The format's names.
        config: The file's own config, with a padded vocabulary if it has one.
        header: What the file says of each of its tensors.
        read: Returns a tensor by its name there.
        dtype: What the weights are stored in; that of the header's first tensor by default.
        vocab_size: The tokenizer's vocabulary, to which the file's is cut.
        tokenizer: The source's own.
        notes: What a person should know.
        files: The files that hold it.
        where: The file that messages name; the path by default.
        close: Called at the end.

    Raises:
        ClearheadError: Tensors are missing or surplus (all are named), or have other shapes than
            the config says.
    """

    def __init__(
        self,
        path: Path,
        table: Table,
        config: GPTConfig,
        header: Mapping[str, Entry],
        read: Callable[[str], Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        vocab_size: int | None = None,
        tokenizer: Tokenizer | None = None,
        notes: Iterable[str] = (),
        files: Iterable[Path] = (),
        where: Path | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.path, self.format, self.dtype, self.tokenizer = path, table.format, dtype, tokenizer
        self.notes, self.files = list(notes), list(files)
        self._read, self.on_close = read, close
        try:
            checked = check(table, config, header)
        except ClearheadError as error:
            raise ClearheadError(f"{where or path}: {error}") from error
        self._weights = {weight.ours: weight for weight in checked}
        if vocab_size is None and tokenizer is not None:
            vocab_size = tokenizer.vocab_size
        self._file_vocab = config.vocab_size
        self.config = replace(config, vocab_size=self._cut(config.vocab_size, vocab_size))

    def _cut(self, found: int, wanted: int | None) -> int:
        """Return the vocabulary without the rows that were added to round its size up."""
        if wanted is None:
            wanted = GPT2_VOCAB if GPT2_VOCAB <= found <= _GPT2_PADDED else found
        if wanted > found:
            raise ClearheadError(
                f"{self.path}: its vocabulary has {found} tokens, the tokenizer's {wanted}; they "
                "do not belong together"
            )
        if wanted < found:
            self.notes.append(f"vocabulary of {found:,} cut to the tokenizer's {wanted:,}")
        return wanted

    def read(self, ours: str) -> Tensor:
        """Return a tensor by our name; see `Source`."""
        weight = self._weights[ours]
        parts = [self._read(theirs) for theirs in weight.theirs]
        if weight.transposed:
            parts = [part.T for part in parts]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        return tensor[: self.config.vocab_size] if ours in _OVER_VOCABULARY else tensor

    def theirs(self, ours: str) -> str:
        """Return what the source calls one of our tensors, its parts joined by a plus."""
        return " + ".join(self._weights[ours].theirs)

    def check_zeros(self) -> None:
        """Check that the biases that the model leaves out are zeros in the file.

        Raises:
            ClearheadError: One is not.
        """
        for weight in self._weights.values():
            if weight.absent and any(self._read(theirs).any() for theirs in weight.theirs):
                raise ClearheadError(
                    f"{self.path}: {self.theirs(weight.ours)} is not zero, though its config says "
                    "that there is no bias"
                )

    def close(self) -> None:
        """Let go of the files."""
        if self.on_close is not None:
            self.on_close()


_OVER_VOCABULARY = ("token_embedding.weight", "head.weight")


class ModelSource(Source):
    """A model in memory, as a source.

    Raises:
        ClearheadError: It has more weights than a GPT has, which would be lost: live adapters.
    """

    format = "model"

    def __init__(self, model: GPT, tokenizer: Tokenizer | None = None) -> None:
        self.path, self.files, self.notes = Path(), [], []
        self.config, self.dtype, self.tokenizer = model.config, model.head.weight.dtype, tokenizer
        self._state = model.state_dict()
        known = {name for name, _ in our_weights(model.config)} | {"head.weight"}
        if surplus := [name for name in self._state if name not in known]:
            raise ClearheadError(
                f"the model has weights that belong to no plain GPT: {several(surplus)}; merge its "
                "adapters first, or save them by save_adapter"
            )

    def read(self, ours: str) -> Tensor:
        """Return a tensor by its name."""
        return self._state[ours]

    def theirs(self, ours: str) -> str:
        """Return the same name."""
        return ours


def parts(source: Source, weight: Weight, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Return a tensor of a source as another format has it, in as many parts as that asks for.

    Args:
        source: Where the tensor comes from.
        weight: What the other format calls it; zeros where our model has none.
        dtype: What it becomes; the source's own by default.
    """
    if weight.absent:
        return (torch.zeros(weight.shape, dtype=dtype or source.dtype),) * len(weight.theirs)
    tied = weight.ours == "head.weight" and source.config.tied_head
    tensor = source.read("token_embedding.weight" if tied else weight.ours)
    split = tensor.to(dtype or source.dtype).chunk(len(weight.theirs))
    return tuple(part.T if weight.transposed else part for part in split)


def heads_of(d_model: int, told: object, path: Path, more: Mapping[int, int] | None = None) -> int:
    """Return the number of heads of a file that does not tell it, as GPT-2 of that width has them.

    Args:
        d_model: The width.
        told: What the file or the person says, if anything.
        path: The file, for a message.
        more: Heads of other widths that the format's own models have.

    Raises:
        ClearheadError: Nothing tells it.
    """
    if told is not None:
        if type(told) is not int:
            raise ClearheadError(f"{path} is damaged: its number of heads is no whole number")
        return told
    found = {**_GPT2_HEADS, **(more or {})}.get(d_model)
    if found is None:
        raise ClearheadError(
            f"{path} does not tell its number of heads, and {d_model} is no width of GPT-2's; "
            "give it with --n-heads"
        )
    return found


def check(table: Table, config: GPTConfig, header: Mapping[str, Entry]) -> list[Weight]:
    """Hold the names and shapes of a file's tensors against what the config asks for.

    Returns:
        Its tensors.

    Raises:
        ClearheadError: They do not fit; the message names the tensors.
    """
    # A hostile config may ask for any number of layers; the header's size bounds what is looked at.
    weights = list(islice(table.weights(config), len(header) + _SHOWN + 1))
    wanted = {name: weight for weight in weights for name in weight.theirs}
    missing = [name for name in wanted if name not in header]
    surplus = [name for name in header if name not in wanted]
    if missing or surplus:
        parts = [f"missing {several(missing)}"] if missing else []
        parts += [f"surplus {several(surplus)}"] if surplus else []
        raise ClearheadError(f"its tensors are not those of its config: {'; '.join(parts)}")
    wrong = [
        f"{name} is {list(header[name].shape)}, its config asks for {list(weight.shape)}"
        for name, weight in wanted.items()
        if header[name].shape != weight.shape
    ]
    if wrong:
        more = f"; {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ClearheadError("; ".join(wrong[:4]) + more)
    return weights


def several(names: list[str]) -> str:
    """Return some of many names for a message, and how many more there are."""
    shown = ", ".join(repr(name[:80])[1:-1] for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def build(
    source: Source,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    contiguous: bool = True,
) -> GPT:
    """Build the model from a source's tensors, in evaluation mode.

    Args:
        source: Where the tensors come from.
        device: Where the weights go.
        dtype: What they become; as stored by default, the widest where they differ.
        contiguous: Whether to lay transposed ones out anew, which is faster to compute with.
    """
    with torch.device("meta"):
        model = GPT(source.config)
    state = {}
    for name, _ in our_weights(source.config):
        tensor = source.read(name).to(device, dtype or source.dtype)
        state[name] = tensor.contiguous() if contiguous else tensor
    if source.config.tied_head:
        state["head.weight"] = state["token_embedding.weight"]
    model.load_state_dict(state, assign=True)
    if source.config.tied_head:  # assigning made two parameters of the one
        model.head.weight = model.token_embedding.weight
    return model.eval()
