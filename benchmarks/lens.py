"""What looking costs, on gpt2-124m's shape at T = 1024: ours beside TransformerLens.

Every measure runs in a process of its own, on the same random weights and tokens. Times are told in
forward passes of the same model in the same process, logits of all positions included; `base` is
the time of what the measure runs of the model. Memory is the peak beyond what the loaded model
takes. TransformerLens ablates three heads, by running the whole model with a hook on each; the time
for all 144 is that times 48.
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from common import child, write_result

LENGTH = 1024
Run = Callable[[], object]


def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(50257, (1, LENGTH), generator=generator)


def ours() -> tuple[Run, Run, dict[str, Run]]:
    from clearhead import lens
    from clearhead.model import GPT, preset
    from clearhead.train import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    model, ids = GPT(preset("gpt2-124m")).eval(), tokens()

    def tapped() -> object:
        with lens.observe(model, "z") as seen:
            model(ids)
        return seen

    return (
        lambda: model(ids),
        lambda: model.hidden(ids),
        {
            "taps on z": tapped,
            "shares and strengths": lambda: lens.head_contributions(model, ids),
            "mean-ablation": lambda: lens.ablate_heads(model, ids),
        },
    )


def transformer_lens() -> tuple[Run, Run, dict[str, Run]]:
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config()
    model = build_bridge_from_module(
        GPT2LMHeadModel(config).eval(), "GPT2LMHeadModel", hf_config=config
    )
    ids = tokens()
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(config.n_layer)]

    def tapped() -> object:
        return model.run_with_cache(ids, names_filter=names)

    def shares() -> object:
        _, cache = model.run_with_cache(ids)
        total, strengths = [], []
        for layer in range(config.n_layer):
            parts = cache.stack_head_results(layer=layer + 1)[-config.n_head :]  # [H, 1, T, D]
            whole = parts.sum(0)
            total.append((parts * whole).sum(-1) / whole.square().sum(-1))
            strengths.append(parts.norm(dim=-1))
        return total, strengths

    def ablate() -> object:
        _, cache = model.run_with_cache(ids, names_filter=names)
        losses = []
        for layer in (0, 5, 11):
            mean = cache[names[layer]].mean(1)

            def replace(z: Any, hook: Any, mean: Any = mean) -> Any:  # noqa: ARG001
                z[:, :, 3] = mean[:, 3]
                return z

            losses.append(
                model.run_with_hooks(ids, return_type="loss", fwd_hooks=[(names[layer], replace)])
            )
        return losses

    return (
        lambda: model(ids),
        lambda: model(ids),
        {
            "taps on z": tapped,
            "shares and strengths": shares,
            "mean-ablation": ablate,
        },
    )


CONTESTANTS = {"clearhead": ours, "TransformerLens": transformer_lens}
MEASURES = ("taps on z", "shares and strengths", "mean-ablation")


@torch.no_grad()
def measure(who: str, what: str) -> dict[str, float]:
    forward, stream, measures = CONTESTANTS[who]()
    base = stream if what == "shares and strengths" else forward
    run = measures[what]
    before = _resident(peak=True)
    if what == "mean-ablation":
        began = time.perf_counter()
        run()
        seconds = (time.perf_counter() - began) * (48 if who == "TransformerLens" else 1)
        peak = _resident(peak=False)
        forward()
        forwards = statistics.median(_timed(forward) for _ in range(5))
        based = 0.0
    else:
        run()
        peak = _resident(peak=False)
        forward()
        # In turn, for speeds drift.
        turns = [(_timed(forward), _timed(base), _timed(run)) for _ in range(9)]
        forwards, based, seconds = (
            statistics.median(column) for column in zip(*turns, strict=True)
        )
    return {"seconds": seconds, "forward": forwards, "base": based, "extra_bytes": peak - before}


def _timed(run: Run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _resident(*, peak: bool) -> int:
    """Return the memory that the process holds now, and forget its peak; or return its peak."""
    if peak:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{'VmRSS' if peak else 'VmHWM'}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    result: dict[str, Any] = {}
    for what in MEASURES:
        result[what] = {}
        for who in CONTESTANTS:
            if who == "TransformerLens" and find_spec("transformer_lens") is None:
                continue
            result[what][who] = child(__file__, "--child", who, what)
            found = result[what][who]
            print(f"{what}: {who} {found['seconds'] / found['forward']:.2f} forward passes", found)
    write_result("lens", result, arguments.json)


if __name__ == "__main__":
    main()
