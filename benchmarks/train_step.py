"""Training throughput on gpt2-124m, B=4, T=512: ours beside nanoGPT's and transformers'.

Each contestant trains in a process of its own, in turn, with AdamW and bf16 autocast, on the same
random tokens. Give a checkout of nanoGPT with --nanogpt PATH; transformers is used if installed.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from clearhead.recipes.limits import matrix_peak
from common import child, machine, write_result

BATCH, LENGTH, VOCAB = 4, 512, 50257
# Of 6 N + 12 L D T, as in PaLM's appendix B, with GPT-2 124M's matrices.
FLOP_A_TOKEN = 6 * (12 * 12 * 768**2 + 50257 * 768) + 12 * 12 * 768 * LENGTH


def ours() -> Callable[[], float]:
    from dataclasses import replace

    from clearhead.data import Rows
    from clearhead.model import GPT, preset
    from clearhead.train import (
        OptimizerConfig,
        apply_gradient,
        build_optimizers,
        compute_gradient,
        keep_freed_memory,
    )

    keep_freed_memory()
    model = GPT(replace(preset("gpt2-124m"), dropout=0.0))
    optimizers = build_optimizers(model, OptimizerConfig(kind="adamw", learning_rate=6e-4))
    rows = Rows(*tokens())

    def step() -> float:
        gradient = compute_gradient(
            model,
            rows,
            micro_batch_size=BATCH,
            dtype=torch.bfloat16,
            max_grad_norm=1.0,
        )
        apply_gradient(optimizers)
        return gradient.loss

    return step


def nanogpt(path: str, compiled: bool) -> Callable[[], float]:
    sys.path.insert(0, path)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    model = GPT(GPTConfig(block_size=1024, vocab_size=50304, dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
    forward = torch.compile(model) if compiled else model
    inputs, targets = tokens()
    return autocast_step(model, optimizer, lambda: forward(inputs, targets)[1])


def transformers(compiled: bool) -> Callable[[], float]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 6e-4, (0.9, 0.95), weight_decay=0.1)
    forward = torch.compile(model) if compiled else model
    inputs, _ = tokens()
    return autocast_step(
        model, optimizer, lambda: forward(input_ids=inputs, labels=inputs, use_cache=False).loss
    )


def autocast_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], torch.Tensor]
) -> Callable[[], float]:
    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    both = torch.randint(VOCAB, (BATCH, LENGTH + 1))
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def measure(step: Callable[[], float], steps: int) -> dict[str, Any]:
    step()
    step()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - began)
    return {
        "tokens_per_second": BATCH * LENGTH / statistics.median(seconds),
        "loss": loss,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps in a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    contestants: dict[str, Callable[[], Callable[[], float]]] = {"clearhead": ours}
    if arguments.nanogpt:
        for compiled in (False, True):
            name = "nanoGPT, torch.compile" if compiled else "nanoGPT"
            contestants[name] = lambda c=compiled: nanogpt(arguments.nanogpt, c)
    if find_spec("transformers"):
        for compiled in (False, True):
            name = "transformers, torch.compile" if compiled else "transformers"
            contestants[name] = lambda c=compiled: transformers(c)
    if arguments.child:
        print(json.dumps(measure(contestants[arguments.child](), arguments.steps)))
        return
    peak = 0.0
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    extra = ["--nanogpt", arguments.nanogpt] if arguments.nanogpt else []
    for _ in range(arguments.rounds):
        peak = max(peak, matrix_peak())
        for name, seen in rows.items():
            steps = str(arguments.steps)
            seen.append(child(__file__, "--child", name, "--steps", steps, *extra))
            print(f"{name:30} {seen[-1]['tokens_per_second']:6.0f} tokens/s", flush=True)
    table = {}
    for name, seen in rows.items():
        speed = statistics.median(x["tokens_per_second"] for x in seen)
        table[name] = {
            "tokens_per_second": speed,
            "share_of_peak": speed * FLOP_A_TOKEN / peak,
            "peak_mb": max(x["peak_mb"] for x in seen),
        }
    base = table["clearhead"]["tokens_per_second"]
    print(f"\n{machine()['processor']}, bf16 matrix products {peak / 1e9:.0f} GFLOP/s")
    for name, row in table.items():
        print(
            f"{name:30} {row['tokens_per_second']:6.0f} tokens/s, {row['share_of_peak']:.0%} of "
            f"peak, {row['peak_mb']:.0f} MB; ours is {base / row['tokens_per_second']:.2f} times it"
        )
    write_result("train_step", {"peak_flops": peak, "contestants": table}, arguments.json)


if __name__ == "__main__":
    main()
