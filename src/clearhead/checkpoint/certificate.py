"""Proof that a conversion changed nothing: tensors compared, and the models that they make."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clearhead.checkpoint.checksums import read_json
from clearhead.checkpoint.formats.source import Source
from clearhead.checkpoint.formats.table import our_weights
from clearhead.errors import ClearheadError
from clearhead.files import sha256_file
from clearhead.model import GPTConfig

_NO_TARGET = -1
_SEED = 20190214
_SHORT = 8


@dataclass(frozen=True)
class Tolerance:
    """How far two models may differ and still be called equal."""

    weight: float
    """Largest difference of a weight, relative to the largest of its tensor."""
    logit: float
    """Largest difference of a logit, relative to the largest logit (or to 1)."""
    divergence: float
    """Largest mean KL divergence, in nats a token."""


# Rounding in another order moves logits by some 1e-6 of their size; the rest are the steps of the
# smaller types, with the divergence that they may bring.
TOLERANCES = {
    "f32": Tolerance(0.0, 1e-4, 1e-5),
    "f16": Tolerance(2.0**-11, 1e-2, 1e-3),
    "bf16": Tolerance(2.0**-8, 5e-2, 1e-2),
    "q8_0": Tolerance(2.0**-7, 1e-1, 2e-2),
    "q4_0": Tolerance(0.15, math.inf, 1.0),
}
"""By the type that a conversion stores."""


@dataclass(frozen=True)
class Weights:
    """What was moved."""

    tensors: int
    """How many."""
    parameters: int
    """Their elements."""
    sha256: str
    """Of all tensors of the result, in the order of the model, as little-endian float32."""
    max_abs_difference: float
    """Largest difference of an element between source and result."""
    max_relative_difference: float
    """The same, relative to the largest element of its tensor."""
    worst: str
    """The tensor in which that is."""
    not_finite: int
    """Elements that are infinite or not a number, in the source."""


@dataclass(frozen=True)
class Agreement:
    """How the two models agree on a fixed set of token sequences."""

    ours: str
    """What computed one side."""
    theirs: str
    """What computed the other."""
    independent: bool
    """Whether one side is an implementation that is not ours."""
    rounding: str
    """The type to which the coarser side rounds intermediate results."""
    sequences: int
    """Sequences compared: short ones, a full context, and the vocabulary's edges."""
    tokens: int
    """Positions compared."""
    max_abs_logit_difference: float
    """Largest difference of a logit."""
    mean_abs_logit_difference: float
    """Mean difference of the logits."""
    largest_logit: float
    """The largest logit, to judge the differences by."""
    top1_agreement: float
    """Part of the positions at which both think the same token likeliest."""
    kl_divergence: float
    """Mean KL divergence, in nats a token."""
    mean_loss_difference: float | None
    """Difference of the mean loss on the next token, in nats a token; None for a classifier."""


