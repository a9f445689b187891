"""HellaSwag's first questions on gpt2-124m's shape: ours beside lm-eval's own loader, on the CPU.

Random weights, fp32, the same checkpoint for both, each in a process of its own; the answers have
to be equal. What is timed is the scoring alone, after loading.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from common import child, write_result


def save_model(folder: Path) -> None:
    import torch

    from clearhead import GPT, build_tokenizer, preset, save

    torch.manual_seed(0)
    save(folder, GPT(preset("gpt2-124m")), build_tokenizer("gpt2"))


def questions(path: Path, limit: int) -> list[tuple[list[tuple[str, str]], int]]:
    from clearhead.evaluate import TASKS

    with path.open() as file:
        rows = [json.loads(line) for _, line in zip(range(limit), file, strict=False)]
    asked = [TASKS["hellaswag"].question(row) for row in rows]
    return [(list(one.pairs), one.answer) for one in asked]


def score(who: str, folder: str, path: str, limit: int, batch: int) -> dict[str, Any]:
    from lm_eval.api.instance import Instance

    asked = questions(Path(path), limit)
    if who == "clearhead":
        from clearhead.recipes.harness import ClearheadLM

        model = ClearheadLM(path=folder, device="cpu")
    else:
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=batch)
    pairs = [pair for some, _ in asked for pair in some]
    requests = [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)]
    began = time.perf_counter()
    found = model.loglikelihood(requests, disable_tqdm=True)
    seconds = time.perf_counter() - began
    each = iter(value for value, _ in found)
    scores = [[next(each) for _ in some] for some, _ in asked]
    return {
        "seconds": seconds,
        "scores": scores,
        "answers": [one.index(max(one)) for one in scores],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="hellaswag_val.jsonl")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument(
        "--batch", type=int, nargs="*", default=[1, 8], help="lm-eval's batch sizes"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        who, folder, batch = given.child
        print(json.dumps(score(who, folder, str(given.data), given.limit, int(batch))))
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_model(folder)
        common = ["--data", str(given.data), "--limit", str(given.limit), "--child"]
        contestants = {"clearhead": ("clearhead", 1)} | {
            f"lm-eval hf, batch {batch}": ("hf", batch) for batch in given.batch
        }
        for name, (who, batch) in contestants.items():
            found[name] = child(__file__, *common, who, str(folder), str(batch))
            print(f"{name}: {found[name]['seconds']:.1f} s")
    ours = found["clearhead"]
    for name, one in found.items():
        one["largest_difference"] = max(
            abs(mine - other)
            for some, others in zip(ours["scores"], one["scores"], strict=True)
            for mine, other in zip(some, others, strict=True)
        )
        same = zip(ours["answers"], one["answers"], strict=True)
        one["equal_answers"] = sum(mine == other for mine, other in same)
        print(f"{name}: {one['equal_answers']} equal, largest {one['largest_difference']:.1e}")
    result = {
        "questions": given.limit,
        "contestants": {
            name: {key: value for key, value in one.items() if key not in ("scores", "answers")}
            for name, one in found.items()
        },
    }
    write_result("evaluate", result, given.json)


if __name__ == "__main__":
    main()
