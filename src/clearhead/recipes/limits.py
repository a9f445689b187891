"""What this machine does at most, measured: its matrix products, and its memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from clearhead.model import GPT, GPTConfig
from clearhead.model.linear import Linear, linear
from clearhead.native import Backend

_SIZES = (1024, 2048, 4096)
_LONGEST = 2.0  # seconds that one product may take: without instructions for a type it is slow
_WIDTH = 1024


@dataclass(frozen=True)
class Limit:
    """The most of something that a machine was seen to do in a second."""

    per_second: float
    """How much."""
    by: str
    """What did it."""


def matrix_peak(dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu") -> float:
    """Measure the matrix product's speed in FLOP/s: the best of many, of three sizes.

    Args:
        dtype: What is multiplied.
        device: Where.
    """
    best, device = 0.0, torch.device(device)
    for size in _SIZES:
        if best and 2 * size**3 / best > _LONGEST:
            break
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for _ in range(8192 // size):
            seconds = _seconds(partial(linear, left, right), device)
            best = max(best, 2 * size**3 / seconds)
    return best


def fastest_products(dtype: torch.dtype, device: torch.device | str = "cpu") -> Limit:
    """Measure matrix products in fp32 and in another type, and return the faster one's speed."""
    kinds = {torch.float32, dtype}
    found = [Limit(matrix_peak(one, device), f"{one}".removeprefix("torch.")) for one in kinds]
    return max(found, key=lambda one: one.per_second)


@torch.inference_mode()
def memory_bandwidth(
    device: torch.device | str = "cpu", *, n_bytes: int = 2**30, times: int = 4
) -> Limit:
    """Measure how many bytes are read in a second, with all threads.

    The best of several reads of one large matrix, by torch's sum and by the product with a vector
    of what computes our models' tokens.

    Args:
        device: Where the matrix lies.
        n_bytes: Its size; it must be far larger than the caches.
        times: How often it is read in each way.
    """
    device, rows = torch.device(device), max(n_bytes // (4 * _WIDTH), 1)
    config = GPTConfig(vocab_size=1, context_length=1, d_model=_WIDTH, n_heads=8, n_layers=1)
    model = GPT(config).to(device).eval()
    with torch.device("meta"):
        model.head = Linear(_WIDTH, rows, bias=False)
    # Written once: memory that never was reads as one page of zeros.
    weight = torch.full((rows, _WIDTH), 0.01, device=device)
    model.head.weight = nn.Parameter(weight, requires_grad=False)
    reader, token = Backend(model), torch.zeros(1, 1, dtype=torch.int64)
    kernels = "torch" if reader.name == "torch" else f"the {reader.name} kernels"
    in_block = sum(one.nbytes for one in model.blocks.parameters())
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        f"{kernels}, a matrix by a vector": (
            weight.nbytes + in_block,
            lambda: reader.read(token, reader.cache(1)),
        ),
        "torch, a sum": (weight.nbytes, weight.sum),
    }
    best = Limit(0.0, "nothing")
    for _ in range(times):
        for by, (read_bytes, read) in ways.items():
            speed = read_bytes / _seconds(read, device)
            best = max(best, Limit(speed, by), key=lambda one: one.per_second)
    return best


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - began
