"""How much each head is trusted, by four measures beside each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clearhead.lens.ablate import Ablation, How, ablate_heads
from clearhead.lens.heads import head_contributions, worst
from clearhead.lens.importance import head_importance
from clearhead.lens.logits import mean_attribution
from clearhead.lens.result import Result, array
from clearhead.model import GPT

MEASURES = ("share", "attribution", "importance", "ablation")
"""What the table holds beside each other."""
_APART = 0.5


@dataclass(frozen=True, eq=False, kw_only=True)
class Trust(Result):
    """Four answers to the question how much a head counts.

    No one of them is the answer: a head may add much that nobody reads, act only through later
    heads, or be replaced by another as soon as it is gone.
    """

    share: Float[Tensor, "L H"] = array("layer", "head", unit="part of the output")
    """What the head adds to its layer's output: sum ⟨r_h, a⟩ / sum ‖a‖²."""
    attribution: Float[Tensor, "L H"] = array("layer", "head", unit="logits")
    """What it adds, by itself, to the logit of the true next token over the mean of all tokens."""
    importance: Float[Tensor, "L H"] = array("layer", "head", unit="nats")
    """E |∂L/∂ξ_h|: how much the loss moves when it becomes a little louder or softer."""
    ablation: Float[Tensor, "L H"] = array("layer", "head", unit="nats a token")
    """What the loss gains without it."""
    low: Float[Tensor, "L H"] = array("layer", "head", unit="nats a token")
    """The 95 % interval of the ablation begins here…"""
    high: Float[Tensor, "L H"] = array("layer", "head", unit="nats a token")
    """…and ends here."""
    ranks: Float[Tensor, "4 L H"] = array("measure", "layer", "head", unit="part of the heads")
    """For each measure, the part of all heads that it puts below this one, by absolute value."""
    disagree: Bool[Tensor, "L H"] = array("layer", "head", unit="true or false")
    """Whether two of the ranks are further apart than half of all heads."""
    ablated: Ablation
    """The ablation in full."""

    def reading(self, layer: int, head: int) -> str:
        """Say in a few words what a disagreement may mean; empty where there is none."""
        if not self.disagree[layer, head]:
            return ""
        share, attribution, importance, ablation = self.ranks[:, layer, head].tolist()
        if max(attribution, importance) - ablation > _APART:
            return "others may take over (backup)"
        if ablation - attribution > _APART:
            return "acts through later parts"
        if share - max(importance, ablation) > _APART:
            return "loud, little heard"
        return "measures disagree"


def trust_table(
    model: GPT,
    texts: Int[Tensor, "N T"],
    *,
    how: How = "mean",
    seed: int = 0,
    done: Sequence[Float[Tensor, "segments columns"]] = (),
    on_text: Callable[[Float[Tensor, "segments columns"]], None] | None = None,
) -> Trust:
    """Measure every head in four ways.

    Args:
        model: The model.
        texts: Texts of equal length, at least two tokens.
        how: What takes an ablated head's place: mean, zero or resample.
        seed: For the bootstrap of the ablation.
        done: As in `ablate_heads`, which takes nearly all of the time.
        on_text: As in `ablate_heads`.

    Raises:
        ClearheadError: As `ablate_heads`.
    """
    ablated = ablate_heads(model, texts, how=how, seed=seed, done=done, on_text=on_text)
    each = [head_contributions(model, text[None]) for text in texts]
    share = torch.stack([one.mean_share for one in each]).mean(0)
    attributed = mean_attribution(model, texts.to(model.device))
    effect = ablated.by_head(*share.shape)
    values = [
        share.double(),
        attributed.heads.double(),
        head_importance(model, texts).importance.double(),
        effect["delta"].double(),
    ]
    ranks = torch.stack([_ranks(value) for value in values])
    found = dict(zip(MEASURES, values, strict=True))
    return Trust(
        proof=worst([one.proof for one in [*each, attributed, ablated] if one.proof]),
        **found,
        low=effect["low"].double(),
        high=effect["high"].double(),
        ranks=ranks,
        disagree=(ranks.amax(0) - ranks.amin(0)) > _APART,
        ablated=ablated,
    )


def _ranks(values: Float[Tensor, "L H"]) -> Float[Tensor, "L H"]:
    """Return for each value the part of the others whose absolute value is smaller."""
    size = values.abs().flatten()
    below = (size[:, None] > size).sum(1) / max(1, len(size) - 1)
    return below.view_as(values).double()
