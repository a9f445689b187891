"""Time to a loss on shakespeare-char: ours, and nanoGPT's own CPU recipe, in turn.

Both train on the first 90 % of the characters and are measured on the last 10 %, in nats a
character. nanoGPT runs the command that its README gives for a CPU, as it is. We run twice: in a
quarter of the time that it took, and in all of it, each from the start of the process to its end.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import write_result

RECIPE = [
    "train.py",
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]
START_AND_END_SECONDS = 5.0


def nanogpt(checkout: Path, text: Path, folder: Path) -> dict[str, Any]:
    """Run nanoGPT's recipe in a copy of its checkout."""
    copy = folder / "nanogpt"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "out*"))
    corpus = copy / "data" / "shakespeare_char"
    shutil.copy(text, corpus / "input.txt")
    subprocess.run([sys.executable, "prepare.py"], cwd=corpus, check=True, capture_output=True)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *RECIPE], cwd=copy, check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    losses = re.findall(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)", done.stdout)
    return {"seconds": seconds, "val_loss": float(losses[-1][1])}


def ours(text: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Train for `seconds` in a process of its own; return when each loss was reached."""
    characters = text.read_text()
    cut = int(0.9 * len(characters))
    (folder / "train.txt").write_text(characters[:cut])
    (folder / "val.txt").write_text(characters[cut:])
    command = [sys.executable, __file__, "--child", str(folder), "--seconds", str(seconds)]
    began = time.perf_counter()
    curve = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            curve.append({"seconds": time.perf_counter() - began, **json.loads(line)})
            print(f"  {curve[-1]['seconds']:6.1f} s  {curve[-1]['val_loss']:.4f}", flush=True)
    if process.returncode:
        raise SystemExit("our run failed")
    seconds = time.perf_counter() - began
    print(f"  {seconds:6.1f} s  end")
    return {"seconds": seconds, "val_loss": curve[-1]["val_loss"], "curve": curve}


def child(folder: Path, seconds: float) -> None:
    """Train; print a line of JSON an evaluation."""
    from clearhead import GPTConfig, PretrainConfig, pretrain
    from clearhead.train import Evaluated, Event, OptimizerConfig, ScheduleConfig

    def report(event: Event) -> None:
        if isinstance(event, Evaluated):
            line = {"step": event.step, "val_loss": event.evaluation.loss}
            print(json.dumps(line), flush=True)

    pretrain(
        PretrainConfig(
            data=(str(folder / "train.txt"),),
            val_data=(str(folder / "val.txt"),),
            tokenizer="char",
            out=folder / "run",
            minutes=(seconds - START_AND_END_SECONDS) / 60,
            batch_size=32,
            evaluate_every=150,
            model=GPTConfig(
                context_length=64,
                d_model=128,
                n_heads=4,
                n_layers=4,
                dropout=0.0,
                bias=False,
                qkv_bias=False,
            ),
            optimizer=OptimizerConfig(learning_rate=1e-2, muon_learning_rate=0.05),
            schedule=ScheduleConfig(warmup_steps=20, decay_fraction=0.8),
        ),
        observers=[report],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="tinyshakespeare's text")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument(
        "--seconds", type=float, default=87.0, help="time for ours, where nanoGPT does not run"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.seconds)
        return
    if not arguments.data:
        raise SystemExit("give tinyshakespeare's text with --data PATH")
    result: dict[str, Any] = {}
    seconds = arguments.seconds
    with tempfile.TemporaryDirectory() as name:
        if arguments.nanogpt:
            result["nanogpt"] = nanogpt(arguments.nanogpt, arguments.data, Path(name))
            seconds = result["nanogpt"]["seconds"]
            print(f"nanoGPT: {result['nanogpt']['val_loss']:.4f} after {seconds:.1f} s")
    for share in (0.25, 1.0):
        with tempfile.TemporaryDirectory() as name:
            print(f"clearhead, for {share * seconds:.1f} s:")
            result[f"clearhead_{share}"] = ours(arguments.data, Path(name), share * seconds)
    write_result("time_to_loss", result, arguments.json)


if __name__ == "__main__":
    main()
