import pytest
import torch
from torch.optim import Muon

from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig
from clearhead.train.muon import Float32Muon, orthogonalised
from clearhead.train.optim import (
    OptimizerConfig,
    build_optimizers,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)

CONFIG = GPTConfig(vocab_size=11, context_length=8, d_model=8, n_heads=2, n_layers=2, dropout=0.0)


def step(model, optimizers):
    model(torch.arange(8)[None]).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_weight_has_one_optimiser_and_vectors_do_not_decay(kind):
    model = GPT(CONFIG)
    optimizers = build_optimizers(model, OptimizerConfig(kind=kind))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    owned = [parameter for group in groups for parameter in group["params"]]
    assert len(owned) == len(set(owned)) == len(list(model.parameters()))
    for group in groups:
        assert all((p.ndim == 2) == (group["weight_decay"] > 0) for p in group["params"])


def test_muon_takes_the_matrices_inside_the_blocks():
    model = GPT(CONFIG)
    _, muon = build_optimizers(model, OptimizerConfig(kind="muon"))
    inside = {p for p in model.blocks.parameters() if p.ndim == 2}
    assert set(muon.param_groups[0]["params"]) == inside


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (8, 8)])
def test_muon_in_fp32_goes_where_torch_s_goes(shape):
    torch.manual_seed(0)
    start, settings = torch.randn(shape), {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9}
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = Float32Muon([ours], **settings), Muon([theirs], **settings)
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(shape)
        for optimizer in optimizers:
            optimizer.step()
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()  # theirs is rounded to bf16
    buffers = [
        o.state[p]["momentum_buffer"] for o, p in zip(optimizers, (ours, theirs), strict=True)
    ]
    assert torch.equal(*buffers)


def test_orthogonalised_is_the_polynomial_of_the_singular_values():
    torch.manual_seed(0)
    matrix, (a, b, c) = torch.randn(5, 9, dtype=torch.float64), (3.4445, -4.7750, 2.0315)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / matrix.norm()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    for one, expected in ((matrix, u * s @ vt), (matrix.T, (u * s @ vt).T)):
        torch.testing.assert_close(orthogonalised(one, (a, b, c), 5, 1e-7), expected)


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, Float32Muon), (torch.bfloat16, Muon)])
def test_muon_computes_in_the_run_s_type(dtype, kind):
    _, muon = build_optimizers(GPT(CONFIG), OptimizerConfig(kind="muon"), dtype)
    assert type(muon) is kind


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_survives_a_round_trip_bit_for_bit(kind):
    torch.manual_seed(0)
    model = GPT(CONFIG)
    optimizers = build_optimizers(model, OptimizerConfig(kind=kind))
    step(model, optimizers)
    tensors = {k: v.clone() for k, v in optimizer_tensors(model, optimizers).items()}
    twin = GPT(CONFIG)
    twin.load_state_dict(model.state_dict())
    twins = build_optimizers(twin, OptimizerConfig(kind=kind))
    load_optimizer_tensors(twin, twins, tensors)
    for each in (optimizers, twins):
        set_learning_rate(each, 0.5)
    step(model, optimizers)
    step(twin, twins)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_state_of_another_model_is_refused():
    model = GPT(CONFIG)
    optimizers = build_optimizers(model, OptimizerConfig())
    with pytest.raises(ClearheadError, match="fits no weight"):
        load_optimizer_tensors(model, optimizers, {"blocks.9.mlp.up.weight/exp_avg": torch.ones(1)})


@pytest.mark.parametrize("wrong", [{"kind": "sgd"}, {"beta1": 1.0}, {"learning_rate": -1.0}])
def test_wrong_values_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ClearheadError, match=name):
        OptimizerConfig(**wrong)
