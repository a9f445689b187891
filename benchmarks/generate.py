"""Generation on gpt2-124m's shape: ours beside llama.cpp, CTranslate2 and transformers.

All have the same random weights, and write greedily what they are told to, whatever the
end-of-text token says. Each is measured in a process of its own, in turn, in each round: a token
after another of one text, the reading of a long prompt, 16 texts at once, and the time to the first
token of a short prompt. Then the time of a whole process that writes one token (with files in the
system's cache), and what prompt lookup gives on text that goes round in circles.

Give a native build's llama-bench by --llama-bench PATH; llama-quantize and llama-batched-bench are
taken from beside it. Without, the package xllamacpp stands for llama.cpp, if it is installed.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import writers
from common import child, write_result

SHORT, LONG, NEW = 16, 512, 128
VOCAB = 50257
AT_MOST = 30.0  # seconds: what one thing may take; a slower one is left out
MEASURES = (
    "decode_tokens_per_s",
    "prefill_tokens_per_s",
    "batch_tokens_per_s",
    "first_token_ms",
)
PROMPT = "The first thing that one sees is"
CIRCLES, TEXTS, BITS_OF_CIRCLES = 128, 4, 16


def measure(write: writers.Writer) -> dict[str, float | None]:
    """Measure a writer; what would take too long is None."""
    random_ids = random.Random(0)

    def seconds(n_prompts: int, length: int, n_tokens: int) -> float:
        prompts = [[random_ids.randrange(VOCAB) for _ in range(length)] for _ in range(n_prompts)]
        began = time.perf_counter()
        write(prompts, n_tokens)
        return time.perf_counter() - began

    seconds(1, SHORT, 2)
    first = statistics.median(seconds(1, SHORT, 1) for _ in range(3))
    each = (seconds(1, SHORT, 5) - first) / 4
    new = NEW if NEW * each < AT_MOST / 2 else NEW // 8
    each = (seconds(1, SHORT, new + 1) - first) / new
    found: dict[str, float | None] = {
        "first_token_ms": 1e3 * first,
        "decode_tokens_per_s": 1 / each,
        "prefill_tokens_per_s": None,
        "batch_tokens_per_s": None,
    }
    if first * LONG / SHORT < AT_MOST:
        seconds(1, LONG, 1)
        found["prefill_tokens_per_s"] = LONG / statistics.median(
            seconds(1, LONG, 1) for _ in range(3)
        )
    if first * writers.BATCH + each * NEW < AT_MOST:
        seconds(writers.BATCH, SHORT, 2)
        found["batch_tokens_per_s"] = writers.BATCH * NEW / seconds(writers.BATCH, SHORT, NEW)
    return found


def limits() -> dict[str, Any]:
    """Measure the machine."""
    import torch

    from clearhead.recipes.limits import memory_bandwidth

    found = memory_bandwidth(times=12)
    return {"bandwidth": found.per_second, "by": found.by, "threads": torch.get_num_threads()}


def read_for_a_token(work: Path) -> dict[str, int]:
    """Return the bytes that ours reads for a token of a text of mean length, by bits."""
    from clearhead import Engine, load
    from clearhead.recipes.quantize import bytes_per_token

    found = {}
    for kind in writers.KINDS["clearhead"]:
        model, _ = load(work / f"clearhead-{kind}", device="cpu")
        cache = Engine(model, slots=1).bytes_per_position * (SHORT + (NEW + 1) / 2)
        found[kind] = bytes_per_token(model) + round(cache)
    return found


def circles(work: Path) -> dict[str, Any]:
    """Write texts that go round in circles, with prompt lookup and without.

    Random weights, greedy, soon repeat themselves; the texts are what follows after as many tokens.
    """
    from clearhead import Engine, SamplingConfig, load

    model, _ = load(work / f"clearhead-{BITS_OF_CIRCLES}", device="cpu")
    random_ids = random.Random(1)
    times: dict[bool, list[float]] = {False: [], True: []}
    guessed, accepted = 0, 0
    sampling = SamplingConfig(temperature=0, max_new_tokens=CIRCLES + 1)
    for number in range(TEXTS + 1):
        prompt = [random_ids.randrange(VOCAB) for _ in range(SHORT)]
        begun = Engine(model, slots=1)
        text = begun.submit(prompt, sampling)
        while begun.step():
            pass
        prompt, written = [*prompt, *text.history.new_ids], {}
        for lookup in (False, True):
            engine = Engine(model, slots=1)
            text = engine.submit(prompt, sampling, prompt_lookup=lookup)
            engine.step()
            began = time.perf_counter()
            while engine.step():
                pass
            seconds = time.perf_counter() - began
            written[lookup] = list(text.history.new_ids)
            if number:  # the first warms up
                times[lookup].append(seconds)
        assert written[False] == written[True]
        if number and text.speculation:
            guessed += text.speculation.proposed
            accepted += text.speculation.accepted
    plain, fast = (TEXTS * CIRCLES / sum(times[lookup]) for lookup in (False, True))
    return {
        "bits": BITS_OF_CIRCLES,
        "texts": TEXTS,
        "tokens": CIRCLES,
        "plain_tokens_per_s": plain,
        "lookup_tokens_per_s": fast,
        "guessed": guessed,
        "accepted": accepted,
    }


def cold_commands(work: Path, llama_bench: Path | None, there: list[str]) -> dict[str, list[str]]:
    """Return commands that write one token from bf16 weights and end."""
    ours = str(work / "clearhead-16")
    options = ["--tokens", "1", "--temperature", "0"]
    found = {
        "clearhead": [
            *(sys.executable, "-m", "clearhead.cli.main", "generate", ours),
            *("--prompt", PROMPT, *options),
        ]
    }
    program = llama_bench.with_name("llama-completion") if llama_bench else None
    if program and program.exists():
        model = str(writers.gguf(work, "BF16"))
        threads = str(os.cpu_count())
        found["llama.cpp"] = [
            *(str(program), "-m", model, "-p", PROMPT, "-n", "1", "-no-cnv", "-t", threads)
        ]
    if "CTranslate2" in there:
        kind = min(
            writers.kinds("CTranslate2"),
            key=lambda one: abs(writers.KINDS["CTranslate2"][one] - 16),
        )
        folder = str(work / f"ctranslate2-{kind}")
        code = (
            "import sys, ctranslate2, tokenizers\n"
            "folder, words, prompt = sys.argv[1:]\n"
            "tokenizer = tokenizers.Tokenizer.from_file(words)\n"
            "generator = ctranslate2.Generator(folder)\n"
            "found = generator.generate_batch([tokenizer.encode(prompt).tokens], max_length=1)\n"
            "print(tokenizer.decode(found[0].sequences_ids[0]))\n"
        )
        words = str(work / "clearhead-32" / "tokenizer.json")
        found[f"CTranslate2, {kind}"] = [sys.executable, "-c", code, folder, words, PROMPT]
    if "transformers" in there:
        code = (
            "import sys, torch\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            "folder, prompt = sys.argv[1:]\n"
            "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
            "model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)\n"
            "ids = tokenizer(prompt, return_tensors='pt')\n"
            "found = model.generate(**ids, do_sample=False, max_new_tokens=1, pad_token_id=0)\n"
            "print(tokenizer.decode(found[0]))\n"
        )
        found["transformers"] = [sys.executable, "-c", code, ours, PROMPT]
    return found


def whole_process(command: list[str]) -> float:
    """Return how long a command takes."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr.decode()[-2000:]}")
    return seconds


