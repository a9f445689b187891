"""`clearhead quantize`: fewer bits a weight, and what that costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.parse import Flag, parse
from clearhead.recipes.quantize import QuantizationCertificate, quantize_checkpoint


@dataclass(frozen=True)
class Arguments:
    """Make a checkpoint with 8 or 4 bits a weight, and measure what that costs."""

    directory: Positional[Path]
    """A checkpoint, or the folder of a run: then its newest."""
    out: Positional[Path]
    """The checkpoint to make."""
    bits: int = 8
    """8 (rounded to nearest) or 4 (rounded by GPTQ, which a text calibrates)."""
    group: int = 64
    """Neighbouring weights that share a scale: 32, 64 or 128; fewer are more exact and larger."""
    calibrate: str = "pydocs"
    """Text for 4 bits, best of the kind that the model will write: a file, a folder, pydocs."""
    text: str = "pydocs"
    """Text to measure the cost on."""
    accept_loss: Flag = False
    """Keep the result even if perplexity grows by more than 0.1 % (8 bits) or 3 % (4 bits)."""
    json: Flag = False
    """Print the certificate as one JSON object."""


def quantize(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    progress = show.progress()
    made = quantize_checkpoint(
        parsed.directory,
        parsed.out,
        bits=parsed.bits,
        group=parsed.group,
        calibrate=parsed.calibrate,
        text=parsed.text,
        accept_loss=parsed.accept_loss,
        on_stage=lambda stage: show.line(progress, f"{stage} …", "dim"),
    )
    if parsed.json:
        show.as_json({"path": str(made.path), **made.certificate.to_json()})
    else:
        show_certificate(made.certificate)
        show.facts({"written to": made.path})
    return 0


def show_certificate(certificate: QuantizationCertificate) -> None:
    """Show what quantising cost."""
    one, cost = certificate, certificate.cost
    how = "to nearest" if one.method == "nearest" else "by GPTQ"
    if one.calibration:
        how += f" on {one.calibration_tokens:,} tokens of {one.calibration}"
    show.facts(
        {
            "from": one.source,
            "stored as": f"{one.bits} bits, a scale for each {one.group} weights",
            "rounded": how,
            "bytes of weights": f"{one.bytes_before:,} → {one.bytes_after:,}",
            "read for a token": f"{one.bytes_per_token_before:,} → {one.bytes_per_token_after:,}",
            "measured on": f"{cost.tokens:,} tokens of {cost.text}",
            "perplexity": f"{cost.perplexity_before:.3f} → {cost.perplexity_after:.3f} "
            f"({cost.loss:+.3%})",
            "KL divergence": f"{cost.kl_divergence:.3g} nats a token",
            "same likeliest token": f"{cost.top1_agreement:.2%}",
        }
    )
