"""What the loss becomes without a head, or without several.

The model is not run anew for each: the residual stream after the layer's attention is kept, what
the head added to it is replaced, and the rest is run, for many variants at once.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.lens.edits import Change, edit, replace_head
from clearhead.lens.loss import token_losses
from clearhead.lens.result import Proof, Result, array, prove
from clearhead.lens.taps import Taps, check_heads, check_layers, evaluating, run
from clearhead.lens.texts import check_texts
from clearhead.lens.weights import weights
from clearhead.model import GPT

How = Literal["mean", "zero", "resample"]
HeadSet = tuple[tuple[int, int], ...]
_Replace = Callable[[int, int], Float[Tensor, "... K"]]
SEGMENTS = 8
"""Into how many stretches a text's loss is divided, to judge its spread by."""
_TOKENS = 2048  # of all variants together that go through the model at once
_DRAWS = 1000
_FEW = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Ablation(Result):
    """How much worse the model predicts without some heads."""

    delta: Float[Tensor, " sets"] = array("set", unit="nats a token")
    """ΔL: the loss without them less the loss with them."""
    low: Float[Tensor, " sets"] = array("set", unit="nats a token")
    """The 95 % interval of ΔL, by bootstrap, begins here…"""
    high: Float[Tensor, " sets"] = array("set", unit="nats a token")
    """…and ends here."""
    per_text: Float[Tensor, "N sets"] = array("text", "set", unit="nats a token")
    """ΔL of each text."""
    sets: tuple[HeadSet, ...]
    """Which heads were replaced together, as (layer, head)."""
    how: How
    """By what: their mean over the data, zero, or what they say in another text."""
    loss: float
    """The loss of the model as it is."""
    drawn: Literal["texts", "segments"]
    """What the bootstrap drew anew: whole texts, or stretches of text where the texts are few."""

    def by_head(self, n_layers: int, n_heads: int) -> dict[str, Float[Tensor, "L H"]]:
        """Return delta, low and high of single heads by layer and head; others are not a number."""
        found = {}
        for name in ("delta", "low", "high"):
            grid = torch.full((n_layers, n_heads), torch.nan, dtype=self.delta.dtype)
            for at, heads in enumerate(self.sets):
                if len(heads) == 1:
                    grid[heads[0]] = getattr(self, name)[at]
            found[name] = grid
        return found


@torch.no_grad()
def head_means(model: GPT, texts: Int[Tensor, "N T"]) -> Float[Tensor, "L H K"]:
    """Return each head's mean output over all tokens of the texts."""
    check_texts(model, texts)
    total: Any = 0
    for text in texts:
        seen = run(model, text[None], "z")
        total = total + torch.stack(
            [seen["z", layer][0].double().mean(0) for layer in range(model.config.n_layers)]
        )
    return (total / len(texts)).to(model.head.weight.dtype)


def single_heads(model: GPT) -> list[HeadSet]:
    """Return each head of the model as a set of its own."""
    config = model.config
    return [((layer, head),) for layer in range(config.n_layers) for head in range(config.n_heads)]


@torch.no_grad()
def ablate_heads(
    model: GPT,
    texts: Int[Tensor, "N T"],
    sets: Sequence[HeadSet] | None = None,
    *,
    how: How = "mean",
    seed: int = 0,
    done: Sequence[Float[Tensor, "segments columns"]] = (),
    on_text: Callable[[Float[Tensor, "segments columns"]], None] | None = None,
) -> Ablation:
    """Measure how much worse the model predicts without heads, each alone or some together.

    Args:
        model: The model.
        texts: Texts of equal length, at least two tokens.
        sets: Which heads to replace together, as (layer, head); each head alone by default.
        how: Replace their outputs by their mean over all texts, by zero, or by what they are at the
            same places of another text.
        seed: For the bootstrap, and for which other text.
        done: What `on_text` was given for the first texts, to go on after them.
        on_text: Called after each text, by stretch of it: with the model's own loss in the first
            column, and in each other the difference that a set makes.

    Raises:
        ClearheadError: There is no such head, no text, or a text is too short or too long; or the
            restarted model is not the whole one with an edit.
    """
    check_texts(model, texts)
    wanted = [
        tuple(dict.fromkeys(heads)) for heads in (single_heads(model) if sets is None else sets)
    ]
    _check_sets(model, wanted, how, texts)
    replacement = _Replacement(model, texts, how, seed)
    rows = list(done)
    for number in range(len(rows), len(texts)):
        with evaluating(model):
            row = _text(model, texts[number], wanted, replacement.of(number))
        rows.append(row)
        if on_text is not None:
            on_text(row)
    table = torch.stack(rows)  # [N, S, 1 + sets]
    base, deltas = table[:, :, 0], table[:, :, 1:]
    weight = _lengths(texts.shape[1] - 1).to(table)  # [S]
    per_text = (deltas * weight[:, None]).sum(1) / weight.sum()  # [N, sets]
    base_of_text = (base * weight).sum(1) / weight.sum()  # [N]
    drawn: Literal["texts", "segments"] = "texts" if len(texts) >= _FEW else "segments"
    if drawn == "texts":
        low, high = _bootstrap(per_text, torch.ones(len(per_text)).to(per_text), seed)
    else:
        low, high = _bootstrap(deltas.flatten(0, 1), weight.repeat(len(texts)), seed)
    return Ablation(
        proof=_prove_restart(
            model, texts[0], wanted, replacement.of(0), per_text[0] + base_of_text[0]
        ),
        delta=per_text.mean(0),
        low=low,
        high=high,
        per_text=per_text,
        sets=tuple(wanted),
        how=how,
        loss=float(base_of_text.mean()),
        drawn=drawn,
    )