def run(work: Path, rounds: int, program: Path | None, left_out: set[str]) -> dict[str, Any]:
    """Measure everything; return the result."""
    there = {name: told for name, told in writers.peers(program).items() if name not in left_out}
    for name in sorted(writers.KINDS.keys() - there.keys() - {"clearhead"}):
        print(f"{name} is left out")
    print("making the models …", flush=True)
    extra = ["--work", str(work), *(["--llama-bench", str(program)] if program else [])]
    child(__file__, "--child", "make", ",".join(there), *extra)
    everyone = [(who, kind) for who in ("clearhead", *there) for kind in writers.kinds(who)]
    # Whoever has as many bits comes next: a host's moods last minutes.
    everyone.sort(key=lambda one: writers.kinds(one[0])[one[1]])
    seen = {one: list[dict[str, Any]]() for one in everyone}
    cold = {name: list[float]() for name in cold_commands(work, program, list(there))}
    machine = []
    for number in range(rounds):
        machine.append(child(__file__, "--child", "limits", "", *extra))
        print(f"round {number + 1}: memory {machine[-1]['bandwidth'] / 1e9:.1f} GB/s", flush=True)
        for (who, kind), found in list(seen.items()):
            try:
                found.append(child(__file__, "--child", who, kind, *extra))
            except SystemExit as error:
                if who == "clearhead":
                    raise
                print(f"{who} {kind} is left out: {str(error).splitlines()[-1]}")
                del seen[who, kind]
                continue
            shown = "  ".join(_shown(found[-1], name) for name in MEASURES)
            print(f"{who + ' ' + kind:24} {shown}", flush=True)
        for name, command in cold_commands(work, program, list(there)).items():
            cold[name] += [whole_process(command), whole_process(command)]
            print(f"{name + ', a whole process':40} {cold[name][-1]:.2f} s", flush=True)
    looked = child(__file__, "--child", "circles", "", *extra)
    read = child(__file__, "--child", "bytes", "", *extra)
    best = max(machine, key=lambda one: one["bandwidth"])
    rows = [
        {"who": who, "kind": kind, "bits": writers.kinds(who)[kind], **_medians(found)}
        for (who, kind), found in seen.items()
    ]
    return {
        "rounds": rounds,
        "at_most_s": AT_MOST,
        "peers": there,
        "short": SHORT,
        "long": LONG,
        "new": NEW,
        "batch": writers.BATCH,
        "bandwidth": best["bandwidth"],
        "bandwidth_by": best["by"],
        "bytes_per_token": read,
        "contestants": rows,
        "cold_start_s": {name: statistics.median(times) for name, times in cold.items()},
        "prompt_lookup": looked,
    }


