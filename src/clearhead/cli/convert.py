"""`clearhead import`, `clearhead export` and `clearhead verify`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from clearhead.checkpoint.certificate import Certificate
from clearhead.checkpoint.download import download
from clearhead.checkpoint.download.sources import HUB_NAMES
from clearhead.cli import show
from clearhead.cli.download import Bars
from clearhead.cli.parse import Flag, parse
from clearhead.cli.quantize import show_certificate
from clearhead.recipes.convert import (
    Conversion,
    Stage,
    export_checkpoint,
    import_checkpoint,
    verify_checkpoint,
)
from clearhead.recipes.quantize import is_quantized_checkpoint, verify_quantized


@dataclass(frozen=True)
class ImportArguments:
    """Make a checkpoint of ours from another tool's, with a certificate.

    Its format is recognised by its content: a Hugging Face folder, OpenAI's checkpoint folder,
    GGUF, llm.c's .bin, and the state dicts of nanoGPT, minGPT and the from-scratch book.
    """

    source: Positional[Path]
    """A file or a folder; gpt2, gpt2-medium, gpt2-large, gpt2-xl and distilgpt2 are fetched."""
    out: Positional[Path]
    """The checkpoint to make."""
    tokenizer: str | None = None
    """gpt2, bytes, or a folder with a tokenizer.json, where the source brings none."""
    n_heads: int | None = None
    """The number of attention heads, where the source does not tell."""
    dtype: str | None = None
    """What the weights are stored in: f32, f16 or bf16; as in the source by default."""
    json: Flag = False
    """Print the certificate as one JSON object."""


@dataclass(frozen=True)
class ExportArguments:
    """Write a checkpoint in another tool's format, with a certificate.

    A checkpoint is a Hugging Face folder already, and needs no export for what reads those.
    """

    directory: Positional[Path]
    """A checkpoint, or the folder of a run: then its newest."""
    out: Positional[Path]
    """The folder to make."""
    to: str
    """gguf, nanogpt, llmc, book or onnx."""
    dtype: str = "f32"
    """What the weights are stored in: f32, f16, bf16, and for gguf q8_0 or q4_0."""
    json: Flag = False
    """Print the certificate as one JSON object."""


@dataclass(frozen=True)
class VerifyArguments:
    """Compare a checkpoint once more with another, or with an independent implementation."""

    directory: Positional[Path]
    """A checkpoint, the folder of a run, or what was exported."""
    against: Path | None = None
    """What to compare it with; by default what transformers makes of it, if it is installed."""
    json: Flag = False
    """Print the certificate as one JSON object."""


def import_(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(ImportArguments, arguments, prog)
    if str(parsed.source) in HUB_NAMES and not parsed.source.exists():
        with Bars(show.progress()) as bars:
            download(str(parsed.source), progress=bars)
    made = import_checkpoint(
        parsed.source,
        parsed.out,
        tokenizer=parsed.tokenizer,
        n_heads=parsed.n_heads,
        dtype=parsed.dtype,
        on_stage=_stages(show.progress()),
    )
    return _made(made, parsed.json)


def export(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(ExportArguments, arguments, prog)
    made = export_checkpoint(
        parsed.directory,
        parsed.out,
        parsed.to,
        dtype=parsed.dtype,
        on_stage=_stages(show.progress()),
    )
    return _made(made, parsed.json)


def verify(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(VerifyArguments, arguments, prog)
    if is_quantized_checkpoint(parsed.directory):
        return _verify_quantized(parsed)
    certificate = verify_checkpoint(
        parsed.directory, parsed.against, on_stage=_stages(show.progress())
    )
    if parsed.json:
        show.as_json(certificate.to_json())
    else:
        _show(certificate)
        show.line(show.result(), "they agree", "green")
    return 0


def _verify_quantized(parsed: VerifyArguments) -> int:
    found = verify_quantized(parsed.directory, parsed.against, on_stage=_stages(show.progress()))
    if parsed.json:
        show.as_json(found.to_json())
    else:
        show_certificate(found)
        show.line(show.result(), "it is whole, and its loss within its bits' limit", "green")
    return 0


def _stages(console: Console) -> Stage:
    return lambda stage: show.line(console, f"{stage} …", "dim")


def _made(made: Conversion, as_json: bool) -> int:
    if as_json:
        show.as_json({"path": str(made.path), **made.certificate.to_json()})
    else:
        _show(made.certificate)
        show.facts({"written to": made.path})
    return 0


def _show(certificate: Certificate) -> None:
    weights, agreement = certificate.weights, certificate.agreement
    rows: list[tuple[str, object]] = [
        ("from", f"{certificate.source} ({certificate.source_format})"),
        ("to", f"{certificate.result_format}, stored as {certificate.stored}"),
        ("bytes hashed", f"{sum(one['bytes'] for one in certificate.source_files.values()):,}"),
    ]
    if weights:
        rows += [
            ("tensors", f"{weights.tensors:,}"),
            ("parameters", f"{weights.parameters:,}"),
            ("largest difference of a weight", f"{weights.max_abs_difference:.3g}"),
        ]
    rows += [
        ("the models compared", f"{agreement.ours}; {agreement.theirs}"),
        ("independent implementation", "yes" if agreement.independent else "no"),
        ("token sequences", f"{agreement.sequences} with {agreement.tokens:,} positions"),
        ("largest difference of a logit", f"{agreement.max_abs_logit_difference:.3g}"),
        ("mean difference of the logits", f"{agreement.mean_abs_logit_difference:.3g}"),
        ("same likeliest token", f"{agreement.top1_agreement:.4%}"),
        ("KL divergence (nats a token)", f"{agreement.kl_divergence:.3g}"),
    ]
    if agreement.mean_loss_difference is not None:
        lost = f"{agreement.mean_loss_difference:.3g}"
        rows.append(("difference of the mean loss (nats)", lost))
    rows += [("note", note) for note in certificate.notes]
    show.table("certificate", ("what", "found"), rows)
