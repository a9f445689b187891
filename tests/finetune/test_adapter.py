"""Adapters on disk, held against PEFT, which this project did not write."""

import json
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clearhead import checkpoint
from clearhead.checkpoint.formats.peft import ADAPTER_WEIGHTS
from clearhead.checkpoint.tensors import Entry, read_tensors, write_tensors
from clearhead.errors import ClearheadError
from clearhead.finetune import (
    LoRAConfig,
    add_lora,
    load_adapter,
    lora_config,
    lora_parameters,
    save_adapter,
    use_adapter,
)
from clearhead.finetune.lora import TARGETS
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import build_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint"))
from fuzz import fuzz

SHAPE = GPTConfig(vocab_size=257, context_length=16, d_model=16, n_heads=2, n_layers=2)
TOKENS = torch.arange(32).view(2, 16)
NAME = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("bytes")


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    torch.manual_seed(0)
    model = GPT(SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("models") / "base"
    checkpoint.save(folder, model, tokenizer)
    return folder


def adapted(base, **options):
    """Return a model with an adapter as if it had been trained."""
    model = checkpoint.load_model(base)
    torch.manual_seed(1)
    add_lora(model, LoRAConfig(**{"rank": 3, "alpha": 5.0, **options}))
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def saved(base, tokenizer):
    """A saved adapter to read only."""
    folder = base.with_name("adapter")
    documents = {"trainer": {"step": 3}}
    save_adapter(folder, adapted(base), tokenizer, base=base, documents=documents)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """An adapter to damage, without checksums that would tell first."""
    shutil.copytree(saved, tmp_path / "adapter")
    shutil.rmtree(tmp_path / "adapter" / "clearhead")
    return tmp_path / "adapter"


def change(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def theirs(base):
    """PEFT, and the base as transformers loads it."""
    import peft
    from transformers import GPT2LMHeadModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield peft, GPT2LMHeadModel.from_pretrained(base).eval()


@pytest.mark.parametrize("targets", [("qkv",), ("out_proj",), ("down", "up"), TARGETS])
@pytest.mark.filterwarnings("ignore")
def test_peft_computes_the_same_from_what_we_saved(theirs, base, tokenizer, tmp_path, targets):
    peft, model = theirs
    ours = adapted(base, targets=targets)
    save_adapter(tmp_path / "adapter", ours, tokenizer, base=base)
    plain = model(TOKENS).logits
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    assert (loaded(TOKENS).logits - plain).abs().max() > 0.1
    torch.testing.assert_close(loaded(TOKENS).logits, ours(TOKENS), atol=1e-4, rtol=1e-4)
    auto = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(auto(TOKENS).logits, loaded(TOKENS).logits)


@pytest.mark.parametrize(
    ("modules", "targets"),
    [
        (None, ("qkv",)),
        (["c_proj"], ("out_proj", "down")),
        (["attn.c_proj", "c_fc"], ("out_proj", "up")),
        ("all-linear", TARGETS),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_we_compute_the_same_from_what_peft_saved(theirs, base, tmp_path, modules, targets):
    peft, model = theirs
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=modules, init_lora_weights=False)
    loaded = peft.get_peft_model(model, settings).eval()
    loaded.save_pretrained(tmp_path / "adapter")
    model, tokenizer = load_adapter(tmp_path / "adapter")
    assert tokenizer.name == build_tokenizer("bytes").name
    assert lora_config(model) == LoRAConfig(rank=4, alpha=6.0, targets=targets)
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS), atol=1e-4, rtol=1e-4)


def test_what_is_loaded_is_what_was_saved(saved, base, tokenizer):
    state = torch.get_rng_state()
    model, read = load_adapter(saved)
    assert torch.equal(torch.get_rng_state(), state)
    expected = adapted(base)
    assert torch.equal(model(TOKENS), expected.eval()(TOKENS))
    assert read.name == tokenizer.name
    assert not model.training
    learnt = {name for name, one in model.named_parameters() if one.requires_grad}
    assert learnt == {name for name, one in expected.named_parameters() if one.requires_grad}
    assert checkpoint.load_document(saved, "trainer") == {"step": 3}
    checkpoint.verify(saved)


def test_the_base_may_be_named_relative_to_the_adapter(saved, tmp_path, base):
    shutil.copytree(base, tmp_path / "moved")
    shutil.copytree(saved, tmp_path / "runs" / "adapter")
    shutil.rmtree(tmp_path / "runs" / "adapter" / "clearhead")
    change(tmp_path / "runs" / "adapter", base_model_name_or_path="../../moved")
    model, _ = load_adapter(tmp_path / "runs" / "adapter")
    assert torch.equal(model(TOKENS), load_adapter(saved)[0](TOKENS))


def test_a_base_that_moved_is_given(saved, tmp_path, base, tokenizer):
    shutil.copytree(base, tmp_path / "moved")
    model, _ = load_adapter(saved, base=tmp_path / "moved")
    assert torch.equal(model(TOKENS), load_adapter(saved)[0](TOKENS))
    checkpoint.save(tmp_path / "other", GPT(SHAPE), tokenizer)
    with pytest.raises(ClearheadError, match=r"other does not hold the weights .* SHA-256 differs"):
        load_adapter(saved, base=tmp_path / "other")
    load_adapter(saved, base=tmp_path / "other", verify=False)


def test_a_damaged_adapter_is_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "adapter")
    path = tmp_path / "adapter" / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ClearheadError, match=r"adapter_model\.safetensors is damaged: its check"):
        load_adapter(tmp_path / "adapter")


