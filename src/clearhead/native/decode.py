"""A model whose blocks compute a few tokens by native kernels."""

import ctypes
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.model import GPT, KVCache
from clearhead.model.attention import Attention
from clearhead.model.gpt import Block, FeedForward
from clearhead.model.linear import Linear
from clearhead.native import library as native
from clearhead.quantize import QuantizedEmbedding, QuantizedLinear

FEW = 16
"""The most tokens of one text that the kernels take at once; torch is faster with more."""

_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_QUANTIZED = {8: 2, 4: 3}


@dataclass(frozen=True)
class Backend:
    """What computes a model's next token."""

    model: GPT
    """The model; it shares its weights with the one that was given."""
    name: str
    """The kernels' instruction set, or "torch"."""
    why: str | None
    """Why torch computes it; None if the kernels do."""


def accelerate(model: GPT) -> Backend:
    """Return a model that computes a few tokens with a cache by native kernels.

    It is a copy that shares the weights; of LayerNorms and biases it holds fp32 copies, so it is
    for weights that no longer change. What the kernels do not know (another device, another number
    type, layers that were swapped or have hooks) is left to torch, and said.
    """
    why, kernels = _obstacle(model), native.library()
    if why is None and kernels is None:
        why = "the native kernels were not built: no C++ compiler was found at installation"
    if why is not None or kernels is None:
        return Backend(model, "torch", why)
    workspace = _Workspace(kernels)
    fast = copy(model)
    fast._modules = dict(model._modules)
    blocks = [cast(Block, block) for block in model.blocks]
    fast.blocks = nn.ModuleList([_NativeBlocks(blocks, workspace)])
    fast.head = cast(Linear, _NativeLinear(model.head, workspace))
    for module in (fast.blocks, *fast.blocks, fast.head):
        module.training = model.training
    return Backend(fast, kernels.variant, None)


_KNOWN = (
    *(GPT, Block, Attention, FeedForward, Linear, QuantizedLinear, QuantizedEmbedding),
    *(nn.LayerNorm, nn.Embedding, nn.GELU, nn.Dropout, nn.ModuleList),
)


def _obstacle(model: GPT) -> str | None:
    if model.device.type != "cpu":
        return f"the native kernels compute on a CPU, and the model lies on {model.device}"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has hooks, which the native kernels would not call"
        if type(module) not in _KNOWN:
            return f"{name} is a {type(module).__name__}, which the native kernels do not know"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        of_codes = name.endswith((".codes", ".scales"))
        if not (of_codes or tensor.dtype in _KINDS) or not tensor.is_contiguous():
            return f"{name} is {tensor.dtype}, which the native kernels do not know"
    return None


class _Workspace:
    """Memory for what lies between two products, used by one block after the other."""

    def __init__(self, kernels: native.Library) -> None:
        self.kernels = kernels
        self.cache = native.Cache()
        self._memory = torch.empty(0)

    def scratch(self, n: int, width: int, widest: int, capacity: int, threads: int) -> int:
        """Return the address of enough memory."""
        needed = self.kernels.scratch(width, widest, capacity, n, threads)
        if len(self._memory) < needed:
            self._memory = torch.empty(needed, dtype=torch.float32)
        return self._memory.data_ptr()


class _NativeLinear(nn.Module):
    """A linear layer; few rows are multiplied by the kernels."""

    def __init__(self, linear: Linear | QuantizedLinear, workspace: _Workspace) -> None:
        super().__init__()
        self.linear = linear
        self._workspace = workspace
        self._matrix, self._kept = _matrix(linear)

    def forward(self, x: Float[Tensor, "*n K"]) -> Float[Tensor, "*n N"]:
        """Return `x Wᵀ + b`."""
        n = x.numel() // x.shape[-1]
        if x.dtype not in _KINDS or torch.is_grad_enabled():
            return self.linear(x)
        x, matrix, threads = x.contiguous(), self._matrix, torch.get_num_threads()
        y = x.new_empty(*x.shape[:-1], matrix.rows)
        scratch = self._workspace.scratch(n, matrix.columns, matrix.rows, 0, threads)
        self._workspace.kernels.linear(
            ctypes.addressof(matrix),
            x.data_ptr(),
            y.data_ptr(),
            _KINDS[x.dtype],
            n,
            scratch,
            threads,
        )
        return y


class _NativeBlocks(nn.Module):
    """All decoder blocks; a few tokens with a cache are computed by the kernels."""

    def __init__(self, blocks: Sequence[Block], workspace: _Workspace) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._workspace = workspace
        self._kept: list[Tensor] = []
        described = [self._describe(block) for block in blocks]
        self._descriptions = (native.Block * len(blocks))(*described)
        self._address = ctypes.addressof(self._descriptions)
        self._width = blocks[0].attention.qkv.in_features
        self._widest = max(3 * self._width, blocks[0].mlp.up.out_features)

    def _describe(self, block: Block) -> native.Block:
        found = native.Block()
        attention, mlp = block.attention, block.mlp
        for name, linear in (
            ("qkv", attention.qkv),
            ("out_proj", attention.out_proj),
            ("up", mlp.up),
            ("down", mlp.down),
        ):
            matrix, kept = _matrix(linear)
            setattr(found, name, matrix)
            self._kept += kept
        for name, norm in (("norm_1", block.norm_1), ("norm_2", block.norm_2)):
            weight, bias = _floats(norm.weight), _floats(norm.bias)
            setattr(found, name, native.Norm(_address(weight), _address(bias), norm.eps))
            self._kept += [tensor for tensor in (weight, bias) if tensor is not None]
        found.n_heads = attention.n_heads
        found.exact_gelu = mlp.gelu.approximate == "none"
        return found

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "B T"] | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the residual stream after the last block."""
        batch, length, _ = x.shape
        if cache is None or positions is None or length > FEW or torch.is_grad_enabled():
            for block in self.blocks:
                x = block(x, cache, positions, mask)
            return x
        x, keys, threads = x.contiguous(), cache.keys, torch.get_num_threads()
        y = torch.empty_like(x)
        place = self._workspace.cache
        place.keys, place.values = keys.data_ptr(), cache.values.data_ptr()
        place.slots, place.positions = _address(cache.slots), positions.data_ptr()
        place.capacity, place.slot_stride = keys.shape[3], keys.stride(1)
        place.bf16, place.tokens_per_row = _KINDS[keys.dtype], length
        n = batch * length
        scratch = self._workspace.scratch(n, self._width, self._widest, place.capacity, threads)
        self._workspace.kernels.blocks(
            self._address,
            len(self._descriptions),
            ctypes.addressof(place),
            keys.stride(0) * keys.element_size(),
            x.data_ptr(),
            y.data_ptr(),
            _KINDS[x.dtype],
            n,
            scratch,
            threads,
        )
        return y


def _matrix(linear: Linear | QuantizedLinear) -> tuple[native.Matrix, list[Tensor]]:
    """Describe a linear layer; the tensors must live as long as the description."""
    bias = _floats(linear.bias)
    rows, columns, group = linear.out_features, linear.in_features, 0
    if isinstance(linear, QuantizedLinear):
        weights, scales = linear.codes, linear.scales
        kind, group = _QUANTIZED[linear.bits], linear.group
    else:
        weights, scales, kind = linear.weight, None, _KINDS[linear.weight.dtype]
    found = native.Matrix(
        weights.data_ptr(), _address(scales), _address(bias), rows, columns, kind, group
    )
    return found, [tensor for tensor in (weights, scales, bias) if tensor is not None]


def _floats(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float().contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
