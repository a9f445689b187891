"""A small random model and a saved checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clearhead.checkpoint import checkpoint_path, save
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import Tokenizer, build_tokenizer

TRAINER = {"step": 7, "loss": 2.5}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return build_tokenizer("bytes")


@pytest.fixture(scope="session")
def make_model(tokenizer: Tokenizer) -> Callable[..., GPT]:
    def make(**options: bool | int | float) -> GPT:
        sizes = {"context_length": 16, "d_model": 16, "n_heads": 2, "n_layers": 2}
        config = GPTConfig(**{"vocab_size": tokenizer.vocab_size, **sizes, **options})
        torch.manual_seed(0)
        model = GPT(config)
        with torch.no_grad():
            for parameter in model.parameters():  # away from zero biases and unit norms
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def saved(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., GPT], tokenizer: Tokenizer
) -> Path:
    """A checkpoint to read only."""
    folder = checkpoint_path(tmp_path_factory.mktemp("run"), 7)
    tensors = {"optimiser": {"momentum": torch.arange(6.0).view(2, 3), "step": torch.tensor(7)}}
    save(folder, make_model(), tokenizer, tensors=tensors, documents={"trainer": TRAINER})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(saved, tmp_path / "run" / "checkpoints" / saved.name))
