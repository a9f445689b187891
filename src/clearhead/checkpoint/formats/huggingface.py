"""GPT-2 as Hugging Face stores it: its names, its layouts, its config."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor

from clearhead.checkpoint.tensors import Entry, TensorFile
from clearhead.config import from_dict
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig

# Our name, theirs, and the shape in their layout (theirs stores linear layers as [in, out]).
_OUTSIDE = (
    ("token_embedding.weight", "transformer.wte.weight", "V D"),
    ("position_embedding.weight", "transformer.wpe.weight", "T D"),
    ("norm.weight", "transformer.ln_f.weight", "D"),
    ("norm.bias", "transformer.ln_f.bias", "D"),
    ("head.weight", "lm_head.weight", "V D"),
)
_IN_BLOCK = (
    ("norm_1.weight", "ln_1.weight", "D"),
    ("norm_1.bias", "ln_1.bias", "D"),
    ("attention.qkv.weight", "attn.c_attn.weight", "D 3D"),
    ("attention.qkv.bias", "attn.c_attn.bias", "3D"),
    ("attention.out_proj.weight", "attn.c_proj.weight", "D D"),
    ("attention.out_proj.bias", "attn.c_proj.bias", "D"),
    ("norm_2.weight", "ln_2.weight", "D"),
    ("norm_2.bias", "ln_2.bias", "D"),
    ("mlp.up.weight", "mlp.c_fc.weight", "D 4D"),
    ("mlp.up.bias", "mlp.c_fc.bias", "4D"),
    ("mlp.down.weight", "mlp.c_proj.weight", "4D D"),
    ("mlp.down.bias", "mlp.c_proj.bias", "D"),
)
_CONFIG = {  # theirs: ours
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "d_model",
    "n_head": "n_heads",
    "n_layer": "n_layers",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "tie_word_embeddings": "tied_head",
}
_OWN = ("qkv_bias", "bias")  # theirs has no such options; written where they are off
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
_FIXED: dict[str, tuple[Any, ...]] = {  # what would make it another architecture: the values we are
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "add_cross_attention": (False,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
_DTYPES = ("F32", "F16", "BF16")
_SHOWN = 4  # names that an error message lists before it says "…"


@dataclass(frozen=True)
class Weight:
    """One tensor of a checkpoint."""

    ours: str
    """Its name in `GPT`."""
    theirs: str
    """Its name in the file."""
    shape: tuple[int, ...]
    """Its shape in the file."""
    absent: bool
    """Whether our model leaves it out: a bias of zeros, in the file for others' sake."""

    @property
    def transposed(self) -> bool:
        """Whether the file has it as [in, out], and our linear layer as [out, in]."""
        return ".c_" in self.theirs and len(self.shape) == 2


def weights(config: GPTConfig) -> Iterator[Weight]:
    """Yield every tensor of the file; lazily, since a hostile config may ask for any number."""
    d_model = config.d_model
    sizes = {"V": config.vocab_size, "T": config.context_length, "D": d_model}
    sizes |= {"3D": 3 * d_model, "4D": 4 * d_model}

    def weight(ours: str, theirs: str, shape: str) -> Weight:
        has_bias = config.qkv_bias if ".qkv." in ours else config.bias
        absent = ours.endswith(".bias") and not has_bias
        return Weight(ours, theirs, tuple(sizes[size] for size in shape.split()), absent)

    for ours, theirs, shape in _OUTSIDE:
        if not (config.tied_head and ours == "head.weight"):
            yield weight(ours, theirs, shape)
    for layer in range(config.n_layers):
        for ours, theirs, shape in _IN_BLOCK:
            yield weight(f"blocks.{layer}.{ours}", f"transformer.h.{layer}.{theirs}", shape)


def n_parameters(config: GPTConfig) -> int:
    """Count the weights of a model of this shape, a tied head once."""
    return sum(math.prod(weight.shape) for weight in weights(config) if not weight.absent)


