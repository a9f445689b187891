import pytest
import torch
import torch.nn.functional as F

from clearhead.data import IGNORED, Rows
from clearhead.model import GPT, GPTConfig
from clearhead.train import compute_gradient, evaluate, next_token_loss
from clearhead.train.diagnose import first_non_finite

CONFIG = GPTConfig(vocab_size=23, context_length=8, d_model=8, n_heads=2, n_layers=2, dropout=0.0)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    tokens = torch.randint(23, (5, 9))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, 1:] = IGNORED  # rows of very different length: a mean of means would be wrong
    targets[3, 4:] = IGNORED
    return Rows(inputs, targets)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 5, 99])
def test_accumulated_gradient_is_that_of_the_mean_over_all_tokens(batch, micro_batch_size):
    model = GPT(CONFIG)
    logits, targets = model(batch.inputs).flatten(0, 1), batch.targets.flatten()
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORED)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    gradient = compute_gradient(
        model,
        batch,
        micro_batch_size=micro_batch_size,
        dtype=torch.float32,
        max_grad_norm=0,
    )
    assert gradient.loss == pytest.approx(expected.item(), rel=1e-6)
    assert gradient.finite
    got = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(got, list(wanted), rtol=1e-4, atol=1e-7)
    norm = torch.cat([grad.flatten() for grad in wanted]).norm()
    assert gradient.norm == pytest.approx(norm.item(), rel=1e-4)


def test_clipping_shortens_to_the_norm_asked_for(batch):
    model = GPT(CONFIG)
    gradient = compute_gradient(
        model, batch, micro_batch_size=5, dtype=torch.float32, max_grad_norm=0.01
    )
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    assert gradient.norm > 0.01


@pytest.mark.parametrize("place", ["blocks.1.mlp.up.weight", "blocks.0.attention.out_proj.bias"])
def test_a_bad_weight_is_found_and_named(batch, place):
    model = GPT(CONFIG)
    with torch.no_grad():
        model.get_parameter(place).view(-1)[0] = float("nan")
    gradient = compute_gradient(
        model, batch, micro_batch_size=5, dtype=torch.float32, max_grad_norm=1
    )
    assert not gradient.finite
    assert place in first_non_finite(model, batch, next_token_loss, torch.float32)


def test_an_overflow_is_found_in_the_layer_where_it_begins(batch):
    model = GPT(CONFIG)
    with torch.no_grad():
        model.blocks[1].mlp.up.weight.fill_(3e38)
        model.blocks[1].norm_2.weight.fill_(1e5)
    assert "blocks.1.mlp.up" in first_non_finite(model, batch, next_token_loss, torch.float32)


def test_evaluation_counts_each_token_once_and_bytes_of_text():
    model = GPT(CONFIG)
    inputs = torch.randint(23, (5, 8))
    targets = torch.randint(23, (5, 8))
    token_bytes = torch.arange(23)
    batches = [Rows(inputs[:3], targets[:3]), Rows(inputs[3:], targets[3:])]
    result = evaluate(model, batches, token_bytes, torch.float32)
    total = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum").item()
    assert result.n == 40
    assert result.loss == pytest.approx(total / 40, rel=1e-5)
    bits = total / torch.log(torch.tensor(2.0)).item() / token_bytes[targets].sum().item()
    assert result.bits_per_byte == pytest.approx(bits, rel=1e-5)
    assert model.training
