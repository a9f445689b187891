"""What generates in benchmarks/generate.py: ours and its peers, each as a function that writes.

A writer takes prompts of equal length and continues each, greedily, by exactly as many tokens as
it is told. llama.cpp's own benchmark is no writer: it reads and writes tokens of its own.
"""

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BATCH = 16
CONTEXT = 1024
Writer = Callable[[Sequence[list[int]], int], object]

KINDS = {
    "clearhead": {"32": 32, "16": 16, "8": 8, "4": 4},
    "llama.cpp": {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8, "Q4_0": 4},
    "CTranslate2": {"float32": 32, "bfloat16": 16, "int8": 8},
    "transformers": {"float32": 32, "bfloat16": 16},
}
"""What the weights may be stored as, and how many bits that is."""


def peers(llama_bench: Path | None) -> dict[str, str]:
    """Return the peers that are here, each with what it is."""
    found = {}
    if llama_bench is not None:
        found["llama.cpp"] = f"llama-bench {_llama_build(llama_bench)}"
    elif find_spec("xllamacpp"):
        found["llama.cpp"] = f"xllamacpp {version('xllamacpp')}"
    for name, package in (("CTranslate2", "ctranslate2"), ("transformers", "transformers")):
        if find_spec(package):
            found[name] = version(package)
    return found


def kinds(who: str) -> dict[str, int]:
    """Return what a contestant can store weights as on this machine."""
    found = KINDS[who]
    if who == "CTranslate2":
        import ctranslate2  # type: ignore[import-not-found]

        able = ctranslate2.get_supported_compute_types("cpu")
        return {kind: bits for kind, bits in found.items() if kind in able}
    return found


def make(work: Path, llama_bench: Path | None, there: Sequence[str]) -> None:
    """Write the same random weights as each contestant reads them, but what is there already."""
    import torch

    from clearhead import checkpoint
    from clearhead.checkpoint.formats.gguf import write_gguf
    from clearhead.checkpoint.formats.source import ModelSource
    from clearhead.model import GPT, preset
    from clearhead.quantize import quantize_nearest
    from clearhead.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer("gpt2")
    for bits in KINDS["clearhead"].values():
        if not (folder := work / f"clearhead-{bits}").exists():
            torch.manual_seed(0)
            model = GPT(preset("gpt2-124m")).eval()
            if bits < 16:
                quantize_nearest(model, bits)
            elif bits == 16:
                model = model.bfloat16()
            checkpoint.save(folder, model, tokenizer)
    source = None
    for kind in KINDS["llama.cpp"] if "llama.cpp" in there else ():
        if (path := gguf(work, kind)).exists():
            continue
        path.parent.mkdir(exist_ok=True)
        quantizer = llama_bench.with_name("llama-quantize") if llama_bench else None
        if kind != "F32" and quantizer and quantizer.exists():
            _run(str(quantizer), str(gguf(work, "F32")), str(path), kind)
            continue
        if source is None:
            model, tokenizer = checkpoint.load(work / "clearhead-32")
            source = ModelSource(model, tokenizer)
        write_gguf(source, path.parent, kind.lower())
    for kind in kinds("CTranslate2") if "CTranslate2" in there else ():
        if not (folder := work / f"ctranslate2-{kind}").exists():
            _convert(work / "clearhead-32", folder, kind)


def gguf(work: Path, kind: str) -> Path:
    """Return where llama.cpp's file of a kind lies."""
    return work / f"gguf-{kind}" / "model.gguf"


def clearhead(work: Path, kind: str) -> Writer:
    from clearhead import Engine, SamplingConfig, load

    model, _ = load(work / f"clearhead-{kind}", device="cpu")
    engine = Engine(model, slots=BATCH)

    def write(prompts: Sequence[list[int]], n_tokens: int) -> None:
        for prompt in prompts:
            engine.submit(prompt, SamplingConfig(temperature=0, max_new_tokens=n_tokens))
        while engine.step():
            pass

    return write


def transformers(work: Path, kind: str) -> Writer:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        work / "clearhead-32", dtype=getattr(torch, kind)
    ).eval()
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def write(prompts: Sequence[list[int]], n_tokens: int) -> None:
        ids = torch.tensor(prompts)
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=n_tokens,
            pad_token_id=0,
        )
        assert found.shape[1] == ids.shape[1] + n_tokens

    return write