def test_types_are_the_wider_ones(base, tokenizer, tmp_path):
    model = adapted(base)
    checkpoint.save(tmp_path / "half", checkpoint.load_model(base).bfloat16(), tokenizer)
    save_adapter(tmp_path / "adapter", model, tokenizer, base=tmp_path / "half")
    assert {one.dtype for one in load_adapter(tmp_path / "adapter")[0].parameters()} == {
        torch.float32
    }
    found, _ = load_adapter(tmp_path / "adapter", dtype=torch.bfloat16)
    assert {one.dtype for one in found.parameters()} == {torch.bfloat16}


def test_the_other_readers_know_it(saved, base):
    told = checkpoint.describe(saved)
    assert checkpoint.resolve(saved) == saved
    assert told.config == SHAPE
    assert told.adapter.base == base
    assert told.adapter.settings.targets == ("qkv",)
    assert told.adapter.n_parameters == 2 * 3 * (16 + 48)
    assert told.n_parameters == load_adapter(saved)[0].n_parameters()
    with pytest.raises(ClearheadError, match="is an adapter; make a whole model of it"):
        checkpoint.load(saved)


def test_no_weights_are_lost_on_saving(base, tokenizer, tmp_path):
    model = adapted(base)
    with pytest.raises(ClearheadError, match="save them by save_adapter"):
        checkpoint.save(tmp_path / "whole", model, tokenizer)
    use_adapter(model, None)
    with pytest.raises(ClearheadError, match="no adapter of the model is in use"):
        save_adapter(tmp_path / "adapter", model, tokenizer, base=base)
    assert list(tmp_path.iterdir()) == []


def test_a_base_of_another_shape_is_refused(base, tokenizer, tmp_path):
    torch.manual_seed(0)
    model = GPT(replace(SHAPE, labels=("ham", "spam"), tied_head=False))
    add_lora(model, LoRAConfig(rank=2))
    with pytest.raises(ClearheadError, match="base is of another shape than the model"):
        save_adapter(tmp_path / "adapter", model, tokenizer, base=base)


