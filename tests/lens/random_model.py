"""Random models whose every parameter matters, so that no measure holds by accident."""

import torch

from clearhead.model import GPT, GPTConfig


def random_model(dtype=torch.float64, seed=0, **options):
    """Return a model with random biases and LayerNorms too, in eval mode."""
    shape = {"vocab_size": 61, "context_length": 24, "d_model": 24, "n_heads": 3, "n_layers": 3}
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**shape, **options})).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def random_tokens(model, batch=2, length=11, seed=0):
    """Return texts of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator)