def _check_sets(model: GPT, sets: Sequence[HeadSet], how: str, texts: Tensor) -> None:
    for heads in sets:
        if not heads:
            raise ClearheadError("a set of heads to ablate is empty; name at least one head")
        check_layers(model, [layer for layer, _ in heads])
        check_heads(model.config.n_heads, [head for _, head in heads])
    if how not in ("mean", "zero", "resample"):
        raise ClearheadError(f"there is no ablation {how!r}; valid: mean, resample, zero")
    if how == "resample" and len(texts) < 2:
        raise ClearheadError("resampling takes another text's outputs; give at least two texts")


class _Replacement:
    """What takes the heads' place in each text."""

    def __init__(self, model: GPT, texts: Int[Tensor, "N T"], how: How, seed: int) -> None:
        config = model.config
        self._model, self._texts, self._resample = model, texts, how == "resample"
        if how == "mean":
            self._fixed = head_means(model, texts)
        else:
            shape = (config.n_layers, config.n_heads, config.head_dim)
            self._fixed = model.head.weight.new_zeros(shape)  # [L, H, K]
        generator = torch.Generator().manual_seed(seed)
        self._step = int(torch.randint(1, max(2, len(texts)), (), generator=generator))

    def of(self, number: int) -> _Replace:
        """Return, for a text, what takes the place of a layer's head: [K] or [T, K]."""
        if not self._resample:
            return lambda layer, head: self._fixed[layer, head]
        other = self._texts[(number + self._step) % len(self._texts)]
        seen = run(self._model, other[None], "z")
        return lambda layer, head: seen["z", layer][0, :, head]


