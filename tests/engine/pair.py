"""A model twice, as ours and as transformers'."""

from dataclasses import dataclass

from transformers import GPT2Config, GPT2LMHeadModel

from clearhead.model import GPT


@dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    ours: GPT
    theirs: GPT2LMHeadModel


def as_transformers(model: GPT) -> GPT2LMHeadModel:
    """Return transformers' model with these weights."""
    config = model.config
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.d_model,
            n_head=config.n_heads,
            n_layer=config.n_layers,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    names = {
        "token_embedding.": "wte.",
        "position_embedding.": "wpe.",
        "blocks.": "h.",
        "norm_1.": "ln_1.",
        "norm_2.": "ln_2.",
        "attention.qkv.": "attn.c_attn.",
        "attention.out_proj.": "attn.c_proj.",
        "mlp.up.": "mlp.c_fc.",
        "mlp.down.": "mlp.c_proj.",
    }
    weights = {}
    for ours, tensor in model.state_dict().items():
        if ours.startswith("head."):
            continue
        name = "ln_f." + ours.removeprefix("norm.") if ours.startswith("norm.") else ours
        for old, new in names.items():
            name = name.replace(old, new)
        is_linear = tensor.dim() == 2 and ".c_" in name
        weights[name] = tensor.T if is_linear else tensor  # theirs are [in, out]
    theirs.transformer.load_state_dict(weights)
    return theirs.eval()