def ctranslate2(work: Path, kind: str) -> Writer:
    import ctranslate2 as library

    folder = work / f"ctranslate2-{kind}"
    generator = library.Generator(str(folder), compute_type=kind, intra_threads=os.cpu_count())
    words = json.loads((folder / "vocabulary.json").read_text())

    def write(prompts: Sequence[list[int]], n_tokens: int) -> None:
        found = generator.generate_batch(
            [[words[token] for token in prompt] for prompt in prompts],
            max_length=n_tokens,
            min_length=n_tokens,
            sampling_topk=1,
            end_token=[],
            include_prompt_in_result=False,
        )
        assert all(len(one.sequences_ids[0]) == n_tokens for one in found)

    return write


def xllamacpp(work: Path, kind: str) -> Writer:
    import xllamacpp as library

    settings = library.CommonParams()
    settings.model.path = str(gguf(work, kind))
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = BATCH * CONTEXT, BATCH, 0
    settings.cpuparams.n_threads = os.cpu_count()
    settings.verbosity = -1
    server = library.Server(settings)
    request = {"ignore_eos": True, "cache_prompt": False, "temperature": 0, "return_tokens": True}
    pool = ThreadPoolExecutor(BATCH)

    def write(prompts: Sequence[list[int]], n_tokens: int) -> None:
        def one(prompt: list[int]) -> None:
            found = server.handle_completions({**request, "prompt": prompt, "n_predict": n_tokens})
            found = found if isinstance(found, dict) else json.loads(found)
            assert found["usage"]["completion_tokens"] == n_tokens, found

        list(pool.map(one, prompts))

    return write


WRITERS: dict[str, Callable[[Path, str], Writer]] = {
    "clearhead": clearhead,
    "llama.cpp": xllamacpp,
    "CTranslate2": ctranslate2,
    "transformers": transformers,
}


def llama_bench(program: Path, path: Path, lengths: tuple[int, int, int]) -> dict[str, Any]:
    """Return what llama.cpp's own benchmarks say, in the words of `generate.measure`.

    They choose no tokens. Several texts are measured if llama-batched-bench lies beside.

    Args:
        program: llama-bench.
        path: The model.
        lengths: Tokens of a short prompt and of a long one, and new tokens.
    """
    short, long, new = lengths
    threads = ["-t", str(os.cpu_count())]
    common = [str(program), "-m", str(path), *threads, "-r", "1", "-o", "json"]
    read = json.loads(_run(*common, "-p", f"{short},{long}", "-n", "0"))
    wrote = json.loads(_run(*common, "-p", "0", "-n", str(new), "-d", str(short)))
    speeds = {one["n_prompt"]: statistics.median(one["samples_ts"]) for one in read}
    found = {
        "first_token_ms": 1e3 * short / speeds[short],
        "prefill_tokens_per_s": speeds[long],
        "decode_tokens_per_s": statistics.median(wrote[0]["samples_ts"]),
        "batch_tokens_per_s": None,
    }
    other = program.with_name("llama-batched-bench")
    if other.exists():
        settings = ["-c", str(BATCH * (short + new)), "--output-format", "jsonl"]
        sizes = ["-npp", str(short), "-ntg", str(new), "-npl", str(BATCH)]
        lines = _run(str(other), "-m", str(path), *threads, *settings, *sizes).splitlines()
        last = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
        found["batch_tokens_per_s"] = BATCH * new / last["t"]
    return found


def _llama_build(program: Path) -> str:
    words = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    told = [line for line in (words.stdout + words.stderr).splitlines() if "version:" in line]
    return told[0].split("version:")[1].strip() if told else "of unknown version"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _convert(source: Path, folder: Path, kind: str) -> None:
    import transformers  # noqa: F401 - the converter looks for it
    from ctranslate2.converters import TransformersConverter  # type: ignore[import-not-found]

    TransformersConverter(str(source)).convert(str(folder), quantization=kind)
    config = folder / "config.json"
    values = json.loads(config.read_text())
    # It writes null for the unknown token, which GPT-2 has not, and does not read that again.
    config.write_text(json.dumps({**values, "unk_token": values["eos_token"]}))