def _text(
    model: GPT, text: Int[Tensor, " T"], sets: Sequence[HeadSet], replace: _Replace
) -> Float[Tensor, "segments columns"]:
    """Return a text's losses by stretch: the model's own, then each set's difference from it."""
    text = text.to(model.device)
    seen = run(model, text[None], "z", "mid", "final")
    targets = text[1:]
    base = token_losses(model, seen["final", 0][0, :-1], targets)
    columns: list[Tensor | None] = [None] * len(sets)
    by_first: dict[int, list[int]] = defaultdict(list)
    for at, heads in enumerate(sets):
        by_first[min(layer for layer, _ in heads)].append(at)
    at_once = max(1, _TOKENS // len(text))
    for first, members in by_first.items():
        for start in range(0, len(members), at_once):
            some = members[start : start + at_once]
            hidden = _restart(model, seen, first, [sets[at] for at in some], replace)
            for at, one in zip(some, hidden, strict=True):
                losses = token_losses(model, one[:-1], targets)
                columns[at] = _by_segment(losses.double() - base.double())
    found = [column for column in columns if column is not None]
    return torch.stack([_by_segment(base.double()), *found], dim=1).cpu()


def _restart(
    model: GPT, seen: Taps, first: int, sets: Sequence[HeadSet], replace: _Replace
) -> Float[Tensor, "v T D"]:
    """Run the model on from a layer's attention, once for each set of heads to replace."""
    z, out = seen["z", first][0], weights(model).layers[first].out
    variants = []
    for heads in sets:
        x = seen["mid", first][0]
        for layer, head in heads:
            if layer == first:
                x = x + (replace(layer, head) - z[:, head]) @ out[head]
        variants.append(x)
    x = torch.stack(variants)  # [v, T, D]
    block: Any = model.blocks[first]
    x = x + block.mlp(block.norm_2(x))
    for layer in range(first + 1, model.config.n_layers):
        change = _change(layer, sets, replace)
        with ExitStack() as edits:
            if change is not None:
                edits.enter_context(edit(model, layer, change))
            x = model.blocks[layer](x)
    return model.norm(x)


def _change(layer: int, sets: Sequence[HeadSet], replace: _Replace) -> Change | None:
    """Return what replaces the heads of a later layer in the variants that ask for it."""
    places = [
        (at, head) for at, heads in enumerate(sets) for where, head in heads if where == layer
    ]
    if not places:
        return None

    def change(z: Tensor) -> Tensor:
        z = z.clone()
        for at, head in places:
            z[at, :, head] = replace(layer, head)
        return z

    return change


def _lengths(count: int) -> Float[Tensor, " segments"]:
    """Return how many of `count` positions fall into each stretch of a text."""
    parts = min(SEGMENTS, count)
    return torch.tensor([len(part) for part in torch.arange(count).tensor_split(parts)]).double()


def _by_segment(losses: Float[Tensor, " positions"]) -> Float[Tensor, " segments"]:
    parts = losses.tensor_split(min(SEGMENTS, len(losses)))
    return torch.stack([part.mean() for part in parts])


def _bootstrap(
    units: Float[Tensor, "units sets"], weight: Float[Tensor, " units"], seed: int
) -> tuple[Float[Tensor, " sets"], Float[Tensor, " sets"]]:
    """Return the 95 % interval of the weighted mean over units drawn anew (Efron 1979)."""
    generator = torch.Generator().manual_seed(seed)
    count = len(units)
    drawn = torch.randint(count, (_DRAWS, count), generator=generator)
    often = torch.zeros(_DRAWS, count).scatter_add_(1, drawn, torch.ones(_DRAWS, count))
    share = often.to(weight) * weight  # [draws, units]
    means = share @ units / share.sum(1, keepdim=True)  # [draws, sets]
    low, high = means.quantile(torch.tensor([0.025, 0.975]).to(means), dim=0)
    return low, high


def _prove_restart(
    model: GPT,
    text: Int[Tensor, " T"],
    sets: Sequence[HeadSet],
    replace: _Replace,
    found: Float[Tensor, " sets"],
) -> Proof:
    """Run the whole model without the heads that matter most in the first text, and compare."""
    text = text.to(model.device)
    at = int(found.argmax())
    with ExitStack() as edits:
        for layer, head in sets[at]:
            edits.enter_context(replace_head(model, layer, head, replace(layer, head)))
        hidden = run(model, text[None], "final")["final", 0][0, :-1]
    losses = token_losses(model, hidden, text[1:])
    whole = losses.double().mean().to(model.head.weight.dtype)
    return prove("restarted run − whole run", found[at], whole.cpu())


@dataclass(frozen=True, eq=False, kw_only=True)
class CausalPairs(Result):
    """What two heads do together beyond what each does alone.

    I = ΔL(both) − ΔL(one) − ΔL(other): above 0 each stands in for the other; below 0 they do the
    same thing one after the other, so that losing the second costs less.
    """

    interaction: Float[Tensor, " pairs"] = array("pair", unit="nats a token")
    """I."""
    both: Float[Tensor, " pairs"] = array("pair", unit="nats a token")
    """ΔL without both."""
    pairs: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    """The heads, as (layer, head)."""


def causal_pairs(
    model: GPT,
    texts: Int[Tensor, "N T"],
    heads: Sequence[tuple[int, int]],
    *,
    how: How = "mean",
    seed: int = 0,
) -> CausalPairs:
    """Measure how the effects of heads depend on each other, for all pairs of some heads.

    Args:
        model: The model.
        texts: Texts of equal length.
        heads: At least two heads, as (layer, head).
        how: As in `ablate_heads`.
        seed: As in `ablate_heads`.

    Raises:
        ClearheadError: As `ablate_heads`; or there are fewer than two heads.
    """
    chosen = list(dict.fromkeys(heads))
    if len(chosen) < 2:
        raise ClearheadError("pairs need at least two different heads")
    pairs = [(one, other) for at, one in enumerate(chosen) for other in chosen[at + 1 :]]
    sets: list[HeadSet] = [*((head,) for head in chosen), *pairs]
    found = ablate_heads(model, texts, sets, how=how, seed=seed)
    alone = dict(zip(chosen, found.delta, strict=False))
    both = found.delta[len(chosen) :]
    each = torch.stack([alone[one] + alone[other] for one, other in pairs])
    return CausalPairs(proof=found.proof, interaction=both - each, both=both, pairs=tuple(pairs))
