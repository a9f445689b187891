"""How fast a model generates here, beside what the machine would allow."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import cast

import torch

from clearhead.engine import Engine, SamplingConfig
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig
from clearhead.model import preset as shape
from clearhead.quantize import QuantizedLinear, is_quantized, quantize_nearest
from clearhead.recipes.limits import Limit, fastest_products, memory_bandwidth
from clearhead.recipes.load import load
from clearhead.recipes.quantize import bytes_per_token
from clearhead.train import resolve_device

SHORT = 16
"""Tokens of the prompt before a first token, and before those whose writing is measured."""
_DTYPES = {32: torch.float32, 16: torch.bfloat16}
_GROUP = 64
_PROMPT, _NEW = 512, 128
Stage = Callable[[str], None]


@dataclass(frozen=True)
class GenerationBench:
    """How fast a model generated, and what part of the machine's limits that is.

    Speeds are medians over the rounds, each with prompts of its own; limits are the best seen.
    """

    model: str
    """The checkpoint's folder, or the preset."""
    weights: str
    """Where the weights are from, and what was done to them for this."""
    bits: int
    """Bits a weight."""
    backend: str
    """What computed a token: the native kernels' instruction set, or "torch"."""
    why: str | None
    """Why torch did and not the native kernels; None if they did."""
    device: str
    """Where."""
    threads: int
    """By how many threads, on a CPU."""
    batch: int
    """How many texts were read or written at once."""
    prompt_tokens: int
    """Length of the prompt that was read."""
    new_tokens: int
    """How many tokens of each text were written, the first after its prompt not counted."""
    after: int
    """Length of the prompt that they followed."""
    rounds: int
    """How often it was measured."""
    prefill_tokens_per_s: float
    """Tokens of prompts read in a second, up to the choice of the token that follows."""
    decode_tokens_per_s: float
    """New tokens of all texts written in a second."""
    first_token_ms: float
    """From a prompt of `after` tokens, given alone, to its first token, in milliseconds."""
    bytes_per_token: int
    """Weights read for a new token, or for one of each text where several are written at once."""
    cache_bytes_per_token: int
    """Keys and values read for a new token, of a text of mean length."""
    bandwidth: float
    """Bytes that the memory gave in a second at most."""
    bandwidth_by: str
    """What read them."""
    bandwidth_share: float
    """The part of that which writing took: weights, keys and values by tokens in a second."""
    matrix_peak: float
    """Floating-point operations that matrix products made in a second at most."""
    matrix_peak_by: str
    """In which number type."""
    matrix_share: float
    """The part of that which reading prompts took."""


def bench_generate(
    path: str | Path | None = None,
    *,
    preset: str | None = None,
    bits: int | None = None,
    batch: int = 1,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    rounds: int = 5,
    device: str = "auto",
    on_stage: Stage = lambda _: None,
) -> GenerationBench:
    """Measure how fast a model reads prompts and writes, and how near to the machine's limits.

    What is measured is the public `Engine`, greedy, on random prompts, without speculation; the
    end-of-text token ends nothing. A first round is not counted.

    Args:
        path: A checkpoint, or a run: then its newest.
        preset: In place of it, random weights of this shape.
        bits: 32 or 16: the weights as fp32 or bf16. 8 or 4: rounded to nearest for the measurement.
            By default as they are, or 32 for a preset. A quantised checkpoint keeps its own.
        batch: How many texts at once.
        prompt_tokens: Length of the prompt whose reading is measured; 512 by default, or as many
            as the context has.
        new_tokens: How many tokens of each text, after a prompt of 16 and a first one; 128 by
            default, or as many as the context has room for.
        rounds: How often to measure.
        device: Where to compute; auto is the fastest device there is.
        on_stage: Told what is being done.

    Raises:
        ClearheadError: There is neither path nor preset, or both; the checkpoint is none, a
            classifier, or quantised to other bits; or a text would not fit into the context.
    """
    for name, number in (("batch", batch), ("rounds", rounds)):
        if number < 1:
            raise ClearheadError(f"{name} is {number}; it must be at least 1")
    model, weights = _model(path, preset, bits, device, on_stage)
    prompt, after, new = _lengths(model.config, prompt_tokens, new_tokens)
    engine = Engine(model, slots=batch, capacity=max(prompt, after + new))
    measured = _Rounds(engine, model.config.vocab_size)
    dtype = model.position_embedding.weight.dtype
    for number in range(rounds + 1):
        on_stage(f"round {number} of {rounds}" if number else "warming up")
        measured.add(batch, prompt, after, new, counts=number > 0)
        measured.memory = _larger(measured.memory, memory_bandwidth(model.device))
        if number in (0, rounds):
            measured.products = _larger(measured.products, fastest_products(dtype, model.device))
    memory, products = measured.memory, measured.products
    prefill, decode = (median(seen) for seen in (measured.prefill, measured.decode))
    cache = round(engine.bytes_per_position * (after + (new + 1) / 2))
    read = bytes_per_token(model)
    return GenerationBench(
        model=str(path) if preset is None else preset,
        weights=weights,
        bits=bits_of(model),
        backend=engine.backend,
        why=engine.why,
        device=str(model.device),
        threads=torch.get_num_threads(),
        batch=batch,
        prompt_tokens=prompt,
        new_tokens=new,
        after=after,
        rounds=rounds,
        prefill_tokens_per_s=batch * prompt / prefill,
        decode_tokens_per_s=batch * new / decode,
        first_token_ms=median(measured.first) * 1e3,
        bytes_per_token=read,
        cache_bytes_per_token=cache,
        bandwidth=memory.per_second,
        bandwidth_by=memory.by,
        bandwidth_share=(read + batch * cache) * new / decode / memory.per_second,
        matrix_peak=products.per_second,
        matrix_peak_by=products.by,
        matrix_share=batch * flop_of_prompt(model.config, prompt) / prefill / products.per_second,
    )


