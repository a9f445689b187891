"""Optimisers: torch's AdamW alone, or its Muon for the matrices inside the blocks beside AdamW."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from clearhead.errors import ClearheadError
from clearhead.model import GPT
from clearhead.train.muon import Float32Muon


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimiser, and how fast."""

    kind: Literal["adamw", "muon"] = "muon"
    """adamw for all weights; or muon for the blocks' weight matrices and adamw for the rest."""
    learning_rate: float = 3e-3
    """AdamW's learning rate."""
    muon_learning_rate: float = 0.02
    """Muon's learning rate."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    momentum: float = 0.95
    """Muon's decay of the mean gradient."""
    weight_decay: float = 0.1
    """Pull of every matrix towards zero, times the learning rate; vectors are left alone."""
    max_grad_norm: float = 1.0
    """A longer gradient is shortened to this norm; 0 leaves it."""

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "muon"):
            raise ClearheadError(f"optimizer.kind is {self.kind!r}; it must be adamw or muon")
        for name in ("beta1", "beta2", "momentum"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ClearheadError(f"optimizer.{name} is {value}; it must be from 0 to below 1")
        for name in ("learning_rate", "muon_learning_rate", "weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ClearheadError(f"optimizer.{name} is {value}; it must be 0 or more")


def build_optimizers(
    model: GPT, config: OptimizerConfig, dtype: torch.dtype = torch.float32
) -> list[Optimizer]:
    """Make the optimisers for all weights of `model` that are to be learnt.

    Each group's `full_lr` is its full rate. The factors that LoRA puts beside a weight are no
    weights: Muon would make of each a rotation, so AdamW learns them, decayed as any matrix is.

    Args:
        model: The model.
        config: Which optimiser, and how fast.
        dtype: What the run's matrix products are computed in, Muon's too.

    Source: AdamW, Loshchilov & Hutter 2019; Muon, Jordan et al. 2024.
    """
    learnt = {n: p for n, p in model.named_parameters() if p.requires_grad}
    matrices = {n: p for n, p in learnt.items() if p.ndim == 2}
    vectors = [p for p in learnt.values() if p.ndim != 2]
    hidden: list[nn.Parameter] = []
    if config.kind == "muon":
        weights = [n for n in matrices if n.startswith("blocks.") and n.endswith(".weight")]
        hidden = [matrices.pop(n) for n in weights]
    adamw = AdamW(
        [
            {"params": list(matrices.values()), "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    optimizers: list[Optimizer] = [adamw]
    if hidden:
        optimizers.append(
            (Muon if dtype == torch.bfloat16 else Float32Muon)(
                hidden,
                lr=config.muon_learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times its full one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor


def optimizer_tensors(model: GPT, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Collect what the optimisers remember, as `PARAMETER/QUANTITY`."""
    return {
        f"{name}/{quantity}": torch.as_tensor(value)
        for optimizer in optimizers
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for quantity, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    model: GPT, optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimisers back what `optimizer_tensors` collected.

    Raises:
        ClearheadError: The tensors belong to another model.
    """
    parameters = dict(model.named_parameters())
    owners = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for key, tensor in tensors.items():
        name, _, quantity = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or tensor.shape not in (parameter.shape, torch.Size([])):
            raise ClearheadError(f"the optimiser's state {key!r} fits no weight of this model")
        owners[parameter].state[parameter][quantity] = (
            tensor.to(parameter.device) if tensor.ndim else tensor.clone()
        )
