"""What the machine at hand offers, and how to make it give that."""

import ctypes
import sys
import time
from typing import Literal

import torch

from clearhead.errors import ClearheadError
from clearhead.model.linear import linear

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def resolve_device(name: str) -> torch.device:
    """Turn `auto` or a torch device's name into a device that is there.

    Raises:
        ClearheadError: The name is none, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ClearheadError(f"device is {name!r}, which cannot be used here: {reason}") from error
    return device


def faster_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 if matrix products in it are faster on the device, float32 otherwise."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu":
        return torch.float32
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(15):  # in turn, so that other work on the machine hits both alike
        for dtype in best:
            best[dtype] = min(best[dtype], _product_seconds(dtype))
    return min(best, key=lambda dtype: best[dtype])


def resolve_dtype(name: str, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return the type that matrix products are computed in; `auto` is the faster one."""
    if name == "auto":
        return "bfloat16" if faster_dtype(device) == torch.bfloat16 else "float32"
    return "bfloat16" if name == "bfloat16" else "float32"


def _product_seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    began = time.perf_counter()
    linear(left, right)
    return time.perf_counter() - began


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step, where this is glibc.

    By default it gives large blocks back to the system and takes them anew, zeroed page by page,
    several times a step: about a fifth of a training step on a CPU (docs/decisions/0003).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
