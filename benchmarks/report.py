"""Write docs/benchmarks.md from the JSON in benchmarks/results/."""

import json
from math import comb
from pathlib import Path
from typing import Any

from common import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def main() -> None:
    parts = [
        "# Benchmarks",
        "Made by `benchmarks/report.py` from the JSON that the benchmarks wrote; nothing here is "
        "typed in by hand. Peers ran on the same machine, in the same session, in turn with ours.",
    ]
    for name, section in (
        ("time_to_loss", time_to_loss),
        ("train_step", train_step),
        ("prepare", prepare),
        ("convert", convert),
        ("lens", lens),
        ("classify", classify),
        ("evaluate", evaluate),
        ("generate", generate),
    ):
        path = RESULTS / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            parts += [*section(result), on_machine(result["machine"])]
    PAGE.write_text("\n\n".join(parts) + "\n")
    print(f"written to {PAGE.name}")


def on_machine(machine: dict[str, Any]) -> str:
    bf16 = "with" if machine["bf16"] else "without"
    return (
        f"*{machine['processor']}, {machine['threads']} threads, {bf16} AVX-512 bf16; "
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}; "
        f"{machine['date']}.*"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def time_to_loss(result: dict[str, Any]) -> list[str]:
    rows = []
    whole = result["nanogpt"]["seconds"] if "nanogpt" in result else None
    names = {
        "nanogpt": "nanoGPT's CPU recipe",
        "clearhead_0.25": "clearhead, a quarter of its time",
        "clearhead_1.0": "clearhead, all of its time",
    }
    for key, name in names.items():
        if key in result:
            run = result[key]
            share = f"{run['seconds'] / whole:.2f}" if whole else "–"
            rows.append([name, f"{run['seconds']:.1f}", share, f"{run['val_loss']:.4f}"])
    return [
        "## Time to a loss: shakespeare-char",
        "Trained on the first 90 % of tinyshakespeare's characters, measured on the last 10 %. "
        "Seconds are of the whole process. `python benchmarks/time_to_loss.py --data TEXT "
        "--nanogpt PATH`",
        table(["run", "seconds", "share of nanoGPT's", "nats a character"], rows),
    ]


def train_step(result: dict[str, Any]) -> list[str]:
    ours = result["contestants"]["clearhead"]["tokens_per_second"]
    rows = [
        [
            name,
            f"{row['tokens_per_second']:.0f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['peak_mb']:,.0f}",
            f"{ours / row['tokens_per_second']:.2f} ×",
        ]
        for name, row in result["contestants"].items()
    ]
    return [
        "## A training step: gpt2-124m, B = 4, T = 512",
        "AdamW, bf16 autocast, no dropout, each contestant in a process of its own. The peak is "
        "the best of bf16 matrix products of 1024 to 4096 rows on this machine, "
        f"{result['peak_flops'] / 1e9:.0f} GFLOP/s. "
        "`python benchmarks/train_step.py --nanogpt PATH`",
        table(["contestant", "tokens/s", "of peak", "peak memory (MB)", "ours is"], rows),
    ]


def prepare(result: dict[str, Any]) -> list[str]:
    rows = [
        ["tiktoken, one thread, tokenising only", f"{result['tiktoken_mb_per_s']:.1f}", "1.00 ×"],
        [
            f"clearhead, {result['cores']} processes, written to disk",
            f"{result['prepare_mb_per_s']:.1f}",
            f"{result['ratio']:.2f} ×",
        ],
    ]
    return [
        "## Preparing a corpus with GPT-2's tokenizer",
        f"{result['megabytes']:.0f} MB of text; peak memory of all our processes together "
        f"{result['peak_memory_mb']:.0f} MB. `python benchmarks/prepare.py --data TEXT`",
        table(["", "MB/s", "ratio"], rows),
    ]


def classify(result: dict[str, Any]) -> list[str]:
    names = {
        "gpt": "clearhead, fine-tuned",
        "regression by default": "TF-IDF and logistic regression, scikit-learn's defaults",
        "regression chosen": "the same, chosen on the validation part",
    }
    runs, means = result["runs"], result["means"]
    rows = [
        [
            name,
            " ".join(f"{run[key]['accuracy']:.2%}" for run in runs),
            *(f"{means[key][one]:{kind}}" for one, kind in _MEANS),
        ]
        for key, name in names.items()
    ]
    only_gpt = sum(run["only_gpt_right"] for run in runs)
    only_regression = sum(run["only_regression_right"] for run in runs)
    chosen = ", ".join(sorted({run["regression chosen"]["recipe"] for run in runs}))
    start = result["start"]
    return [
        "## Telling texts apart: SMS spam",
        f"{runs[0]['texts']:,} messages to learn from, {runs[0]['gpt']['n']:,} to test on, in "
        f"{len(runs)} divisions, the same for all. Ours begins with a model of "
        f"{start['parameters']:,} weights, trained for {start['step']:,} steps with clearhead, and "
        f"learns for {result['options']['epochs']:g} epochs. What was chosen on the validation "
        f"part: {chosen}. Of all test messages, ours alone is right on {only_gpt}, "
        f"the regression so chosen alone on {only_regression} (sign test: p = "
        f"{_sign_test(only_gpt, only_regression):.2f}). "
        "`python benchmarks/classify.py TABLE RUN`",
        table(["", "accuracy, each division", "mean", "F1 of spam", "mean F1"], rows),
    ]


