"""Linear layers and embeddings whose weights are whole numbers with a scale a group."""

from collections.abc import Callable
from typing import Self

import torch
from jaxtyping import Float, Float16, Int, Int8, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from clearhead.errors import ClearheadError
from clearhead.model.linear import linear

BITS = (8, 4)
"""How many bits a weight may have."""
GROUPS = (32, 64, 128)
"""How many neighbouring weights of a row may share a scale."""
BLOCK = 128
"""Rows are padded to a multiple of this with zeros."""
LARGEST = {8: 127, 4: 7}
"""The largest whole number by the number of bits; the smallest is its negative, or one less."""


class QuantizedLinear(nn.Module):
    """`x Wᵀ + b` with weights of 8 or 4 bits: weight = whole number · scale of its group.

    Torch leaves activations as they are. The native kernels round them to fractions of the largest
    of a group: to 16 bits where weights have 8, to 8 where they have 4.

    Attributes:
        codes: The whole numbers as `pack` leaves them.
        scales: [N, groups].
        bits: 8 or 4.
        group: Neighbouring weights of a row that share a scale.
    """

    codes: Tensor
    scales: Tensor

    def __init__(
        self,
        codes: Shaped[Tensor, "N bytes"],
        scales: Float16[Tensor, "N groups"],
        bias: nn.Parameter | None,
        in_features: int,
        bits: int,
    ) -> None:
        """Hold what was quantised.

        Raises:
            ClearheadError: Sizes or types do not fit together.
        """
        super().__init__()
        width = padded(in_features)
        if bits not in BITS:
            raise ClearheadError(f"bits is {bits!r}; it must be 8 or 4")
        shape, dtype = (len(scales), width * bits // 8), torch.int8 if bits == 8 else torch.uint8
        if tuple(codes.shape) != shape or codes.dtype != dtype or scales.dtype != torch.float16:
            raise ClearheadError(
                f"codes are {codes.dtype} {list(codes.shape)} and scales {scales.dtype}; for "
                f"{bits} bits and {in_features} inputs they must be {dtype} {list(shape)} and "
                "torch.float16"
            )
        if width not in [scales.shape[1] * group for group in GROUPS]:
            raise ClearheadError(
                f"there are {scales.shape[1]} scales a row of {width} weights; a group must have "
                f"{', '.join(map(str, GROUPS))}"
            )
        self.in_features, self.out_features = in_features, len(codes)
        self.bits, self.group = bits, width // scales.shape[1]
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the scales with the model, but leave their type."""
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scales = scales.to(self.scales.device)
        return self

    def forward(self, x: Float[Tensor, "*n K"]) -> Float[Tensor, "*n N"]:
        """Return `x Wᵀ + b`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, self.dequantized(x.dtype), bias)

    def dequantized(
        self, dtype: torch.dtype = torch.float32, rows: Int[Tensor, "*n"] | None = None
    ) -> Float[Tensor, "*n K"]:
        """Return the weights that the whole numbers stand for, of these rows or of all."""
        codes = self.codes if rows is None else self.codes[rows]  # [*n, bytes]
        scales = self.scales if rows is None else self.scales[rows]  # [*n, groups]
        values = unpack(codes, self.bits).view(*scales.shape, self.group)  # [*n, groups, group]
        weights = values.to(dtype) * scales[..., None].to(dtype)
        return weights.flatten(-2)[..., : self.in_features]

    def extra_repr(self) -> str:
        """Return what torch prints of it."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bits={self.bits}, group={self.group}, bias={self.bias is not None}"


class QuantizedEmbedding(nn.Module):
    """An embedding that reads the rows of a quantised matrix, which may be the head's."""

    like: Tensor

    def __init__(self, matrix: QuantizedLinear) -> None:
        super().__init__()
        self.matrix = matrix
        # It has the model's number type, which the matrix has not.
        self.register_buffer("like", torch.empty(0), persistent=False)

    def forward(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """Return a row for each id."""
        return self.matrix.dequantized(self.like.dtype, rows=ids)


def padded(width: int) -> int:
    """Return how many weights a row holds with its padding."""
    return -(-width // BLOCK) * BLOCK


def pack(values: Int8[Tensor, "N K"], bits: int) -> Shaped[Tensor, "N bytes"]:
    """Return whole numbers as a layer holds them, their rows padded to whole blocks.

    8 bits: as they are. 4 bits: of a block of 128, byte i holds number i in its lower half, and
    number 64 + i in its upper half, each plus 8.
    """
    values = F.pad(values, (0, padded(values.shape[1]) - values.shape[1]))
    if bits == 8:
        return values.contiguous()
    nibbles = (values + 8).to(torch.uint8).view(len(values), -1, 2, 64)  # [N, blocks, 2, 64]
    return (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).flatten(1)


def unpack(codes: Shaped[Tensor, "*n bytes"], bits: int) -> Int8[Tensor, "*n K"]:
    """Return the whole numbers of packed rows, padding included."""
    if bits == 8:
        return codes
    halves = codes.view(*codes.shape[:-1], -1, 64)  # [*n, blocks, 64]
    nibbles = torch.stack([halves & 15, halves >> 4], -2)  # [*n, blocks, 2, 64]
    return nibbles.flatten(-3).to(torch.int8) - 8