@dataclass(frozen=True)
class Certificate:
    """What was converted, from what, and how well the result agrees."""

    source: str
    """The name of what was read."""
    source_format: str
    """Its format."""
    source_files: dict[str, dict[str, Any]]
    """Size in bytes and SHA-256 of each of its files."""
    config: dict[str, Any]
    """The model's shape, which not every format tells."""
    result_format: str
    """The format of what was written."""
    stored: str
    """The type that the result stores: f32, f16, bf16, q8_0 or q4_0."""
    same_activation: bool
    """Whether both formats compute the same GELU; otherwise that moves the logits too."""
    exact: bool
    """Whether that type holds every weight of the source exactly."""
    weights: Weights | None
    """The tensors; none where the result's cannot be read back, as in a graph of operations."""
    agreement: Agreement
    """The models."""
    notes: list[str]
    """What a person should know."""

    def check(self) -> None:
        """Hold the differences against the tolerance of the stored type.

        Raises:
            ClearheadError: One is beyond it.
        """
        found, limits = self.agreement, []
        order = list(TOLERANCES)
        tolerance = TOLERANCES[self.stored]
        rounding = TOLERANCES[max(self.stored, found.rounding, key=order.index)]
        if self.weights:
            limit = 0.0 if self.exact else tolerance.weight
            named = f"the weights of {self.weights.worst}"
            limits = [(named, self.weights.max_relative_difference, limit)]
        is_finite = not (self.weights and self.weights.not_finite)  # NaN agrees with nothing
        if is_finite and self.same_activation:
            logit = found.max_abs_logit_difference / max(1.0, found.largest_logit)
            limits.append(("the logits", logit, rounding.logit))
            limits.append(("the KL divergence", found.kl_divergence, rounding.divergence))
        for what, value, limit in limits:
            if not value <= limit:
                raise ClearheadError(
                    f"the result differs from {self.source}: {what} by {value:.2g}, more than the "
                    f"{limit:.2g} that {self.stored} explains; nothing was kept"
                )

    def to_json(self) -> dict[str, Any]:
        """Return what certificate.json holds."""
        return _finite(asdict(self))


def read_certificate(path: Path) -> Certificate:
    """Read a certificate.

    Raises:
        ClearheadError: It is missing or damaged.
    """
    values = read_json(path)
    try:
        names = {field.name for field in fields(Certificate)}
        given = {name: value for name, value in values.items() if name in names}
        moved, agreement = given.pop("weights"), Agreement(**given.pop("agreement"))
        weights = Weights(**moved) if moved else None
        return Certificate(weights=weights, agreement=agreement, **given)
    except (KeyError, TypeError, AttributeError) as error:
        raise ClearheadError(f"{path} is damaged: it is no certificate") from error


def compare_weights(source: Source, result: Source) -> Weights:
    """Compare every tensor of two sources, one at a time.

    Raises:
        ClearheadError: They have different shapes.
    """
    if _shape(source.config) != _shape(result.config):
        raise ClearheadError(
            f"{source.path} and {result.path} are models of different shape: "
            f"{_differences(source.config, result.config)}"
        )
    digest = hashlib.sha256()
    tensors = parameters = not_finite = 0
    largest, relative, worst = 0.0, 0.0, ""
    for name, shape in our_weights(source.config):
        for before, after in _slices(source.read(name), result.read(name)):
            digest.update(after.contiguous().numpy().data)
            if torch.equal(before, after) and before.sum().isfinite():
                continue
            not_finite += int((~before.isfinite()).sum())
            same = (before == after) | (before.isnan() & after.isnan())
            apart = (before - after).abs().nan_to_num(nan=math.inf)
            difference = float(apart.masked_fill_(same, 0.0).max())
            share = difference / max(float(before.abs().nan_to_num().max()), 1e-30)
            largest = max(largest, difference)
            if share > relative:
                relative, worst = share, source.theirs(name)
        tensors, parameters = tensors + 1, parameters + math.prod(shape)
    return Weights(tensors, parameters, digest.hexdigest(), largest, relative, worst, not_finite)


