"""Observing a model while it runs, without changing what it computes."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.model import GPT

POINTS = {
    "pre": "the residual stream before a block [B, T, D]",
    "q": "each head's queries [B, T, H, K]",
    "k": "each head's keys [B, T, H, K]",
    "v": "each head's values [B, T, H, K]",
    "z": "each head's output before the projection [B, T, H, K]",
    "attention": "the output projection's output, its bias included [B, T, D]",
    "mid": "the residual stream between attention and MLP [B, T, D]",
    "mlp": "the MLP's output [B, T, D]",
    "post": "the residual stream after a block [B, T, D]",
    "final": "the normalised residual stream that the unembedding reads [B, T, D]; of no layer",
}
"""What can be observed, at every layer."""
_QKV = ("q", "k", "v")
_See = Callable[[Tensor], None]


class Taps:
    """What was seen at the chosen points, since the beginning or the last `clear`.

    The tensors are the model's own, not copies. Passes through a model with a cache follow each
    other in time: they come back as one text.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._seen: dict[tuple[str, int | None], list[Tensor]] = defaultdict(list)

    def __getitem__(self, key: tuple[str, int]) -> Float[Tensor, "B T ..."]:
        """Return what was seen at a point of a layer.

        Raises:
            ClearheadError: It was not asked for, the model has not run, or the passes were of
                different texts.
        """
        point, layer = key
        seen = self._seen.get((point, None if point == "final" else layer))
        if not seen:
            raise ClearheadError(
                f"nothing was seen at {point!r} of layer {layer}; name both in `observe`, and run "
                "the model inside it"
            )
        if any(one.shape[0] != seen[0].shape[0] for one in seen):
            raise ClearheadError("the passes had different batches; call clear() between them")
        return seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)

    def clear(self) -> None:
        """Forget what was seen, before another text."""
        self._seen.clear()

    def _add(self, point: str, layer: int | None, tensor: Tensor) -> None:
        self._seen[point, layer].append(tensor)


@contextmanager
def observe(
    model: GPT,
    *points: str,
    layers: Sequence[int] | None = None,
) -> Iterator[Taps]:
    """Observe chosen points of a model; its outputs are bit for bit what they are without.

    Blocks that were compiled in place run uncompiled meanwhile: what is compiled calls no hooks.

    Args:
        model: The model; not what torch.compile(model) returned, but what it was given.
        points: Which, of `POINTS`.
        layers: Of which blocks; all by default.

    Yields:
        What is seen, growing with each call of the model.

    Raises:
        ClearheadError: There is no such point or layer, or the model is compiled.
    """
    for point in points:
        if point not in POINTS:
            raise ClearheadError(f"there is no point {point!r}; valid: {', '.join(POINTS)}")
    chosen = check_layers(model, layers)
    taps = Taps(chosen)

    n_heads = model.config.n_heads

    def keep(point: str, layer: int | None) -> _See:
        def see(tensor: Tensor) -> None:
            kept = tensor.detach()
            if point == "z":
                kept = torch.unflatten(kept, -1, (n_heads, -1))  # [B, T, H, K]
            taps._add(point, layer, kept)

        return see

    def keep_parts(layer: int) -> _See:
        def see(tensor: Tensor) -> None:
            parts = torch.unflatten(tensor.detach(), -1, (3, n_heads, -1)).unbind(
                -3
            )  # [B, T, H, K]
            for point, part in zip(_QKV, parts, strict=True):
                if point in points:
                    taps._add(point, layer, part)

        return see

    with hooked(model), ExitStack() as hooks:
        for layer in chosen:
            block: Any = model.blocks[layer]
            places: dict[str, tuple[nn.Module, bool]] = {
                "pre": (block, True),
                "z": (block.attention.out_proj, True),
                "attention": (block.attention.out_proj, False),
                "mid": (block.norm_2, True),
                "mlp": (block.mlp, False),
                "post": (block, False),
            }
            for point, (module, is_input) in places.items():
                if point in points:
                    _hook(hooks, module, keep(point, layer), is_input=is_input)
            if any(point in points for point in _QKV):
                _hook(hooks, block.attention.qkv, keep_parts(layer), is_input=False)
        if "final" in points:
            _hook(hooks, model.norm, keep("final", None), is_input=False)
        yield taps


