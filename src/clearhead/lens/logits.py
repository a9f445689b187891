"""What the residual stream says about the next token: after each block, and part by part.

The last residual stream is a sum: of the embeddings, of each head's part, of the biases and of the
MLPs; but for the LayerNorm's division, a logit is linear in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.lens.heads import split, worst
from clearhead.lens.readout import check_token, exact_dtype, final_norm, logit_reader
from clearhead.lens.result import Proof, Result, array, prove
from clearhead.lens.sources import check_position
from clearhead.lens.taps import run
from clearhead.lens.weights import LayerWeights, weights
from clearhead.model import GPT

_CHUNK = 8192  # rows of the unembedding that are widened at once
_TOKENS = 1024  # tokens of a batch that are observed at once
_CLAIM = "sum of parts − logit"


@dataclass(frozen=True, eq=False, kw_only=True)
class LogitLens(Result):
    """What the model would predict if it stopped after each block (nostalgebraist 2020).

    Depth 0 is the embeddings, depth l + 1 is after block l.
    """

    top_ids: Int[Tensor, "depth rank"] = array("depth", "rank", unit="token id")
    """The likeliest next tokens, the likeliest first."""
    top_logits: Float[Tensor, "depth rank"] = array("depth", "rank", unit="logit")
    """Their logits."""
    top_probabilities: Float[Tensor, "depth rank"] = array("depth", "rank", unit="probability")
    """Their probabilities."""
    target_ranks: Int[Tensor, "depth target"] = array("depth", "target", unit="likelier tokens")
    """How many tokens have a larger logit than the target: 0 is the likeliest."""
    target_probabilities: Float[Tensor, "depth target"] = array(
        "depth", "target", unit="probability"
    )
    """The targets' probabilities."""
    entropy: Float[Tensor, " depth"] = array("depth", unit="nats")
    """How undecided the prediction is: 0 is certain, log V is no idea."""
    targets: tuple[int, ...]
    """The token ids of the targets."""
    position: int
    """The token after which is predicted."""