def _slices(before: Tensor, after: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both as float32, some rows at a time, so that no second copy is made of a large one."""
    rows = max(1, 2**24 // max(1, before[0].numel()))
    for start in range(0, len(before), rows):
        one, other = before[start : start + rows], after[start : start + rows]
        yield one.float(), other.float()


def sequences(config: GPTConfig, end_of_text: int) -> list[Int[Tensor, "_ _"]]:
    """Return the token sequences on which models are compared, the same for each shape.

    Short ones, the vocabulary's edges and the end-of-text token, and a full context.
    """
    generator = torch.Generator().manual_seed(_SEED)
    vocabulary, length = config.vocab_size, config.context_length
    short = min(_SHORT, length)
    edges = torch.tensor([[0, vocabulary - 1, end_of_text % vocabulary, 0] * 2])[:, :short]
    drawn = torch.randint(vocabulary, (4, short), generator=generator)
    return [
        torch.cat([edges, drawn]),
        torch.randint(vocabulary, (1, 1), generator=generator),
        torch.randint(vocabulary, (1, length), generator=generator),
    ]


@dataclass
class _Sums:
    positions: int = 0
    elements: int = 0
    losses: int = 0
    largest: float = 0.0
    largest_logit: float = 0.0
    difference: float = 0.0
    same: int = 0
    divergence: float = 0.0
    loss: float = 0.0


def compare_logits(
    batches: list[Int[Tensor, "_ _"]],
    ours: list[Float[Tensor, "_ _ V"]],
    theirs: list[Float[Tensor, "_ _ V"]],
    names: tuple[str, str],
    *,
    at: slice,
    independent: bool,
    rounding: str = "f32",
    of_labels: bool = False,
) -> Agreement:
    """Compare what two models make of the same sequences.

    Args:
        batches: The tokens.
        ours: One model's logits for each batch.
        theirs: The other's.
        names: What computed either.
        at: The positions of each sequence that the logits are of.
        independent: Whether one of them is not our implementation.
        rounding: The type to which one of them rounds intermediate results.
        of_labels: Whether the logits are of labels, so that no next token can be told.
    """
    sums = _Sums()
    for tokens, one, other in zip(batches, ours, theirs, strict=True):
        following = torch.full_like(tokens, _NO_TARGET) if of_labels else tokens
        targets = F.pad(following[:, 1:], (0, 1), value=_NO_TARGET)[:, at]
        for row in range(len(tokens)):
            _add(sums, targets[row], one[row].float(), other[row].float())
    return Agreement(
        *names,
        independent,
        rounding,
        sequences=sum(len(tokens) for tokens in batches),
        tokens=sums.positions,
        max_abs_logit_difference=sums.largest,
        mean_abs_logit_difference=sums.difference / sums.elements,
        largest_logit=sums.largest_logit,
        top1_agreement=sums.same / sums.positions,
        kl_divergence=sums.divergence / sums.positions,
        mean_loss_difference=None if of_labels else sums.loss / max(1, sums.losses),
    )


def _add(
    sums: _Sums,
    targets: Int[Tensor, " T"],
    ours: Float[Tensor, "T V"],
    theirs: Float[Tensor, "T V"],
) -> None:
    """Add one sequence's differences; the targets are the tokens that follow each position."""
    difference = (ours - theirs).abs()
    sums.positions += len(ours)
    sums.elements += ours.numel()
    sums.largest = max(sums.largest, float(difference.max()))
    sums.largest_logit = max(sums.largest_logit, float(ours.abs().max()))
    sums.difference += float(difference.sum(dtype=torch.float64))
    sums.same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    first, second = ours.log_softmax(-1), theirs.log_softmax(-1)
    sums.divergence += float(F.kl_div(second, first, log_target=True, reduction="sum"))
    told = targets != _NO_TARGET
    sums.losses += int(told.sum())
    sums.loss += float((first - second)[told].gather(-1, targets[told, None]).sum())


def describe_files(files: list[Path], root: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of each file, by its name below root."""
    return {
        (path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name): {
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in files
    }


def _shape(config: GPTConfig) -> tuple[int, ...]:
    return (
        config.vocab_size,
        config.context_length,
        config.d_model,
        config.n_heads,
        config.n_layers,
        config.tied_head,
    )


def _differences(one: GPTConfig, other: GPTConfig) -> str:
    names = ("vocab_size", "context_length", "d_model", "n_heads", "n_layers", "tied_head")
    pairs = [(name, getattr(one, name), getattr(other, name)) for name in names]
    return ", ".join(f"{name} {a} and {b}" for name, a, b in pairs if a != b)


def _finite(value: Any) -> Any:
    """Return a document with numbers that JSON has not as their names."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
