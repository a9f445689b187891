"""LoRA: a few weights learnt beside frozen ones (Hu et al. 2021, arXiv:2106.09685)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from reprlib import repr as short

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clearhead.errors import ClearheadError, nearest
from clearhead.model import GPT
from clearhead.model.linear import Linear, linear

TARGETS = ("qkv", "out_proj", "up", "down")
"""The layers of a block that an adapter can be put on."""


@dataclass(frozen=True)
class LoRAConfig:
    """What is learnt beside which layers."""

    rank: int = 8
    """Inner width R of the two factors."""
    alpha: float = 16.0
    """The factors' product is added alpha / rank times."""
    targets: tuple[str, ...] = ("qkv",)
    """Layers of each block: qkv, out_proj, up, down."""
    dropout: float = 0.0
    """Probability of dropping an input of the factors in training."""

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ClearheadError(f"LoRA's rank is {short(self.rank)}; it must be 1 or more")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < float("inf"):
            raise ClearheadError(f"LoRA's alpha is {short(self.alpha)}; it must be more than 0")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ClearheadError(
                f"LoRA's dropout is {short(self.dropout)}; it must be from 0 to below 1"
            )
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ClearheadError(
                f"LoRA's targets are {short(self.targets)}; give some of {', '.join(TARGETS)}, "
                "each once"
            )
        for name in self.targets:
            if name not in TARGETS:
                raise ClearheadError(
                    f"LoRA's targets name {short(name)}; {nearest(str(name), TARGETS)}"
                )


class Adapter(nn.Module):
    """The two factors beside one layer: a [R, K] reads, b [N, R] writes, and begins at zero."""

    def __init__(self, layer: Linear, config: LoRAConfig) -> None:
        super().__init__()
        self.config = config
        a = torch.empty(config.rank, layer.in_features)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.a = nn.Parameter(a.to(layer.weight))
        self.b = nn.Parameter(layer.weight.new_zeros(layer.out_features, config.rank))
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.alpha / config.rank

    def forward(self, x: Float[Tensor, "*n K"]) -> Float[Tensor, "*n N"]:
        """Return what is added to the layer's output, alpha/R · x aᵀ bᵀ."""
        return self.scale * linear(linear(self.dropout(x), self.a), self.b)

    def change(self) -> Float[Tensor, "N K"]:
        """Return what would have to be added to the layer's weight, in float32."""
        return self.scale * (self.b.float() @ self.a.float())


class LoRALinear(Linear):
    """A linear layer with adapters beside it, of which one at most is in use.

    `weight` and `bias` are the layer's own parameters, under their own names.
    """

    def __init__(self, layer: Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.adapters = nn.ModuleDict()
        self.in_use: str | None = None

    @property
    def adapter(self) -> Adapter | None:
        """The adapter in use; None where it has none on this layer."""
        if self.in_use is None or self.in_use not in self.adapters:
            return None
        found = self.adapters[self.in_use]
        assert isinstance(found, Adapter)
        return found

    def forward(self, x: Float[Tensor, "*n K"]) -> Float[Tensor, "*n N"]:
        """Return `x Wᵀ + b`, and what the adapter in use adds."""
        found: Tensor = super().forward(x)
        return found if self.adapter is None else found + self.adapter(x)


def add_lora(model: GPT, config: LoRAConfig, name: str = "default") -> None:
    """Put a new adapter on a model and use it; from then on only its weights are learnt.

    It changes nothing until it is trained. Its `a` is drawn as in the paper's code, from torch's
    global generator of the CPU, so that one seed gives the same on each device.

    Args:
        model: The model, with other adapters or without; what it has learnt is frozen.
        config: The adapter.
        name: What `use_adapter` calls it: a Python name.

    Raises:
        ClearheadError: The name is taken or no name, or the rank is beyond the layers' width.
    """
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise ClearheadError(f"an adapter cannot be called {name[:80]!r}; take a plain word")
    if name in adapter_names(model):
        raise ClearheadError(f"the model has an adapter {name!r} already; take another name")
    layers = [
        (path, layer)
        for path, layer in model.named_modules()
        if isinstance(layer, Linear) and path.rpartition(".")[2] in config.targets
    ]
    most = min(min(layer.weight.shape) for _, layer in layers)
    if config.rank > most:
        raise ClearheadError(
            f"LoRA's rank is {config.rank}; the layers are {most} wide, so give at most {most}"
        )
    model.requires_grad_(False)
    for path, layer in layers:
        if not isinstance(layer, LoRALinear):
            layer = LoRALinear(layer)
            model.set_submodule(path, layer, strict=True)
        layer.adapters[name] = Adapter(layer, config).train(model.training)
    use_adapter(model, name)


def use_adapter(model: GPT, name: str | None) -> None:
    """Use one of a model's adapters; None: the base alone.

    Raises:
        ClearheadError: It has none of this name.
    """
    known = adapter_names(model)
    if name is not None and name not in known:
        hint = nearest(name, known) if known else "it has none"
        raise ClearheadError(f"the model has no adapter {name[:80]!r}; {hint}")
    for _, layer in _layers(model):
        layer.in_use = name


def adapter_names(model: GPT) -> list[str]:
    """Return the names of a model's adapters, in the order in which they were added."""
    return list(dict.fromkeys(name for _, layer in _layers(model) for name in layer.adapters))


def lora_config(model: GPT) -> LoRAConfig | None:
    """Return the config of the adapter in use; None without one."""
    for _, layer in _layers(model):
        if layer.adapter is not None:
            return layer.adapter.config
    return None


def lora_parameters(model: GPT) -> dict[str, nn.Parameter]:
    """Return the weights of the adapter in use, as `blocks.0.attention.qkv.a` and `….b`."""
    return {
        f"{path}.{name}": parameter
        for path, layer in _layers(model)
        if layer.adapter is not None
        for name, parameter in layer.adapter.named_parameters()
    }


@torch.no_grad()
def merge_lora(model: GPT) -> None:
    """Add the adapter in use, if there is one, to the weights; leave a plain model.

    Other adapters are dropped, and every weight may be learnt again.
    """
    for _, layer in _layers(model):
        if layer.adapter is not None:
            merged = layer.weight.float() + layer.adapter.change()
            layer.weight = nn.Parameter(merged.to(layer.weight.dtype))
    remove_lora(model)


def remove_lora(model: GPT) -> None:
    """Drop all adapters; leave the plain model, every weight of which may be learnt."""
    for path, layer in list(_layers(model)):
        plain = Linear(layer.in_features, layer.out_features, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        model.set_submodule(path, plain.train(layer.training), strict=True)
    model.requires_grad_(True)


def _layers(model: GPT) -> Iterator[tuple[str, LoRALinear]]:
    for path, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            yield path, layer