def _hook(hooks: ExitStack, module: nn.Module, see: _See, *, is_input: bool) -> None:
    if is_input:
        handle = module.register_forward_pre_hook(lambda _, given: see(given[0]))
    else:
        handle = module.register_forward_hook(lambda *given: see(given[2]))
    hooks.callback(handle.remove)


@contextmanager
def hooked(model: GPT) -> Iterator[None]:
    """Let a model's modules call what is hooked onto them, compiled or not.

    Raises:
        ClearheadError: The model is another one's compiled form.
    """
    if hasattr(model, "_orig_mod"):
        raise ClearheadError(
            "a compiled model cannot be observed; give the model that was compiled, which shares "
            "its weights"
        )
    calls = {
        module: module._compiled_call_impl
        for module in model.modules()
        if module._compiled_call_impl is not None
    }
    try:
        for module in calls:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in calls.items():
            module._compiled_call_impl = call


def check_layers(model: GPT, layers: Sequence[int] | None) -> list[int]:
    """Return the chosen layers, all by default.

    Raises:
        ClearheadError: One does not exist.
    """
    count = model.config.n_layers
    chosen = list(range(count)) if layers is None else list(layers)
    for layer in chosen:
        if not 0 <= layer < count:
            raise ClearheadError(f"there is no layer {layer}; the model has {count}, from 0")
    return chosen


def check_heads(n_heads: int, heads: Sequence[int] | None) -> list[int]:
    """Return the chosen heads, all by default.

    Raises:
        ClearheadError: One does not exist.
    """
    chosen = list(range(n_heads)) if heads is None else list(heads)
    for head in chosen:
        if not 0 <= head < n_heads:
            raise ClearheadError(f"there is no head {head}; a layer has {n_heads}, from 0")
    return chosen


def patterns(
    query: Float[Tensor, "B T H K"],
    key: Float[Tensor, "B T H K"],
    *,
    heads: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Float[Tensor, "B h r T"]:
    """Recompute attention patterns, of the heads and rows that are asked for only.

    Args:
        query: Queries, as `observe` shows them.
        key: Keys.
        heads: Which heads; all by default.
        rows: Positions whose attention is wanted; all by default.

    Returns:
        How much each row attends to each position; rows sum to 1.
    """
    length, head_dim = query.shape[1], query.shape[-1]
    chosen = check_heads(query.shape[2], heads)
    places = torch.arange(length) if rows is None else torch.tensor(rows)
    if len(places) and not 0 <= int(places.min()) <= int(places.max()) < length:
        raise ClearheadError(f"there is no such row; the text has {length} tokens, from 0")
    places = places.to(query.device)
    asked = query[:, places][:, :, chosen].transpose(1, 2)  # [B, h, r, K]
    known = key[:, :, chosen].permute(0, 2, 3, 1)  # [B, h, K, T]
    scores = (asked @ known) * head_dim**-0.5  # [B, h, r, T]
    future = torch.arange(length, device=query.device) > places[:, None]  # [r, T]
    return scores.masked_fill(future, -torch.inf).softmax(-1)


@torch.no_grad()
def run(
    model: GPT,
    token_ids: Int[Tensor, "B T"],
    *points: str,
    layers: Sequence[int] | None = None,
) -> Taps:
    """Run a model once, up to the unembedding, and return what was seen.

    Raises:
        ClearheadError: As `observe`; or the text is empty or longer than the context.
    """
    if token_ids.numel() == 0:
        raise ClearheadError("the text is empty; give one of at least one token")
    with evaluating(model), observe(model, *points, layers=layers) as taps:
        model.hidden(token_ids.to(model.device))
    return taps


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Keep dropout away for a while."""
    training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(training)
