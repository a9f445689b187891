"""A checkpoint of 8 or 4 bits a weight, and what that costs."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from clearhead import checkpoint
from clearhead.checkpoint.certificate import describe_files
from clearhead.checkpoint.quantized import quantization_of
from clearhead.config import from_dict
from clearhead.errors import ClearheadError
from clearhead.model import GPT
from clearhead.native import Backend
from clearhead.quantize import check_sizes, quantize_calibrated, quantize_nearest
from clearhead.recipes.texts import read_texts
from clearhead.tokenizer import Tokenizer

CERTIFICATE = "certificate"
COSTS = {8: 0.001, 4: 0.03}
"""By how much perplexity may grow, by the number of bits."""
_LONGEST = 512  # tokens of a text; a longer context is cut into several
_CALIBRATION, _MEASURED = 16_384, 16_384
Stage = Callable[[str], None]


@dataclass(frozen=True)
class Cost:
    """What a model lost, on one text."""

    text: str
    """The text."""
    tokens: int
    """How many of its tokens were predicted."""
    perplexity_before: float
    """Of the model with all bits."""
    perplexity_after: float
    """Of the quantised one."""
    kl_divergence: float
    """Mean divergence of its predictions from the other's, in nats a token."""
    top1_agreement: float
    """Part of the positions at which both think the same token likeliest."""

    @property
    def loss(self) -> float:
        """By how much perplexity grew, as a fraction."""
        return self.perplexity_after / self.perplexity_before - 1


@dataclass(frozen=True)
class QuantizationCertificate:
    """What was quantised, how, and what that cost."""

    source: str
    """The name of what was quantised."""
    source_files: dict[str, dict[str, Any]]
    """Size in bytes and SHA-256 of its config and weights."""
    bits: int
    """8 or 4."""
    group: int
    """Neighbouring weights of a row that share a scale."""
    method: str
    """"nearest": each weight to the nearest number; or "gptq": calibrated on a text."""
    calibration: str | None
    """That text."""
    calibration_tokens: int
    """How many of its tokens."""
    bytes_before: int
    """Of all weights, in fp32."""
    bytes_after: int
    """Of all weights as they are stored now."""
    bytes_per_token_before: int
    """Of the weights that are read for each token: all but embeddings, of which it reads a row."""
    bytes_per_token_after: int
    """The same, as they are stored now."""
    cost: Cost
    """What was lost."""

    def check(self) -> None:
        """Hold the cost against what the number of bits allows.

        Raises:
            ClearheadError: It is more.
        """
        if not self.cost.loss <= COSTS[self.bits]:
            raise ClearheadError(
                f"perplexity grew by {self.cost.loss:.2%}, more than the {COSTS[self.bits]:.1%} "
                f"that {self.bits} bits may cost; nothing was kept (smaller groups or other text "
                "to calibrate with may help; --accept-loss keeps it all the same)"
            )

    def to_json(self) -> dict[str, Any]:
        """Return what certificate.json holds."""
        return asdict(self)


@dataclass(frozen=True)
class Quantized:
    """What quantising made."""

    path: Path
    """The folder."""
    certificate: QuantizationCertificate
    """What it cost; also in clearhead/certificate.json."""


def quantize_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    bits: int = 8,
    group: int = 64,
    calibrate: str = "pydocs",
    text: str = "pydocs",
    accept_loss: bool = False,
    on_stage: Stage = lambda _: None,
) -> Quantized:
    """Make a checkpoint with 8 or 4 bits a weight, and measure what that costs.

    8 bits are rounded to nearest; 4 bits by GPTQ, on a text. Norms, biases and the position
    embedding stay as they are, in fp32.

    Args:
        path: A checkpoint, or a run: then its newest.
        out: The checkpoint to make; it must not exist.
        bits: 8 or 4.
        group: Neighbouring weights of a row that share a scale: 32, 64 or 128.
        calibrate: The text for 4 bits, best of the kind that the model will write: what `train`
            takes.
        text: The text to measure on. What calibrated is left out, where both are the same.
        accept_loss: Whether to keep a result that lost more than its bits should cost.
        on_stage: Told what is being done.

    Raises:
        ClearheadError: The checkpoint is damaged, quantised already, an adapter or a classifier; a
            text is too short; or the loss is too great. Nothing is left of it then.
    """
    out = Path(out)
    if out.exists():
        raise ClearheadError(f"{out} exists already; delete it, or choose another name")
    check_sizes(bits, group)
    folder = checkpoint.resolve(Path(path))
    on_stage(f"reading {folder}")
    before, tokenizer = checkpoint.load(folder, dtype=torch.float32)
    before.config.check_next_token()
    n_calibration = _CALIBRATION if bits == 4 else 0
    same = text == calibrate
    measured = _texts(before, tokenizer, text, _MEASURED, skip=n_calibration if same else 0)
    model = deepcopy(before)
    if bits == 4:
        batches = _texts(before, tokenizer, calibrate, n_calibration)
        on_stage("rounding the embedding")
        n_blocks = len(model.blocks)
        quantize_calibrated(
            model, bits, group, batches, lambda n: on_stage(f"rounding block {n} of {n_blocks}")
        )
    else:
        batches = []
        on_stage("rounding")
        quantize_nearest(model, bits, group)
    on_stage("measuring")
    certificate = QuantizationCertificate(
        source=folder.resolve().name,
        source_files=describe_files([folder / "config.json", *_weights(folder)], folder),
        bits=bits,
        group=group,
        method="gptq" if bits == 4 else "nearest",
        calibration=calibrate if batches else None,
        calibration_tokens=sum(ids.numel() for ids in batches),
        bytes_before=_bytes(before),
        bytes_after=_bytes(model),
        bytes_per_token_before=bytes_per_token(before),
        bytes_per_token_after=bytes_per_token(model),
        cost=measure(before, model, measured, text),
    )
    if not accept_loss:
        certificate.check()
    on_stage(f"writing {out}")
    checkpoint.save(out, model, tokenizer, documents={CERTIFICATE: certificate.to_json()})
    return Quantized(out, certificate)


