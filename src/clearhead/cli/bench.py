"""`clearhead bench generate`: how fast a model generates here, and what limits it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.parse import Flag, parse
from clearhead.recipes.bench import GenerationBench, bench_generate


@dataclass(frozen=True)
class Arguments:
    """Measure how fast a model generates, and how near that is to the machine's limits."""

    directory: Positional[Path | None] = None
    """A checkpoint, or the folder of a run: then its newest."""
    preset: str | None = None
    """Measure random weights of this shape in place of a checkpoint's."""
    bits: int | None = None
    """Bits a weight: 32, 16, or 8 and 4, to which the weights are rounded for the measurement; by
    default as they are."""
    batch: int = 1
    """How many texts to read and to write at once."""
    prompt_tokens: int | None = None
    """Length of the prompt whose reading is measured; 512 by default, where the context has it."""
    new_tokens: int | None = None
    """How many tokens of each text to write; 128 by default, where the context has room."""
    rounds: int = 5
    """How often to measure; medians are told."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    json: Flag = False
    """Print the result as one JSON object."""


def generate(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    progress = show.progress()
    found = bench_generate(
        parsed.directory,
        preset=parsed.preset,
        bits=parsed.bits,
        batch=parsed.batch,
        prompt_tokens=parsed.prompt_tokens,
        new_tokens=parsed.new_tokens,
        rounds=parsed.rounds,
        device=parsed.device,
        on_stage=lambda stage: show.line(progress, f"{stage} …", "dim"),
    )
    if parsed.json:
        show.as_json(asdict(found))
    else:
        _show(found)
    return 0


def _show(found: GenerationBench) -> None:
    by = "torch" if found.why else f"the {found.backend} kernels"
    threads = f", {found.threads} threads" if found.device == "cpu" else f" on {found.device}"
    many = f", {found.batch} texts at once" if found.batch > 1 else ""
    show.facts(
        {
            "model": f"{found.model}: weights {found.weights}",
            "bits a weight": found.bits,
            "computed by": f"{by}{threads}",
            "because": found.why,
            "reading": f"{found.prefill_tokens_per_s:,.1f} tokens/s, prompts of "
            f"{found.prompt_tokens} tokens{many}",
            "writing": f"{found.decode_tokens_per_s:,.1f} tokens/s, {found.new_tokens} tokens "
            f"after {found.after}{many}",
            "first token": f"{found.first_token_ms:.1f} ms after a prompt of {found.after} tokens",
            "read for a token": f"{show.size(found.bytes_per_token)} of weights"
            f"{' (by all texts together)' if many else ''}, "
            f"{show.size(found.cache_bytes_per_token)} of keys and values",
            "memory": f"{show.size(found.bandwidth)}/s ({found.bandwidth_by}); "
            f"writing takes {found.bandwidth_share:.0%} of it",
            "matrix products": f"{found.matrix_peak / 1e9:,.0f} GFLOP/s "
            f"({found.matrix_peak_by}); reading takes {found.matrix_share:.0%} of it",
            "measured": f"medians of {found.rounds} rounds",
        }
    )