def _medians(found: list[dict[str, Any]]) -> dict[str, float | None]:
    columns = {name: [one[name] for one in found] for name in MEASURES}
    return {
        name: None if None in column else statistics.median(column)
        for name, column in columns.items()
    }


def _shown(found: dict[str, Any], name: str) -> str:
    value = "–" if found[name] is None else f"{found[name]:.1f}"
    return f"{name.split('_')[0]} {value:>6}"


def ratios(result: dict[str, Any]) -> Iterator[str]:
    """Tell how often ours goes into each peer's figure, at the same bits."""
    ours = {row["bits"]: row for row in result["contestants"] if row["who"] == "clearhead"}
    for row in result["contestants"]:
        told = []
        for name in MEASURES:
            theirs, own = row[name], ours[row["bits"]][name]
            if theirs is not None and own is not None:
                ratio = theirs / own if name.endswith("_ms") else own / theirs
                told.append(f"{name.split('_')[0]} {ratio:.2f} ×")
        if row["who"] != "clearhead":
            yield f"ours beside {row['who']} {row['kind']}: {', '.join(told)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-bench", type=Path, help="a native build's program")
    parser.add_argument("--rounds", type=int, default=2)
    peers = [name for name in writers.KINDS if name != "clearhead"]
    parser.add_argument("--without", nargs="+", default=[], choices=peers, help="leave peers out")
    parser.add_argument("--work", type=Path, help="a folder for the models, to be kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    program, work = arguments.llama_bench, arguments.work
    if program is not None and not program.is_file():
        parser.error(f"{program} is no file")
    if arguments.child:
        who, kind = arguments.child
        print(json.dumps(_in_child(who, kind, work, program)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
        where = (work or Path(folder)).resolve()
        result = run(where, arguments.rounds, program, set(arguments.without))
    print("\n" + "\n".join(ratios(result)))
    write_result("generate", result, arguments.json)


def _in_child(who: str, kind: str, work: Path, program: Path | None) -> dict[str, Any]:
    if who == "make":
        writers.make(work, program, kind.split(","))
        return {}
    others: dict[str, Callable[[], dict[str, Any]]] = {
        "limits": limits,
        "bytes": lambda: read_for_a_token(work),
        "circles": lambda: circles(work),
    }
    if who in others:
        return others[who]()
    if who == "llama.cpp" and program:
        return writers.llama_bench(program, writers.gguf(work, kind), (SHORT, LONG, NEW))
    return measure(writers.WRITERS[who](work, kind))


if __name__ == "__main__":
    main()
