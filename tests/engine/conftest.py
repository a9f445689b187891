"""A small random model, as ours and as transformers'."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead.model import GPT, GPTConfig


@pytest.fixture(scope="session")
def model() -> GPT:
    torch.manual_seed(5)
    model = GPT(GPTConfig(vocab_size=97, context_length=40, d_model=32, n_heads=4, n_layers=2))
    with torch.no_grad():
        for parameter in model.parameters():  # far from GPT-2's start, so that tokens differ
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def reference(model: GPT) -> GPT2LMHeadModel:
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