def bits_of(model: GPT) -> int:
    """Return how many bits a weight of the model's matrices has."""
    if is_quantized(model):
        return cast(QuantizedLinear, model.head).bits
    return model.head.weight.element_size() * 8


def flop_of_prompt(config: GPTConfig, n_tokens: int) -> int:
    """Return the floating-point operations that reading a prompt takes at least.

    These are the matrix products of each token, its scores and sums over the tokens up to it, and
    the logits of the last.
    """
    width, layers = config.d_model, config.n_layers
    products = 2 * 12 * layers * width**2 * n_tokens
    attention = 4 * layers * width * n_tokens * (n_tokens + 1) // 2
    return products + attention + 2 * width * config.n_outputs


class _Rounds:
    """What was seen so far: seconds, and the machine's limits."""

    def __init__(self, engine: Engine, vocab_size: int) -> None:
        self.first: list[float] = []
        self.prefill: list[float] = []
        self.decode: list[float] = []
        self.memory, self.products = Limit(0.0, ""), Limit(0.0, "")
        self._engine, self._vocab_size = engine, vocab_size
        self._generator = torch.Generator().manual_seed(0)

    def add(self, batch: int, prompt: int, after: int, new: int, *, counts: bool) -> None:
        """Measure once more."""
        first = self._begin(1, after, 1)
        prefill = self._begin(batch, prompt, 1)
        self._begin(batch, after, new + 1)
        began = time.perf_counter()
        for _ in range(new):
            self._engine.step()
        decode = time.perf_counter() - began
        if counts:
            self.first.append(first)
            self.prefill.append(prefill)
            self.decode.append(decode)

    def _begin(self, batch: int, length: int, new: int) -> float:
        """Let texts join; return the seconds until each has its first token.

        Their prompts are new, since the engine does not read one twice.
        """
        shape = (batch, length)
        prompts = torch.randint(self._vocab_size, shape, generator=self._generator).tolist()
        sampling = SamplingConfig(temperature=0, max_new_tokens=new)
        began = time.perf_counter()
        for ids in prompts:
            self._engine.submit(ids, sampling)
        self._engine.step()
        return time.perf_counter() - began


def _larger(one: Limit, other: Limit) -> Limit:
    """Return the larger of two, for what else runs on a machine changes its speed."""
    return max(one, other, key=lambda limit: limit.per_second)


def _model(
    path: str | Path | None, preset: str | None, bits: int | None, device: str, on_stage: Stage
) -> tuple[GPT, str]:
    """Return the model to measure, and what its weights are."""
    if (path is None) == (preset is None):
        raise ClearheadError("give a checkpoint or the name of a preset, one of the two")
    if bits not in (None, 32, 16, 8, 4):
        raise ClearheadError(f"bits is {bits}; it must be 32, 16, 8 or 4")
    dtype = None if bits is None else _DTYPES.get(bits, torch.float32)
    if preset is not None:
        config = shape(preset)
        on_stage(f"drawing weights for {preset}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = GPT(config).to(resolve_device(device), dtype).eval()
        weights = "random"
    else:
        assert path is not None
        on_stage(f"reading {path}")
        model, _ = load(path, device=device, dtype=dtype)
        weights = "as saved"
        if is_quantized(model):
            if bits not in (None, bits_of(model)):
                raise ClearheadError(
                    f"{path} has {bits_of(model)} bits a weight, not {bits}; leave the bits out, "
                    "or give the checkpoint that it was made from"
                )
            return model, weights
        if bits in _DTYPES:
            weights = f"as {dtype}".replace("torch.", "")
    if bits in (8, 4):
        on_stage(f"rounding to {bits} bits")
        quantize_nearest(model, bits, _GROUP)
        weights = f"{weights}, rounded to nearest for this measurement"
    return model, weights


def _lengths(
    config: GPTConfig, prompt_tokens: int | None, new_tokens: int | None
) -> tuple[int, int, int]:
    """Return the lengths of the long prompt, of the short one, and of what is written."""
    context = config.context_length
    if context < 2:
        raise ClearheadError(f"the model's context is {context}: there is nothing to write in it")
    after = min(SHORT, context - 1)
    prompt = min(_PROMPT, context) if prompt_tokens is None else prompt_tokens
    new = min(_NEW, context - after) if new_tokens is None else new_tokens
    for name, number, most in (
        ("prompt_tokens", prompt, context),
        ("new_tokens", new, context - after),
    ):
        if not 1 <= number <= most:
            room = f", what the context of {context} has room for" if number > most else ""
            raise ClearheadError(f"{name} is {number}; it must be from 1 to {most}{room}")
    return prompt, after, new
