"""A model whose tokens are computed by native kernels."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clearhead.model import GPT, KVCache
from clearhead.model.attention import Attention
from clearhead.model.gpt import Block, FeedForward
from clearhead.model.linear import Linear
from clearhead.native import library as native
from clearhead.native.graphs import CapturedSteps
from clearhead.quantize import QuantizedEmbedding, QuantizedLinear, is_quantized

FEW = 16
"""The most tokens of one text that the kernels take at once where torch is faster with more: fp32
and bf16 weights on processors with AVX-512, where oneDNN multiplies many rows faster."""

_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_QUANTIZED = {8: 2, 4: 3}
_KNOWN = (
    *(GPT, Block, Attention, FeedForward, Linear, QuantizedLinear, QuantizedEmbedding),
    *(nn.LayerNorm, nn.Embedding, nn.GELU, nn.Dropout, nn.ModuleList),
)


class Backend:
    """What computes a model's next tokens, for one thread at a time.

    Attributes:
        model: The model. Its weights must not change any more; its training mode is set aside
            while it computes.
        name: The kernels' instruction set, or "torch".
        why: Why torch computes; None if the kernels do.
    """

    def __init__(self, model: GPT) -> None:
        """Take the native kernels if they know the model, and torch if not, and say why."""
        kernels = native.library()
        self.model, self._modules = model, list(model.modules())
        self.why = _obstacle(model)
        if self.why is None and kernels is None:
            self.why = (
                "the native kernels were not built: no C++ compiler was found at installation"
            )
        self._kernels = None if self.why else _Kernels(model, cast(native.Library, kernels))
        self.name = "torch" if self._kernels is None else self._kernels.variant
        captures = model.device.type == "cuda" and _hooked(model) is None
        self._steps = CapturedSteps(model) if captures else None

    def cache(self, n_slots: int, *, capacity: int | None = None) -> KVCache:
        """Make an empty cache for `n_slots` texts of at most `capacity` tokens each.

        Keys and values have the model's number type; bf16 if its weights have 8 or 4 bits and the
        kernels compute, since these round more than bf16 does.
        """
        model = self.model
        few_bits = self._kernels is not None and is_quantized(model)
        dtype = torch.bfloat16 if few_bits else model.position_embedding.weight.dtype
        return KVCache(model.config, n_slots, capacity=capacity, dtype=dtype, device=model.device)

    def read(
        self, ids: Int[Tensor, "B T"], cache: KVCache, *, all_logits: bool = False
    ) -> Float[Tensor, "B *T V"]:
        """Read the next tokens of some texts into a cache.

        Args:
            ids: The tokens.
            cache: Where the texts' past lies.
            all_logits: Whether what follows each token is wanted, or only what follows the last.

        Returns:
            Logits, [B, V], or [B, T, V] if all are wanted.

        Raises:
            ClearheadError: The cache has no room for them.
            IndexError: A token is outside the vocabulary.
        """
        if self._kernels is not None and self._kernels.takes(ids, cache):
            return self._kernels.read(ids, cache, all_logits)
        with torch.inference_mode(), _evaluating(self._modules):
            if self._steps is not None and ids.shape[1] == 1:
                logits = self._steps.read(ids, cache)  # [B, V]
                return logits[:, None] if all_logits else logits
            hidden = self.model.hidden(ids.to(self.model.device), cache)  # [B, T, D]
            return self.model.head(hidden if all_logits else hidden[:, -1])


class _Kernels:
    """A model, as the native kernels see it."""

    def __init__(self, model: GPT, library: native.Library) -> None:
        self.variant = library.variant
        self._library = library
        self._kept: list[Tensor] = []
        self._memory = torch.empty(0)
        self._seen: KVCache | None = None
        self._place: native.Cache | None = None
        self._n_logits = model.head.out_features
        torch_is_faster = library.variant.startswith("avx512") and not is_quantized(model)
        self._most = FEW if torch_is_faster else model.config.context_length
        blocks = [self._block(cast(Block, block)) for block in model.blocks]
        self._blocks = (native.Block * len(blocks))(*blocks)
        embedding = cast(nn.Embedding | QuantizedEmbedding, model.token_embedding)
        of_tokens = embedding.matrix if isinstance(embedding, QuantizedEmbedding) else embedding
        self._model = native.Model(
            tokens=self._matrix(of_tokens),
            positions=self._matrix(model.position_embedding),
            head=self._matrix(model.head),
            norm=self._norm(model.norm),
            blocks=ctypes.addressof(self._blocks),
            n_blocks=len(blocks),
            n_heads=model.config.n_heads,
            exact_gelu=model.config.exact_gelu,
        )

    def takes(self, ids: Int[Tensor, "B T"], cache: KVCache) -> bool:
        """Say whether the kernels compute so many tokens, and faster than torch."""
        if cache is not self._seen:
            self._see(cache)
        return self._place is not None and 0 < ids.shape[1] <= self._most

    def read(
        self, ids: Int[Tensor, "B T"], cache: KVCache, all_logits: bool
    ) -> Float[Tensor, "B *T V"]:
        batch, length = ids.shape
        if ids.dtype != torch.int64 or not ids.is_contiguous():
            ids = ids.long().contiguous()
        threads, place = torch.get_num_threads(), cast(native.Cache, self._place)
        place.tokens_per_row = length
        logits = torch.empty((batch, length, self._n_logits)[:: 1 if all_logits else 2])
        refusal = self._library.read(
            ctypes.addressof(self._model),
            ctypes.addressof(place),
            ids.data_ptr(),
            batch,
            logits.data_ptr(),
            all_logits,
            self._scratch(batch * length, place.capacity, threads),
            threads,
        )
        if refusal == native.NO_ROOM:
            cache.positions(length)  # tells by how much
        if refusal == native.UNKNOWN_TOKEN:
            raise IndexError("a token id is outside the model's vocabulary")
        return logits

    def _see(self, cache: KVCache) -> None:
        """Note where a cache lies, if the kernels know its kind: most reads are into the same."""
        self._seen, self._place, keys = cache, None, cache.keys
        if keys.device.type == "cpu" and keys.dtype in _KINDS:
            self._place = native.Cache(
                keys=keys.data_ptr(),
                values=cache.values.data_ptr(),
                slots=_address(cache.slots),
                lengths=cache.lengths.data_ptr(),
                capacity=keys.shape[3],
                slot_stride=keys.stride(1),
                layer_stride=keys.stride(0),
                bf16=_KINDS[keys.dtype],
            )

    def _scratch(self, n: int, capacity: int, threads: int) -> int:
        """Return the address of enough memory for what lies between two products."""
        needed = self._library.scratch(ctypes.addressof(self._model), capacity, n, threads)
        if len(self._memory) < needed:
            self._memory = torch.empty(needed)
        return self._memory.data_ptr()

    def _block(self, block: Block) -> native.Block:
        return native.Block(
            qkv=self._matrix(block.attention.qkv),
            out_proj=self._matrix(block.attention.out_proj),
            up=self._matrix(block.mlp.up),
            down=self._matrix(block.mlp.down),
            norm_1=self._norm(block.norm_1),
            norm_2=self._norm(block.norm_2),
        )

    def _norm(self, norm: nn.LayerNorm) -> native.Norm:
        return native.Norm(self._floats(norm.weight), self._floats(norm.bias), norm.eps)

    def _matrix(self, layer: nn.Embedding | Linear | QuantizedLinear) -> native.Matrix:
        bias = None if isinstance(layer, nn.Embedding) else self._floats(layer.bias)
        if isinstance(layer, QuantizedLinear):
            scales = self._keep(F.pad(layer.scales.flatten(), (0, 16)))  # read, and not used
            kind, shape = _QUANTIZED[layer.bits], (layer.out_features, layer.in_features)
            return native.Matrix(self._keep(layer.codes), scales, bias, *shape, kind, layer.group)
        weight = layer.weight.detach()
        return native.Matrix(self._keep(weight), None, bias, *weight.shape, _KINDS[weight.dtype], 0)

    def _floats(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self._keep(tensor.detach().float().contiguous())

    def _keep(self, tensor: Tensor) -> int:
        """Return a tensor's address, which holds as long as we do."""
        self._kept.append(tensor)
        return tensor.data_ptr()


def _obstacle(model: GPT) -> str | None:
    """Return why the kernels cannot compute a model; None if they can."""
    if model.device.type != "cpu":
        return f"the native kernels compute on a CPU, and the model lies on {model.device}"
    if (hooked := _hooked(model)) is not None:
        return f"{hooked or 'the model'} has hooks, which the native kernels would not call"
    for name, module in model.named_modules():
        if type(module) not in _KNOWN:
            return f"{name} is a {type(module).__name__}, which the native kernels do not know"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        of_codes = name.endswith((".codes", ".scales"))
        if not (of_codes or tensor.dtype in _KINDS) or not tensor.is_contiguous():
            return f"{name} is {tensor.dtype}, which the native kernels do not know"
    return None


def _hooked(model: GPT) -> str | None:
    """Return the name of a module that has hooks; None if there is none."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return name
    return None


@contextmanager
def _evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Switch dropout off, and each module that was training back on afterwards."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