@pytest.mark.filterwarnings("ignore")
def test_a_classifiers_adapter_is_pefts_too(tokenizer, tmp_path):
    import peft
    from transformers import GPT2ForSequenceClassification

    torch.manual_seed(0)
    model = GPT(replace(SHAPE, labels=("ham", "spam"), tied_head=False)).eval()
    checkpoint.save(tmp_path / "base", model, tokenizer)
    ours = adapted(tmp_path / "base")
    save_adapter(tmp_path / "adapter", ours, tokenizer, base=tmp_path / "base")
    theirs = GPT2ForSequenceClassification.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    tokens = TOKENS + 60
    found = load_adapter(tmp_path / "adapter")[0](tokens)[:, -1]
    torch.testing.assert_close(loaded(tokens).logits, found, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_classifiers_adapter_of_pefts_is_loaded_with_its_head(tokenizer, tmp_path):
    import peft
    from transformers import GPT2ForSequenceClassification

    torch.manual_seed(0)
    model = GPT(replace(SHAPE, labels=("ham", "spam"), tied_head=False)).eval()
    checkpoint.save(tmp_path / "base", model, tokenizer)
    settings = peft.LoraConfig(r=2, task_type="SEQ_CLS", init_lora_weights=False)
    theirs = peft.get_peft_model(
        GPT2ForSequenceClassification.from_pretrained(tmp_path / "base"), settings
    ).eval()
    with torch.no_grad():
        theirs.base_model.model.score.modules_to_save["default"].weight.normal_()
    theirs.save_pretrained(tmp_path / "adapter")
    ours, _ = load_adapter(tmp_path / "adapter")
    found = ours(TOKENS)[:, -1]
    torch.testing.assert_close(found, theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)
    told = checkpoint.describe(tmp_path / "adapter")
    assert told.n_parameters == ours.n_parameters()
    assert told.adapter.n_parameters == 2 * 2 * (16 + 48) + 2 * 16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 10**9}, r"lora_A.weight is \[3, 16\]; .* ask for \[1000000000, 16\]"),
        ({"r": 0}, "r is 0; it must be 1 or more"),
        ({"r": "3"}, "r is '3'"),
        ({"r": 4}, r"is \[3, 16\]; adapter_config.json and the base ask for \[4, 16\]"),
        ({"lora_alpha": 1e400}, "lora_alpha is inf"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"lora_alpha": 0}, "alpha is 0.0; it must be more than 0"),
        ({"lora_dropout": True}, "lora_dropout is True"),
        ({"lora_dropout": 3}, "dropout is 3.0"),
        ({"target_modules": "c_.*"}, "target_modules is 'c_.*'; clearhead reads a list"),
        ({"target_modules": [["c_attn"]]}, "clearhead reads a list of names"),
        ({"target_modules": ["lm_head"]}, r"on attn.c_attn, attn.c_proj, .* only"),
        ({"target_modules": ["h.1.attn.c_attn"]}, "in 1 of 2 blocks"),
        ({"target_modules": ["c_attn", "c_fc"]}, r"missing .*h.0.mlp.c_fc.lora_A.weight"),
        ({"target_modules": ["c_fc"]}, r"missing .*c_fc.* surplus .*h.1.attn.c_attn.lora_B"),
        ({"use_dora": True}, "'use_dora' is True; clearhead has plain LoRA only"),
        ({"rank_pattern": {"c_attn": 2}}, "'rank_pattern' is"),
        ({"modules_to_save": ["wte"]}, "modules_to_save is"),
        ({"modules_to_save": ["score"]}, "its base has no labels"),
        ({"bias": "all"}, "'bias' is 'all'"),
        ({"of_tomorrow": 1}, "'of_tomorrow' is 1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": []}, r"init_lora_weights is \[\]"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path names no folder"),
        ({"base_model_name_or_path": "gpt2"}, "its base 'gpt2' is no folder; .* --base DIR"),
        ({"base_model_name_or_path": "a" * 9999}, "is no folder"),
        ({"base_model_name_or_path": "a\0"}, "is no folder"),
        ({"base_model_name_or_path": "."}, "is an adapter"),
        ({"base_model_name_or_path": ".."}, "config.json is missing"),
    ],
)
def test_hostile_configs(folder, values, message):
    change(folder, **values)
    with pytest.raises(ClearheadError, match=message) as told:
        load_adapter(folder)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1000


def test_a_rank_beyond_the_layers(base, folder):
    tensors = {
        name: torch.zeros(one.shape[0] * 9, 16) if "_A" in name else torch.zeros(48, 27)
        for name, one in read_tensors(folder / ADAPTER_WEIGHTS).items()
    }
    rewrite(folder, tensors)
    change(folder, r=27)
    with pytest.raises(ClearheadError, match=r"adapter_config.json: LoRA's rank is 27; .* most 16"):
        load_adapter(folder)


def rewrite(folder, tensors):
    (folder / ADAPTER_WEIGHTS).unlink()
    header = {name: Entry.of(tensor) for name, tensor in tensors.items()}
    write_tensors(folder / ADAPTER_WEIGHTS, header, tensors.__getitem__)


def test_hostile_tensors(folder):
    tensors = read_tensors(folder / ADAPTER_WEIGHTS)
    for changed, message in (
        ({NAME: tensors[NAME].T.contiguous()}, r"is \[16, 3\]; .* ask for \[3, 16\]"),
        ({NAME: tensors[NAME].double()}, "holds F64; clearhead reads F32, F16, BF16"),
        ({"more": torch.zeros(1)}, "surplus more"),
    ):
        rewrite(folder, {**tensors, **changed})
        with pytest.raises(ClearheadError, match=message):
            load_adapter(folder)
    (folder / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ClearheadError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", ADAPTER_WEIGHTS])
def test_damaged_files_give_our_error_or_none(folder, name, tmp_path):
    (tmp_path / "original").mkdir()
    original = shutil.copy(folder / name, tmp_path / "original" / name)
    refused = fuzz(Path(original), lambda path: load_adapter(path.parent), folder, n=150)
    assert refused > 30