def _sign_test(one: int, other: int) -> float:
    """Return how likely so uneven a division is by chance, either way."""
    n, most = one + other, max(one, other)
    return min(1.0, 2 * sum(comb(n, k) for k in range(most, n + 1)) / 2**n)


_MEANS = (("accuracy", ".2%"), ("spam_f1", ".4f"), ("macro_f1", ".4f"))


def convert(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, found in result.items():
        if name == "machine":
            continue
        ours, alone, theirs = (found[who] for who in ("clearhead", "alone", "transformers"))
        size = f"{name} ({found['bytes'] / 1e9:.2f} GB)"
        for who, seconds, one in (
            ("clearhead, written", ours["converted"], ours),
            ("clearhead, written and certified by transformers", ours["verified"], ours),
            ("clearhead, written and certified, no transformers", alone["verified"], alone),
            ("transformers, loaded", theirs["loaded"], theirs),
            ("transformers, loaded and saved", theirs["converted"], theirs),
        ):
            rows.append([f"{size}: {who}", f"{seconds:.1f}", f"{one['peak_over_file']:.2f} ×"])
    return [
        "## Bringing weights in",
        "A Hugging Face folder in fp32, with random weights. The peak is of the process, relative "
        "to the file. `python benchmarks/convert.py`",
        table(["what", "seconds", "peak memory"], rows),
    ]


def lens(result: dict[str, Any]) -> list[str]:
    rows = []
    for what, contestants in result.items():
        if what == "machine":
            continue
        for who, found in contestants.items():
            forward, seconds = found["forward"], found["seconds"]
            rows.append(
                [
                    f"{what}: {who}",
                    f"{forward:.2f}",
                    f"{seconds:.2f}",
                    f"{seconds / forward:.2f}",
                    f"{(seconds - found['base']) / forward:.2f}",
                    f"{found['extra_bytes'] / 1e6:,.0f}",
                ]
            )
    return [
        "## Looking inside: gpt2-124m, T = 1024, fp32",
        "Random weights. A forward pass computes the logits of all positions. Added is what a "
        "measure takes beyond what it runs of the model, in forward passes; ours leaves the "
        "logits out for shares and strengths. Memory is the peak beyond the loaded model's. "
        "TransformerLens ablates three heads of the 144, and its time is told for all. "
        "`python benchmarks/lens.py`",
        table(
            ["", "forward (s)", "measure (s)", "in forwards", "added", "extra memory (MB)"], rows
        ),
    ]


def evaluate(result: dict[str, Any]) -> list[str]:
    contestants = result["contestants"]
    ours = contestants["clearhead"]["seconds"]
    rows = [
        [
            name,
            f"{one['seconds']:.1f}",
            f"{result['questions'] / one['seconds']:.1f}",
            f"{one['seconds'] / ours:.2f} ×",
            f"{one['equal_answers']} of {result['questions']}",
            f"{one['largest_difference']:.0e}",
        ]
        for name, one in contestants.items()
    ]
    return [
        "## Answering questions: HellaSwag on gpt2-124m",
        "Random weights, fp32, log-likelihoods of four endings a question, after loading. "
        "`python benchmarks/evaluate.py --data hellaswag_val.jsonl`",
        table(
            ["", "seconds", "questions/s", "ours is", "answers equal", "largest difference (nats)"],
            rows,
        ),
    ]


def generate(result: dict[str, Any]) -> list[str]:
    draw_generation(result, PAGE.parent / "images" / "generate.svg")
    limits = {
        int(bits): result["bandwidth"] / read for bits, read in result["bytes_per_token"].items()
    }
    contestants = sorted(result["contestants"], key=lambda one: -one["bits"])
    ours = {one["bits"]: one for one in contestants if one["who"] == "clearhead"}
    rows = [
        [
            str(one["bits"]),
            one["who"] if one["who"] == "clearhead" else f"{one['who']}, {one['kind']}",
            *(_beside(ours[one["bits"]], one, name) for name in _SPEEDS),
            f"{one['decode_tokens_per_s'] / limits[one['bits']]:.0%}",
        ]
        for one in contestants
    ]
    peers = ", ".join(f"{name} ({told})" for name, told in result["peers"].items())
    looked = result["prompt_lookup"]
    return [
        "## Writing text: gpt2-124m",
        f"The same random weights in all; {peers}. One text is {result['new']} tokens after a "
        f"prompt of {result['short']}; {result['batch']} texts are as many, each with the reading "
        f"of its prompt, all tokens counted together; reading is a prompt of {result['long']} "
        f"tokens; the first token is that after {result['short']}. All are loaded and warm, and "
        f"the figures are medians of {result['rounds']} rounds. In brackets: how many times as "
        "fast ours is at the same bits. The limit is the memory's speed, "
        f"{result['bandwidth'] / 1e9:.1f} GB/s ({result['bandwidth_by']}), over the bytes of "
        "weights, keys and values that ours reads for a token. llama-bench chooses no tokens. "
        "A dash stands for what is not there or would take over "
        f"{result['at_most_s']:.0f} seconds. `python benchmarks/generate.py --llama-bench PATH`",
        "![Tokens in a second of one text, by bits a weight](images/generate.svg)",
        table(
            ["bits", "", *_SPEEDS.values(), "of the limit"],
            rows,
        ),
        "A whole process that writes one token from bf16 weights, its files in the system's cache:",
        table(
            ["", "seconds"],
            [[name, f"{seconds:.2f}"] for name, seconds in result["cold_start_s"].items()],
        ),
        f"Prompt lookup, on {looked['texts']} texts of {looked['tokens']} tokens that go round in "
        "circles (what random weights write greedily after as many tokens), at "
        f"{looked['bits']} bits: {looked['lookup_tokens_per_s']:.1f} tokens/s where plain writing "
        f"makes {looked['plain_tokens_per_s']:.1f}, "
        f"{looked['lookup_tokens_per_s'] / looked['plain_tokens_per_s']:.2f} times as many; of "
        f"{looked['guessed']:,} guessed tokens {looked['accepted']:,} were right, and the texts "
        "are the same.",
    ]


_SPEEDS = {
    "decode_tokens_per_s": "one text (tokens/s)",
    "batch_tokens_per_s": "16 texts (tokens/s)",
    "prefill_tokens_per_s": "reading (tokens/s)",
    "first_token_ms": "first token (ms)",
}


def _beside(ours: dict[str, Any], one: dict[str, Any], name: str) -> str:
    """Return a figure, and how many times as fast ours is."""
    if one[name] is None:
        return "–"
    if one is ours or ours[name] is None:
        return f"{one[name]:.1f}"
    times = one[name] / ours[name] if name.endswith("_ms") else ours[name] / one[name]
    return f"{one[name]:.1f} ({times:.2f} ×)"


def draw_generation(result: dict[str, Any], path: Path) -> None:
    """Draw the tokens in a second of one text, by bits a weight, and what the memory allows."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "clearhead"  # the same picture, the same file
    best: dict[str, dict[int, float]] = {}
    for one in result["contestants"]:
        speeds = best.setdefault(one["who"], {})
        speeds[one["bits"]] = max(speeds.get(one["bits"], 0), one["decode_tokens_per_s"])
    groups = sorted({bits for speeds in best.values() for bits in speeds}, reverse=True)
    width, named = 0.8 / len(best), set[str]()
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for group, bits in enumerate(groups):
        limit = result["bandwidth"] / result["bytes_per_token"][str(bits)]
        label = None if group else "what the memory allows"
        axes.hlines(limit, group - 0.42, group + 0.42, "#333333", "--", label=label, linewidth=1)
        axes.annotate(f"{limit:.0f}", (group + 0.43, limit), fontsize=8, va="center")
        here = [who for who, speeds in best.items() if bits in speeds]
        for place, who in enumerate(here):
            at = group + (place - (len(here) - 1) / 2) * width
            label = None if who in named else who
            named.add(who)
            bar = axes.bar(at, best[who][bits], 0.92 * width, label=label, color=_COLOURS[who])
            axes.bar_label(bar, fmt="%.0f", fontsize=8, padding=2, bbox=_BEHIND)
    axes.set_xticks(range(len(groups)), [f"{bits} bits" for bits in groups])
    axes.set_ylabel("tokens/s, one text")
    axes.set_title("Writing with gpt2-124m", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(path, metadata={"Date": None})


_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
_COLOURS = {
    "clearhead": "#00897b",
    "llama.cpp": "#b0793a",
    "CTranslate2": "#7a8fa6",
    "transformers": "#c2b8a3",
}


if __name__ == "__main__":
    main()
