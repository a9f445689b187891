"""Bringing weights in: seconds and peak memory, beside transformers' loader.

The weights are random and made on the spot, in the shape of a preset, as a Hugging Face folder.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from clearhead.checkpoint.formats.huggingface import write_huggingface
from clearhead.checkpoint.formats.source import ModelSource
from clearhead.model import GPT, preset
from clearhead.tokenizer import build_tokenizer
from common import child, write_result


def make(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    folder.mkdir()
    write_huggingface(ModelSource(GPT(preset(name))), folder, build_tokenizer("gpt2"))


def ours(folder: Path, out: Path) -> dict[str, float]:
    from clearhead.recipes.convert import import_checkpoint

    times: list[float] = []
    import_checkpoint(folder, out, on_stage=lambda _: times.append(time.perf_counter()))
    return {"converted": times[2] - times[0], "verified": time.perf_counter() - times[0]}


def alone(folder: Path, out: Path) -> dict[str, float]:
    """Measure ours as where transformers is not installed, so that our model verifies."""
    sys.modules["transformers"] = None  # type: ignore[assignment]
    return ours(folder, out)


def transformers(folder: Path, out: Path) -> dict[str, float]:
    from transformers import AutoModelForCausalLM

    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder)
    loaded = time.perf_counter() - began
    model.save_pretrained(out)
    return {"loaded": loaded, "converted": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["gpt2-124m", "gpt2-1558m"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, folder, out = arguments.child
        if what == "make":
            make(out, Path(folder))
            print("{}")
            return
        measure = {"clearhead": ours, "alone": alone, "transformers": transformers}[what]
        seconds = measure(Path(folder), Path(out))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**seconds, "peak_bytes": peak}))
        return
    result: dict[str, Any] = {}
    for name in arguments.presets:
        with tempfile.TemporaryDirectory() as folder:
            source = f"{folder}/source"
            child(__file__, "--child", "make", source, name)
            size = (Path(source) / "model.safetensors").stat().st_size
            result[name] = {"bytes": size}
            for who in ("clearhead", "alone", "transformers"):
                found = child(__file__, "--child", who, source, f"{folder}/{who}")
                result[name][who] = {**found, "peak_over_file": found["peak_bytes"] / size}
                print(name, who, result[name][who], flush=True)
    write_result("convert", result, arguments.json)


if __name__ == "__main__":
    main()
