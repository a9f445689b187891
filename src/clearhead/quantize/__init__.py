"""Quantised weights: linear layers that hold 8 or 4 bits a weight, swapped in from outside."""

from clearhead.quantize.convert import check_sizes, is_quantized, quantize_nearest
from clearhead.quantize.gptq import gptq, quantize_calibrated
from clearhead.quantize.linear import (
    BITS,
    GROUPS,
    QuantizedEmbedding,
    QuantizedLinear,
    pack,
    padded,
    unpack,
)

__all__ = [
    "BITS",
    "GROUPS",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "check_sizes",
    "gptq",
    "is_quantized",
    "pack",
    "padded",
    "quantize_calibrated",
    "quantize_nearest",
    "unpack",
]
