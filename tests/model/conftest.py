"""A small random model, as ours and as transformers'."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead.checkpoint.formats.huggingface import TABLE
from clearhead.checkpoint.formats.source import ModelSource, parts
from clearhead.model import GPT, GPTConfig

CONFIG = GPTConfig(
    vocab_size=61, context_length=24, d_model=32, n_heads=4, n_layers=3, layer_norm_epsilon=1e-3
)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():  # away from zero biases and unit norms
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def theirs(model: GPT) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=CONFIG.vocab_size,
        n_positions=CONFIG.context_length,
        n_embd=CONFIG.d_model,
        n_head=CONFIG.n_heads,
        n_layer=CONFIG.n_layers,
        layer_norm_epsilon=CONFIG.layer_norm_epsilon,
        bos_token_id=0,
        eos_token_id=0,
    )
    reference = GPT2LMHeadModel(config).eval()
    source = ModelSource(model)
    tensors = {one.theirs[0]: parts(source, one)[0] for one in TABLE.weights(CONFIG)}
    left = reference.load_state_dict(tensors, strict=False)
    assert left.missing_keys == ["lm_head.weight"]  # tied
    assert not left.unexpected_keys
    return reference