def verify_quantized(
    path: Path, against: Path | None = None, *, text: str = "pydocs", on_stage: Stage = print
) -> QuantizationCertificate:
    """Load a quantised checkpoint anew, and measure what it costs once more if its source is given.

    Args:
        path: The checkpoint.
        against: What it was made from.
        text: The text to measure on.
        on_stage: Told what is being done.

    Raises:
        ClearheadError: A file is damaged, `against` is not what it was made from, or the loss is
            too great.
    """
    on_stage(f"reading {path}")
    told = checkpoint.load_document(path, CERTIFICATE)
    model, tokenizer = checkpoint.load(path, quantized=True)
    cost = from_dict(Cost, told.pop("cost"), str(path))
    known = {one.name for one in fields(QuantizationCertificate)}
    certificate = QuantizationCertificate(
        cost=cost, **{key: value for key, value in told.items() if key in known}
    )
    if against is not None:
        on_stage(f"reading {against}")
        folder = checkpoint.resolve(against)
        files = describe_files([folder / "config.json", *_weights(folder)], folder)
        if files != certificate.source_files:
            raise ClearheadError(f"{path} was not made from {against}: its files are others")
        before, _ = checkpoint.load(folder, dtype=torch.float32)
        on_stage("comparing")
        texts = _texts(before, tokenizer, text, _MEASURED, skip=certificate.calibration_tokens)
        certificate = QuantizationCertificate(
            **{**certificate.__dict__, "cost": measure(before, model, texts, text)}
        )
    certificate.check()
    return certificate


def is_quantized_checkpoint(path: Path) -> bool:
    """Say whether a folder is a quantised checkpoint of ours."""
    return (path / "config.json").is_file() and quantization_of(path) is not None


@torch.inference_mode()
def measure(before: GPT, after: GPT, texts: list[Int[Tensor, "_ T"]], name: str) -> Cost:
    """Compare two models' predictions on texts.

    Args:
        before: The model with all bits.
        after: The quantised one, as the engine computes it here: the native kernels round
            activations, keys and values, too.
        texts: Token ids, in batches.
        name: What the texts are called.
    """
    losses, divergence, same, n = [0.0, 0.0], 0.0, 0, 0
    reader = Backend(after)
    for ids in texts:
        targets = ids[:, 1:].flatten()
        found = reader.read(ids, reader.cache(len(ids)), all_logits=True)  # [B, T, V]
        p, q = (logits[:, :-1].flatten(0, 1).log_softmax(-1) for logits in (before(ids), found))
        for which, predicted in enumerate((p, q)):
            losses[which] += F.nll_loss(predicted, targets, reduction="sum").item()
        divergence += (p.exp() * (p - q)).sum().item()
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        n += len(targets)
    return Cost(name, n, math.exp(losses[0] / n), math.exp(losses[1] / n), divergence / n, same / n)


def bytes_per_token(model: GPT) -> int:
    """Return the bytes of weights that are read for each token."""
    held = {
        id(tensor): tensor.nbytes
        for module in (model.blocks, model.norm, model.head)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(held.values())


def _bytes(model: GPT) -> int:
    held = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return sum(held.values())


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _texts(
    model: GPT, tokenizer: Tokenizer, source: str, n_tokens: int, *, skip: int = 0
) -> list[Int[Tensor, "_ T"]]:
    """Return the first tokens of a text, or those behind as many more, in batches."""
    length = min(model.config.context_length, _LONGEST)
    rows = read_texts(source, tokenizer, n_texts=(n_tokens + skip) // length, length=length)
    first = skip // length
    if first and len(rows) < 2 * first:  # a short text is shared fairly
        first = len(rows) // 2
    wanted = rows[first:] if skip else rows
    if not len(wanted):
        raise ClearheadError(
            f"{source} has {rows.numel()} tokens, too few to calibrate on some and measure on "
            "others; give another text with --text"
        )
    return list(torch.split(wanted, max(1, _LONGEST // length)))