@torch.no_grad()
def logit_lens(
    model: GPT,
    token_ids: Int[Tensor, "1 T"],
    *,
    position: int = -1,
    top: int = 5,
    targets: Sequence[int] | None = None,
) -> LogitLens:
    """Apply the last LayerNorm and the unembedding to the residual stream after each block.

    Args:
        model: The model.
        token_ids: One text.
        position: The token after which is predicted; negative ones count from the end.
        top: How many of the likeliest tokens to tell; at most all.
        targets: Tokens whose rank and probability are wanted.

    Raises:
        ClearheadError: There is no such position or token, the text is empty or too long, or the
            last depth's logits are not the model's own.
    """
    model.config.check_next_token()
    row = check_position(token_ids, position)
    if top < 1:
        raise ClearheadError(f"top is {top}; ask for at least 1 token")
    wanted = [check_token(model, target) for target in targets or ()]
    seen = run(model, token_ids, "pre", "post", "final")
    stages = [seen["pre", 0]] + [seen["post", layer] for layer in range(model.config.n_layers)]
    x = torch.stack([stage[0, row] for stage in stages]).to(exact_dtype(model))  # [L+1, D]
    normed = final_norm(model, x)
    rows = torch.split(model.head.weight, _CHUNK)
    logits = torch.cat([normed @ chunk.to(x.dtype).T for chunk in rows], dim=-1)  # [L+1, V]
    own = model.head(seen["final", 0][0, row])  # [V]
    log_probabilities = logits.log_softmax(-1)
    probabilities = log_probabilities.exp()
    top_logits, top_ids = logits.topk(min(top, logits.shape[-1]))  # [L+1, rank] each
    ranks = (logits[:, None] > logits[:, wanted, None]).sum(-1)  # [L+1, target]
    return LogitLens(
        proof=prove("last depth − the model's logits", logits[-1], own),
        top_ids=top_ids.cpu(),
        top_logits=top_logits.cpu(),
        top_probabilities=probabilities.gather(-1, top_ids).cpu(),
        target_ranks=ranks.cpu(),
        target_probabilities=probabilities[:, wanted].cpu(),
        entropy=-(probabilities * log_probabilities).sum(-1).cpu(),
        targets=tuple(wanted),
        position=row,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Attribution(Result):
    """How much each part of the model adds to one logit, or to the difference of two.

    Frozen, the parts and the constant add up to the logit: the LayerNorm divides by what it divided
    by. Unfrozen, it is how far the logit falls when the part is taken out of the last residual
    stream and the LayerNorm sees what is left; these do not add up. Either is the direct effect:
    what later layers make of the part is theirs.
    """

    embedding: Float[Tensor, "2"] = array("part", unit="logit")
    """The token's embedding and the position's."""
    heads: Float[Tensor, "L H"] = array("layer", "head", unit="logit")
    """Each head's part r_h."""
    heads_unfrozen: Float[Tensor, "L H"] = array("layer", "head", unit="logit")
    """The same, unfrozen."""
    attention_bias: Float[Tensor, " L"] = array("layer", unit="logit")
    """Each output projection's bias, and what was folded into it."""
    mlps: Float[Tensor, " L"] = array("layer", unit="logit")
    """Each MLP."""
    mlps_unfrozen: Float[Tensor, " L"] = array("layer", unit="logit")
    """The same, unfrozen."""
    constant: float
    """⟨β, W_U[v]⟩, the same for every text."""
    logit: float
    """The model's own."""
    target: int
    """The token whose logit it is."""
    versus: int | None
    """The token whose logit is taken off it, if any."""
    position: int
    """The token after which is predicted."""


@torch.no_grad()
def attribution(
    model: GPT,
    token_ids: Int[Tensor, "1 T"],
    target: int,
    *,
    versus: int | None = None,
    position: int = -1,
    fold_value_bias: bool = False,
) -> Attribution:
    """Split a token's logit into what each part of the model adds (Elhage et al. 2021).

    Args:
        model: The model.
        token_ids: One text.
        target: The token whose logit is split.
        versus: Another token, to split the difference of the two logits instead; what raises all
            logits alike is not seen in it.
        position: The token after which is predicted; negative ones count from the end.
        fold_value_bias: Count what the values' bias adds through a head, b_V[h] W_O[h], the same
            for every token, to the layer's bias and not to the head.

    Raises:
        ClearheadError: There is no such token or position, both tokens are the same, the text is
            empty or too long, or the parts do not add up to the logit.
    """
    model.config.check_next_token()
    row = check_position(token_ids, position)
    check_token(model, target)
    if versus is not None and check_token(model, versus) == target:
        raise ClearheadError(f"target and versus are the same token, {target}; give two")
    seen = run(model, token_ids, "z", "mlp", "post", "final")
    exact = exact_dtype(model)
    direction = model.head.weight[target].to(exact)
    if versus is not None:
        direction = direction - model.head.weight[versus].to(exact)
    x = seen["post", model.config.n_layers - 1][0, row].to(exact)
    reader, constant, size = logit_reader(model, x, direction)
    token = model.token_embedding.weight[int(token_ids[0, row])]
    place = model.position_embedding.weight[row]
    embedding = torch.stack([token, place]).to(exact) @ reader
    rows = []
    for layer, one in enumerate(weights(model).layers):
        r, bias = _contributions(one, seen["z", layer][0, row].to(exact), fold_value_bias)
        parts = torch.cat([r, seen["mlp", layer][:, row].to(exact), bias[None]])  # [H+2, D]
        rows.append((parts @ reader, _unfrozen(model, x, parts[:-1], direction)))
    frozen, unfrozen = (torch.stack(column) for column in zip(*rows, strict=True))
    logit = seen["final", 0][0, row].to(exact) @ direction
    terms = torch.cat([embedding, frozen.flatten(), constant[None]])
    return Attribution(
        proof=_prove_sum(model, terms, logit, size),
        embedding=embedding.cpu(),
        heads=frozen[:, :-2].cpu(),
        heads_unfrozen=unfrozen[:, :-1].cpu(),
        attention_bias=frozen[:, -1].cpu(),
        mlps=frozen[:, -2].cpu(),
        mlps_unfrozen=unfrozen[:, -1].cpu(),
        constant=float(constant),
        logit=float(logit),
        target=target,
        versus=versus,
        position=row,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadAttribution(Result):
    """How much each head raises the true next token above the mean of all tokens."""

    heads: Float[Tensor, "L H"] = array("layer", "head", unit="logit")
    """Each head's part of that difference, averaged over all tokens; negative lowers it."""
    logit: float
    """The difference itself, the model's own, averaged over all tokens."""


@torch.no_grad()
def mean_attribution(model: GPT, token_ids: Int[Tensor, "B T"]) -> HeadAttribution:
    """Average the direct logit attribution of each head over every token that has a next one.

    What is split is the next token's logit minus the mean logit of the vocabulary: the logits'
    common level, which changes no probability, is left out.

    Args:
        model: The model.
        token_ids: Texts of at least two tokens.

    Raises:
        ClearheadError: No token has a next one, the text is too long, or the parts do not add up
            to the logit.
    """
    model.config.check_next_token()
    length = token_ids.shape[1]
    if not len(token_ids) or length < 2:
        raise ClearheadError("no token has a next one; give texts of at least two tokens")
    average = model.head.weight.mean(0, dtype=exact_dtype(model))
    chunks = torch.split(token_ids.to(model.device), max(1, _TOKENS // length))
    rows = [_attribute(model, texts, average) for texts in chunks]
    count = len(token_ids) * (length - 1)
    return HeadAttribution(
        proof=worst([row[2] for row in rows]),
        heads=(torch.stack([row[0] for row in rows]).sum(0) / count).cpu(),
        logit=sum(row[1] for row in rows) / count,
    )


def _attribute(
    model: GPT, texts: Int[Tensor, "B T"], average: Float[Tensor, " D"]
) -> tuple[Float[Tensor, "L H"], float, Proof]:
    """Return the heads' parts and the logits, summed over the tokens, and the proof for each."""
    seen = run(model, texts[:, :-1], "pre", "z", "mlp", "post", "final")
    exact, n_layers = average.dtype, model.config.n_layers
    direction = model.head.weight[texts[:, 1:]].to(exact) - average  # [B, T-1, D]
    x = seen["post", n_layers - 1].to(exact)
    reader, constant, size = logit_reader(model, x, direction)
    heads, terms = [], [constant, (seen["pre", 0].to(exact) * reader).sum(-1)]
    for layer, one in enumerate(weights(model).layers):
        z = seen["z", layer].to(exact)  # [B, T-1, H, K]
        through = (reader @ one.out.flatten(0, 1).to(exact).T).view(z.shape)
        of_heads = (z * through).sum(-1)  # [B, T-1, H]
        heads.append(of_heads.sum((0, 1)))
        terms += [*of_heads.unbind(-1), (seen["mlp", layer].to(exact) * reader).sum(-1)]
        if one.out_bias is not None:
            terms.append(reader @ one.out_bias.to(exact))
    logit = (seen["final", 0].to(exact) * direction).sum(-1)  # [B, T-1]
    proof = _prove_sum(model, torch.stack(terms), logit, size)
    return torch.stack(heads), float(logit.sum()), proof


def _contributions(
    one: LayerWeights, z: Float[Tensor, "H K"], fold_value_bias: bool
) -> tuple[Float[Tensor, "H D"], Float[Tensor, " D"]]:
    """Return the heads' parts of the residual stream and the bias that belongs to no head."""
    out = one.out.to(z.dtype)
    bias = out.new_zeros(out.shape[-1]) if one.out_bias is None else one.out_bias.to(z.dtype)
    if fold_value_bias and one.value_bias is not None:
        constant = one.value_bias.to(z.dtype)
        z, bias = z - constant, bias + split(constant, out).sum(0)
    return split(z, out), bias


def _unfrozen(
    model: GPT, x: Float[Tensor, " D"], parts: Float[Tensor, "N D"], direction: Float[Tensor, " D"]
) -> Float[Tensor, " N"]:
    """Return the logit minus what it is without each part, the LayerNorm computed anew.

    Its variance is then var(x) − 2 cov(x, r) + var(r); taking r off first rounds less.
    """
    return (final_norm(model, x) - final_norm(model, x - parts)) @ direction


def _prove_sum(
    model: GPT,
    terms: Float[Tensor, "N *places"],
    logit: Float[Tensor, "*places"],
    size: Float[Tensor, "*places"],
) -> Proof:
    """Add the terms up; either sum rounds relative to what is added, which may cancel in it."""
    own = logit.to(model.head.weight.dtype)
    scale = float((size + terms.abs().sum(0)).max())
    return prove(_CLAIM, terms.sum(0), own, scale=scale)
