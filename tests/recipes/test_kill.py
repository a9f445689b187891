"""A real process, killed with SIGKILL at random moments, ends with the bytes of a quiet one."""

import json
import random
import subprocess
import sys
import time

import pytest
import torch

from clearhead import checkpoint
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import build_tokenizer

SCRIPTS = {
    "pretrain": """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from clearhead import GPTConfig, PretrainConfig, pretrain
pretrain(
    PretrainConfig(
        data=(sys.argv[1],), out=Path(sys.argv[2]), tokenizer="bytes", steps=60, batch_size=4,
        evaluate_every=5, device="cpu", dtype="bfloat16",
        model=GPTConfig(context_length=32, d_model=32, n_heads=2, n_layers=2, dropout=0.1),
    ),
    resume=True,
    on_prepare=lambda done, of: None,
)
""",
    "fine_tune": """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from clearhead import InstructConfig, fine_tune
here = Path(sys.argv[1]).parent
fine_tune(
    InstructConfig(
        base=here / "base", data=here / "rows.json", out=Path(sys.argv[2]), steps=60, batch_size=4,
        evaluate_every=5, device="cpu", dtype="bfloat16", plain_text=sys.argv[1], packed=False,
    ),
    resume=True,
)
""",
}


def begin(kind, text, run):
    return subprocess.Popen([sys.executable, "-c", SCRIPTS[kind], str(text), str(run)])


def make_base(folder):
    """Write a tiny model and rows to teach it with."""
    torch.manual_seed(0)
    shape = GPTConfig(
        vocab_size=257, context_length=64, d_model=32, n_heads=2, n_layers=2, dropout=0.1
    )
    checkpoint.save(folder / "base", GPT(shape), build_tokenizer("bytes"))
    rows = [{"instruction": f"Say {n}.", "output": f"{n}!"} for n in range(80)]
    (folder / "rows.json").write_text(json.dumps(rows))


def curve(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    timings = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in json.loads(x).items() if k not in timings} for x in lines]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCRIPTS)
def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(tmp_path, kind):
    make_base(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join("one two three four five six. " * n for n in range(9, 90)))
    assert begin(kind, text, tmp_path / "quiet").wait() == 0
    run = tmp_path / "killed"
    chance = random.Random(20)
    kills = 0
    for _ in range(7):
        process = begin(kind, text, run)
        steps = len((run / "metrics.jsonl").read_text().splitlines()) if kills else 0
        deadline = time.monotonic() + 60
        wanted = steps + chance.randrange(1, 12)
        while time.monotonic() < deadline and process.poll() is None:
            metrics = run / "metrics.jsonl"
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= wanted:
                break
            time.sleep(0.001)
        time.sleep(chance.random() * 0.03)
        process.kill()
        kills += process.wait() == -9
    assert kills >= 4
    assert begin(kind, text, run).wait() == 0
    assert curve(run) == curve(tmp_path / "quiet")
    whole, resumed = (checkpoint.resolve(folder) for folder in (tmp_path / "quiet", run))
    assert whole.name == resumed.name
    for name in ("model.safetensors", "clearhead/optimizer.safetensors"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()
