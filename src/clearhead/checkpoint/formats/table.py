"""A format's names for the tensors of a GPT-2: one table, used to read and to write."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from clearhead.model import GPTConfig

# Our names and shapes; linear layers are [out, in].
_OUTSIDE = {
    "token_embedding.weight": "V D",
    "position_embedding.weight": "T D",
    "norm.weight": "D",
    "norm.bias": "D",
    "head.weight": "O D",
}
_IN_BLOCK = {
    "norm_1.weight": "D",
    "norm_1.bias": "D",
    "attention.qkv.weight": "3D D",
    "attention.qkv.bias": "3D",
    "attention.out_proj.weight": "D D",
    "attention.out_proj.bias": "D",
    "norm_2.weight": "D",
    "norm_2.bias": "D",
    "mlp.up.weight": "4D D",
    "mlp.up.bias": "4D",
    "mlp.down.weight": "D 4D",
    "mlp.down.bias": "D",
}
_LINEAR = ("attention.", "mlp.")


@dataclass(frozen=True)
class Weight:
    """One tensor of a model, as a file has it."""

    ours: str
    """Its name in `GPT`."""
    theirs: tuple[str, ...]
    """Its name in the file; several if it lies there in parts, joined along our first dimension."""
    shape: tuple[int, ...]
    """The shape of each part in the file."""
    transposed: bool
    """Whether the file has it as [in, out], and our linear layer as [out, in]."""
    absent: bool
    """Whether our model leaves it out: a bias of zeros, in the file for others' sake."""


@dataclass(frozen=True)
class Table:
    """What a format calls each tensor."""

    format: str
    """The format's name."""
    block: str
    """What stands before a block's names, with {layer} for its number."""
    outside: tuple[tuple[str, str], ...]
    """Our name and theirs, of what lies outside the blocks."""
    in_block: tuple[tuple[str, str | tuple[str, ...]], ...]
    """Our name within a block and theirs; several of theirs are parts of one of ours."""
    transposed: bool = False
    """Whether linear layers are stored as [in, out]."""
    optional: tuple[str, ...] = ()
    """Endings of our names whose tensors the file leaves out where the model has none; others are
    zeros there."""
    head_always: bool = False
    """Whether the head is stored even where it is the token embedding."""

    def weights(self, config: GPTConfig) -> Iterator[Weight]:
        """Yield every tensor of a file; lazily, since a hostile config may ask for any number."""
        sizes = _sizes(config)
        for ours, theirs in self.outside:
            if ours != "head.weight" or self.head_always or not config.tied_head:
                yield from self._weight(ours, (theirs,), _OUTSIDE[ours], sizes, config)
        for layer in range(config.n_layers):
            before = self.block.format(layer=layer)
            for ours, names in self.in_block:
                parts = (names,) if isinstance(names, str) else names
                theirs_all = tuple(before + part for part in parts)
                name = f"blocks.{layer}.{ours}"
                yield from self._weight(name, theirs_all, _IN_BLOCK[ours], sizes, config)

    def _weight(
        self,
        ours: str,
        theirs: tuple[str, ...],
        dimensions: str,
        sizes: dict[str, int],
        config: GPTConfig,
    ) -> Iterator[Weight]:
        absent = _is_absent(ours, config)
        if absent and ours.endswith(self.optional):
            return
        shape = [sizes[dimension] for dimension in dimensions.split()]
        shape[0] //= len(theirs)
        transposed = self.transposed and len(shape) == 2 and any(one in ours for one in _LINEAR)
        yield Weight(
            ours, theirs, tuple(reversed(shape) if transposed else shape), transposed, absent
        )


def our_weights(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each tensor that `GPT` has, a tied head once."""
    sizes = _sizes(config)
    for name, dimensions in _OUTSIDE.items():
        if not (_is_absent(name, config) or (config.tied_head and name == "head.weight")):
            yield name, tuple(sizes[one] for one in dimensions.split())
    for layer in range(config.n_layers):
        for name, dimensions in _IN_BLOCK.items():
            if not _is_absent(name, config):
                yield f"blocks.{layer}.{name}", tuple(sizes[one] for one in dimensions.split())


def n_parameters(config: GPTConfig) -> int:
    """Count the weights of a model of this shape, a tied head once."""
    return sum(math.prod(shape) for _, shape in our_weights(config))


def _is_absent(ours: str, config: GPTConfig) -> bool:
    has_bias = config.qkv_bias if ".qkv." in ours else config.bias
    return ours.endswith(".bias") and not has_bias


def _sizes(config: GPTConfig) -> dict[str, int]:
    d_model = config.d_model
    sizes = {"V": config.vocab_size, "T": config.context_length, "D": d_model}
    sizes["O"] = config.n_outputs
    return sizes | {"3D": 3 * d_model, "4D": 4 * d_model}