def config_to_json(config: GPTConfig, dtype: torch.dtype, end_of_text: int) -> dict[str, Any]:
    """Return the content of config.json; biases that we leave out are told by keys of our own."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{key: allowed[0] for key, allowed in _FIXED.items()},
        **{theirs: getattr(config, ours) for theirs, ours in _CONFIG.items()},
        **dict.fromkeys(_DROPOUTS, config.dropout),
        **{key: False for key in _OWN if not getattr(config, key)},
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": str(dtype).removeprefix("torch."),
    }


def generation_config(end_of_text: int) -> dict[str, Any]:
    """Return the content of generation_config.json."""
    return {"bos_token_id": end_of_text, "eos_token_id": end_of_text}


def config_from_json(values: Mapping[str, Any], where: str) -> GPTConfig:
    """Read config.json, ours or another's; what it leaves out is as in GPT-2.

    Args:
        values: Its content.
        where: The file, to begin an error message with.

    Raises:
        ClearheadError: It describes another architecture than ours, or makes no sense.
    """
    for key, allowed in _FIXED.items():
        value = values.get(key, None if key == "model_type" else allowed[0])
        if value not in allowed:
            raise ClearheadError(
                f"{where}: {key} is {short(value)}; clearhead has {allowed[0]!r} only"
            )
    names = {**_CONFIG, **dict.fromkeys(_OWN)}
    given = {names[key] or key: value for key, value in values.items() if key in names}
    dropouts = [values[key] for key in _DROPOUTS if key in values]
    if any(one != dropouts[0] for one in dropouts):
        raise ClearheadError(
            f"{where}: {', '.join(_DROPOUTS)} differ; clearhead has one dropout for all"
        )
    if dropouts:
        given["dropout"] = dropouts[0]
    config = from_dict(GPTConfig, given, where)
    inner = values.get("n_inner")
    if inner not in (None, 4 * config.d_model):
        raise ClearheadError(f"{where}: n_inner is {short(inner)}; clearhead has 4·n_embd only")
    return config


def to_file(model: GPT) -> dict[str, Tensor]:
    """Return the tensors that model.safetensors holds, by their names there."""
    state = model.state_dict()
    tensors = {}
    for weight in weights(model.config):
        if weight.absent:
            tensors[weight.theirs] = torch.zeros(weight.shape, dtype=model.head.weight.dtype)
        else:
            tensor = state[weight.ours]
            tensors[weight.theirs] = tensor.T if weight.transposed else tensor
    return tensors


def from_file(
    file: TensorFile, config: GPTConfig, device: torch.device, dtype: torch.dtype | None
) -> GPT:
    """Build the model that the config describes, from the tensors of an open file.

    The file's header is held against the config before anything is built, so that memory stays
    within the file's size whatever the config says.

    Args:
        file: model.safetensors, with or without the prefix "transformer." in its names.
        config: What `config_from_json` gave.
        device: Where the weights go.
        dtype: What they become; the file's by default.

    Raises:
        ClearheadError: File and config do not fit together.
    """
    prefix = check(file, config)
    state = {}
    for weight in weights(config):
        tensor = file.read(weight.theirs.removeprefix(prefix))
        if not weight.absent:
            tensor = tensor.T if weight.transposed else tensor
            state[weight.ours] = tensor.to(
                device, dtype, copy=True, memory_format=torch.contiguous_format
            )
        elif tensor.any():
            raise ClearheadError(f"{weight.theirs} is not zero, though config.json has no bias")
    return _assemble(config, state)


def _assemble(config: GPTConfig, state: dict[str, Tensor]) -> GPT:
    """Put the tensors into a model that never had weights of its own."""
    with torch.device("meta"):
        model = GPT(config)
    if config.tied_head:
        state["head.weight"] = state["token_embedding.weight"]
    model.load_state_dict(state, assign=True)
    if config.tied_head:  # assigning made two parameters of the one
        model.head.weight = model.token_embedding.weight
    return model.eval()


def check(file: TensorFile, config: GPTConfig) -> str:
    """Hold the names, shapes and types of a file's header against the config.

    Returns:
        The prefix that the file's names lack: "transformer." in some of others' making, or "".

    Raises:
        ClearheadError: File and config do not fit together; the message names the tensors.
    """
    is_bare = "transformer.wte.weight" not in file.header and "wte.weight" in file.header
    prefix = "transformer." if is_bare else ""
    header = {name: entry for name, entry in file.header.items() if not _is_mask(name)}
    enough = islice(weights(config), len(header) + _SHOWN + 1)
    wanted = {weight.theirs.removeprefix(prefix): weight for weight in enough}
    missing = [name for name in wanted if name not in header]
    surplus = [name for name in header if name not in wanted]
    if config.tied_head and surplus == ["lm_head.weight"]:
        _check_tied(file, prefix)
        surplus = []
    if missing or surplus:
        parts = [f"missing {_several(missing)}"] if missing else []
        parts += [f"surplus {_several(surplus)}"] if surplus else []
        raise ClearheadError(f"its tensors are not those of config.json: {'; '.join(parts)}")
    _check_entries(header, wanted)
    return prefix


def _check_entries(header: Mapping[str, Entry], wanted: Mapping[str, Weight]) -> None:
    """Hold each tensor's shape and type against what it should be."""
    dtype = next(iter(header.values())).dtype
    if dtype not in _DTYPES:
        raise ClearheadError(f"its tensors hold {dtype}; clearhead reads {', '.join(_DTYPES)}")
    for name, weight in wanted.items():
        entry = header[name]
        if entry.shape != weight.shape:
            found, expected = list(entry.shape), list(weight.shape)
            raise ClearheadError(f"{name} is {found}; config.json asks for {expected}")
        if entry.dtype != dtype:
            raise ClearheadError(f"{name} holds {entry.dtype}; the other tensors hold {dtype}")


def _check_tied(file: TensorFile, prefix: str) -> None:
    """Refuse a head that is stored beside the token embedding and is not equal to it."""
    embedding = "transformer.wte.weight".removeprefix(prefix)
    if embedding in file.header and not torch.equal(
        file.read("lm_head.weight"), file.read(embedding)
    ):
        raise ClearheadError(
            "lm_head.weight is not the token embedding, though config.json ties them: "
            'set "tie_word_embeddings": false'
        )


def _is_mask(name: str) -> bool:
    """Say whether it is one of the causal masks that old files hold, which are no weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def _several(names: list[str]) -> str:
    shown = ", ".join(repr(name[:80])[1:-1] for name in names[:_SHOWN])
    return f"{shown}, …" if len(names) > _SHOWN else shown
