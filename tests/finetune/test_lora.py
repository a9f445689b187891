import copy

import pytest
import torch

from clearhead.data import Rows
from clearhead.engine import SamplingConfig, generate_ids
from clearhead.errors import ClearheadError
from clearhead.finetune import (
    LoRAConfig,
    add_lora,
    lora_config,
    lora_parameters,
    merge_lora,
    remove_lora,
    use_adapter,
)
from clearhead.finetune.lora import TARGETS, LoRALinear, adapter_names
from clearhead.lens.taps import POINTS, run
from clearhead.lens.weights import weights
from clearhead.model import GPT, GPTConfig
from clearhead.train import OptimizerConfig, next_token_loss
from clearhead.train.optim import build_optimizers

SHAPE = GPTConfig(vocab_size=40, context_length=12, d_model=16, n_heads=2, n_layers=2, dropout=0.0)
TOKENS = torch.arange(24).view(2, 12)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(SHAPE).eval()


def learn(model, seed=1):
    """Give the adapter in use weights as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.normal_(std=0.3, generator=generator)


def test_a_new_adapter_changes_nothing_and_alone_is_learnt(model):
    before, names = model(TOKENS), set(model.state_dict())
    add_lora(model, LoRAConfig(rank=4, targets=TARGETS))
    assert torch.equal(model(TOKENS), before)
    learnt = {name for name, one in model.named_parameters() if one.requires_grad}
    assert learnt == set(model.state_dict()) - names
    assert len(learnt) == len(lora_parameters(model)) == 2 * len(TARGETS) * SHAPE.n_layers
    assert all(".adapters.default." in name for name in learnt)


def test_the_first_factor_is_drawn_as_in_the_reference(model):
    torch.manual_seed(3)
    add_lora(model, LoRAConfig(rank=4))
    torch.manual_seed(3)
    drawn = torch.nn.Linear(16, 4, bias=False).weight  # kaiming_uniform_(a=√5)
    found = lora_parameters(model)
    assert torch.equal(found["blocks.0.attention.qkv.a"], drawn)
    assert not found["blocks.0.attention.qkv.b"].any()
    assert found["blocks.1.attention.qkv.b"].shape == (48, 4)


def test_the_formula(model):
    base = copy.deepcopy(model.blocks[0].mlp.up)
    add_lora(model, LoRAConfig(rank=2, alpha=3.0, targets=("up",)))
    learn(model)
    a, b = (lora_parameters(model)[f"blocks.0.mlp.up.{name}"] for name in "ab")
    x = torch.randn(5, 16)
    expected = base(x) + 3.0 / 2 * x @ a.T @ b.T
    torch.testing.assert_close(model.blocks[0].mlp.up(x), expected)


def test_values_and_gradients_are_those_of_the_explicit_weight(model):
    plain = copy.deepcopy(model).double()
    add_lora(model.double(), LoRAConfig(rank=3, alpha=4.5, targets=TARGETS))
    learn(model)
    factors = {name: one.detach().clone() for name, one in lora_parameters(model).items()}
    state = dict(plain.named_parameters())
    for factor in factors.values():
        factor.requires_grad_()
    for name in [one[:-2] for one in factors if one.endswith(".a")]:
        change = 4.5 / 3 * factors[f"{name}.b"] @ factors[f"{name}.a"]
        state[f"{name}.weight"] = state[f"{name}.weight"].detach() + change  # W + α/R · B A
    targets = TOKENS.roll(-1)
    logits = torch.func.functional_call(plain, state, (TOKENS,))
    torch.testing.assert_close(model(TOKENS), logits)
    expected = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="sum")
    expected.backward()
    loss = next_token_loss(model, Rows(TOKENS, targets))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in lora_parameters(model).items():
        assert factors[name].grad.any(), name
        torch.testing.assert_close(parameter.grad, factors[name].grad)
    frozen = set(model.parameters()) - set(lora_parameters(model).values())
    assert all(parameter.grad is None for parameter in frozen)


@pytest.mark.parametrize("targets", [("qkv",), ("down", "out_proj"), TARGETS])
def test_merged_equals_live(model, targets):
    plain = model(TOKENS)
    add_lora(model, LoRAConfig(rank=4, targets=targets))
    learn(model)
    live = model(TOKENS)
    assert (live - plain).abs().max() > 0.01
    merge_lora(model)
    assert (model(TOKENS) - live).abs().max() < 1e-5
    assert set(model.state_dict()) == set(GPT(SHAPE).state_dict())
    assert not any(isinstance(one, LoRALinear) for one in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    merge_lora(model)
    assert (model(TOKENS) - live).abs().max() < 1e-5


def test_removed_it_is_the_model_that_it_was(model):
    before = copy.deepcopy(model.state_dict())
    add_lora(model, LoRAConfig(rank=4))
    learn(model)
    remove_lora(model)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()
    assert model.head.weight is model.token_embedding.weight


def test_several_adapters_on_one_base(model):
    plain = model(TOKENS)
    found = {}
    for seed, (name, targets) in enumerate({"one": ("qkv",), "two": ("up", "down")}.items()):
        add_lora(model, LoRAConfig(rank=seed + 1, targets=targets), name)
        learn(model, seed)
        found[name] = model(TOKENS)
    assert adapter_names(model) == ["one", "two"]
    for name in ("one", "two", "one"):
        use_adapter(model, name)
        assert torch.equal(model(TOKENS), found[name])
        assert lora_config(model).rank == {"one": 1, "two": 2}[name]
    use_adapter(model, None)
    assert torch.equal(model(TOKENS), plain)
    assert lora_config(model) is None
    assert lora_parameters(model) == {}
    with pytest.raises(ClearheadError, match="no adapter 'ones'; did you mean 'one'"):
        use_adapter(model, "ones")
    with pytest.raises(ClearheadError, match="an adapter 'one' already"):
        add_lora(model, LoRAConfig(), "one")


def test_the_lens_taps_the_live_adapter_and_reads_weights_once_merged(model):
    add_lora(model, LoRAConfig(rank=4, targets=TARGETS))
    learn(model)
    with pytest.raises(ClearheadError, match=r"adapters beside .* merge_lora"):
        weights(model)
    seen = run(model, TOKENS, *POINTS)
    merge_lora(model)
    after = run(model, TOKENS, *POINTS)
    for layer in range(SHAPE.n_layers):
        for point in POINTS:
            there, then = seen[point, layer], after[point, layer]
            torch.testing.assert_close(there, then, atol=1e-4, rtol=1e-4)
        out = torch.einsum("bthk,hkd->btd", seen["z", layer], weights(model).layers[layer].out)
        out += weights(model).layers[layer].out_bias
        torch.testing.assert_close(out, seen["attention", layer], atol=1e-4, rtol=1e-4)


def test_the_engine_runs_the_live_adapter(model):
    before = weights(model).layers[0].query.clone()
    add_lora(model, LoRAConfig(rank=4, targets=TARGETS))
    learn(model)
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.0)
    live = list(generate_ids(model, [[1, 2, 3]], sampling))
    merge_lora(model)
    assert not torch.equal(weights(model).layers[0].query, before)
    merged = list(generate_ids(model, [[1, 2, 3]], sampling))
    assert [one.token_id for one in merged] == [one.token_id for one in live]


def test_dropout_in_training_only(model):
    add_lora(model, LoRAConfig(rank=4, dropout=0.5))
    learn(model)
    assert torch.equal(model(TOKENS), model(TOKENS))
    model.train()
    assert not torch.equal(model(TOKENS), model(TOKENS))


def test_a_low_precision_model_keeps_its_type(model):
    model = model.to(torch.bfloat16)
    add_lora(model, LoRAConfig(rank=4))
    learn(model)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    merge_lora(model)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_both_optimisers_learn_it_by_adamw(model, kind):
    add_lora(model, LoRAConfig(rank=4))
    (optimizer,) = build_optimizers(model, OptimizerConfig(kind=kind))
    assert isinstance(optimizer, torch.optim.AdamW)
    held = {one for group in optimizer.param_groups for one in group["params"]}
    assert held == set(lora_parameters(model).values())
    model.train()(TOKENS).logsumexp(-1).sum().backward()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    optimizer.step()
    changed = {n for n, one in model.state_dict().items() if not torch.equal(one, before[n])}
    assert changed
    assert all(".adapters." in name for name in changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be 1 or more"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"rank": True}, "rank is True"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be more than 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ()}, "give some of qkv, out_proj, up, down"),
        ({"targets": ("qkv", "qkv")}, "each once"),
        ({"targets": ("qvk",)}, "'qvk'; did you mean 'qkv'"),
    ],
)
def test_configs_that_make_no_sense(options, message):
    with pytest.raises(ClearheadError, match=message):
        LoRAConfig(**options)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "training"])
def test_names_that_are_none(model, name):
    with pytest.raises(ClearheadError, match="cannot be called"):
        add_lora(model, LoRAConfig(), name)


def test_a_rank_beyond_the_layers_is_refused_before_anything_is_done(model):
    with pytest.raises(ClearheadError, match="rank is 1000000000; the layers are 16 wide"):
        add_lora(model, LoRAConfig(rank=10**9))
    assert adapter_names(model) == []
    assert all(parameter.requires_grad for parameter in model.parameters())
