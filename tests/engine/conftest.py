"""A small model, random and trained, as ours and as transformers'."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pair import Pair, as_transformers

import clearhead
from clearhead.model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=97, context_length=40, d_model=32, n_heads=4, n_layers=2, dropout=0)


@pytest.fixture(scope="session")
def model() -> GPT:
    torch.manual_seed(5)
    model = GPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():  # far from GPT-2's start, so that tokens differ
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def trained() -> GPT:
    """It has learnt the characters of this package's own source for some seconds."""
    text = "".join(
        path.read_text() for path in sorted(Path(clearhead.__file__).parent.glob("*.py"))
    )
    known = [96 if char == "\n" else min(max(ord(char) - 32, 0), 95) for char in text]
    ids = torch.tensor(known)
    torch.manual_seed(6)
    model = GPT(CONFIG).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(300):
        rows = torch.randint(len(ids) - 41, (16, 1)) + torch.arange(41)  # [B, T + 1]
        inputs, targets = ids[rows[:, :-1]], ids[rows[:, 1:]]
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 2.5, "it learnt nothing"
    return model.eval()


@pytest.fixture(scope="session", params=["random", "trained"])
def pair(request: pytest.FixtureRequest, model: GPT, trained: GPT) -> Pair:
    ours = model if request.param == "random" else trained
    return Pair(ours, as_transformers(ours))
