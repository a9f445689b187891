"""Quantised weights: linear layers that hold 8 or 4 bits a weight, swapped in from outside."""

from clearhead.quantize.convert import quantize_nearest
from clearhead.quantize.linear import (
    BITS,
    GROUPS,
    QuantizedEmbedding,
    QuantizedLinear,
    pack,
    unpack,
)

__all__ = [
    "BITS",
    "GROUPS",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "pack",
    "quantize_nearest",
    "unpack",
]
