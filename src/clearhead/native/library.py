"""The compiled kernels, as Python calls them."""

import ctypes
from ctypes import c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache

from clearhead.native.build import path, variants

NO_ROOM, UNKNOWN_TOKEN = 1, 2
"""Why nothing was read: `Refusal` in kernels.cpp."""


class Matrix(ctypes.Structure):
    """Where a linear layer's weights lie: `Matrix` in kernels.cpp."""

    _fields_ = (
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("rows", c_int32),
        ("columns", c_int32),
        ("kind", c_int32),
        ("group", c_int32),
    )


class Norm(ctypes.Structure):
    """A LayerNorm: `Norm` in kernels.cpp."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("epsilon", c_float))


class Block(ctypes.Structure):
    """A decoder block: `Block` in kernels.cpp."""

    _fields_ = (
        ("qkv", Matrix),
        ("out_proj", Matrix),
        ("up", Matrix),
        ("down", Matrix),
        ("norm_1", Norm),
        ("norm_2", Norm),
    )


class Model(ctypes.Structure):
    """A whole model: `Model` in kernels.cpp."""

    _fields_ = (
        ("tokens", Matrix),
        ("positions", Matrix),
        ("head", Matrix),
        ("norm", Norm),
        ("blocks", c_void_p),
        ("n_blocks", c_int32),
        ("n_heads", c_int32),
        ("exact_gelu", c_int32),
    )


class Cache(ctypes.Structure):
    """Keys and values, and how many tokens they are of: `Cache` in kernels.cpp."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("slots", c_void_p),
        ("lengths", c_void_p),
        ("capacity", c_int64),
        ("slot_stride", c_int64),
        ("layer_stride", c_int64),
        ("bf16", c_int32),
        ("tokens_per_row", c_int32),
    )


class Library:
    """The kernels for one instruction set."""

    def __init__(self, variant: str) -> None:
        """Open them.

        Raises:
            OSError: They are not there, or are damaged.
        """
        self.variant = variant
        library = ctypes.CDLL(str(path(variant)))
        self.runs_here = library.clearhead_runs_here
        self.scratch = library.clearhead_scratch
        self.scratch.argtypes = [c_void_p, c_int64, c_int64, c_int64]
        self.scratch.restype = c_int64
        self.read = library.clearhead_read
        self.read.argtypes = (
            *(c_void_p, c_void_p, c_void_p, c_int),
            *(c_void_p, c_int, c_void_p, c_int),
        )


@cache
def library() -> Library | None:
    """Return the kernels for the best instruction set that this processor has, or None."""
    for variant in variants():
        if path(variant).exists() and (found := Library(variant)).runs_here():
            return found
    return None
