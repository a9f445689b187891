"""transformers and we read each other's folders, and compute the same."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fuzz import fuzz
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from clearhead.checkpoint import load_model, save
from clearhead.checkpoint.formats.huggingface import open_huggingface
from clearhead.checkpoint.formats.table import n_parameters, our_weights
from clearhead.errors import ClearheadError
from clearhead.model import GPT, PRESETS, GPTConfig
from clearhead.tokenizer import Tokenizer

OPTIONS = [
    {"qkv_bias": qkv_bias, "bias": bias, "tied_head": tied_head}
    for qkv_bias in (True, False)
    for bias in (True, False)
    for tied_head in (True, False)
]


def tokens(model: GPT) -> torch.Tensor:
    shape = (3, model.config.context_length)
    return torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS)
def test_transformers_computes_our_logits(
    options: dict[str, bool],
    make_model: Callable[..., GPT],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    model = make_model(**options, layer_norm_epsilon=1e-3)
    save(tmp_path / "ours", model, tokenizer)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert type(theirs) is GPT2LMHeadModel
    assert not any(report.values()), report
    token_ids = tokens(model)
    torch.testing.assert_close(theirs(token_ids).logits, model(token_ids), atol=1e-5, rtol=1e-5)
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == 256
    assert theirs.dtype == torch.float32


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_loaded_bit_for_bit(
    options: dict[str, bool],
    dtype: torch.dtype,
    make_model: Callable[..., GPT],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    model = make_model(**options).to(dtype)
    save(tmp_path / "one", model, tokenizer)
    state = torch.get_rng_state()
    again = load_model(tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), state)
    assert again.config == model.config
    assert not again.training
    ours, loaded = model.state_dict(), again.state_dict()
    assert list(loaded) == list(ours)
    for name, tensor in ours.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == dtype
        assert loaded[name].is_contiguous()
        assert loaded[name].data_ptr() % 64 == 0  # as torch allocates, so sums round the same
    assert (again.head.weight is again.token_embedding.weight) == model.config.tied_head
    assert all(parameter.requires_grad for parameter in again.parameters())
    save(tmp_path / "two", again, tokenizer)
    for path in (tmp_path / "one").rglob("*.*"):
        assert (
            path.read_bytes()
            == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        )


def test_the_file_is_as_transformers_writes_it(saved: Path, tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(saved)
    theirs.save_pretrained(tmp_path)
    ours = load_file(saved / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    assert ours.keys() == written.keys()
    assert all(torch.equal(ours[name], written[name]) for name in ours)
    config = json.loads((saved / "config.json").read_text())
    written_config = json.loads((tmp_path / "config.json").read_text())
    assert {key: written_config[key] for key in config} == config


def test_transformers_reads_our_tokenizer(saved: Path, tokenizer: Tokenizer) -> None:
    text = "Grüße, 世界<|endoftext|>\n next"
    assert AutoTokenizer.from_pretrained(saved)(text).input_ids == tokenizer.encode(text).tolist()


def test_weights_can_be_converted_on_loading(saved: Path) -> None:
    assert load_model(saved, dtype=torch.bfloat16).head.weight.dtype == torch.bfloat16


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """What transformers itself saves."""
    config = GPT2Config(vocab_size=65, n_positions=8, n_embd=16, n_head=4, n_layer=2)
    config.bos_token_id = config.eos_token_id = 64
    torch.manual_seed(0)
    GPT2LMHeadModel(config).eval().save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


def rewrite(
    path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def as_openai_wrote_it(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the prefix, with causal masks among the weights."""
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    return {**bare, "h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.1.attn.masked_bias": torch.ones(())}


def with_its_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()}


@torch.no_grad()
@pytest.mark.parametrize("change", [dict, as_openai_wrote_it, with_its_head])
def test_another_ones_folder_loads(
    foreign: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(foreign)
    rewrite(foreign / "model.safetensors", change)
    model = load_model(foreign)
    assert model.config.n_heads == 4
    token_ids = tokens(model)
    torch.testing.assert_close(theirs(token_ids).logits, model(token_ids), atol=1e-5, rtol=1e-5)


def untied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "lm_head.weight": torch.zeros_like(tensors["transformer.wte.weight"])}


def without_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".h.1." not in name}


def transposed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = "transformer.h.1.mlp.c_fc.weight"
    return {**tensors, name: tensors[name].T.contiguous()}


def of_two_types(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "transformer.ln_f.bias": tensors["transformer.ln_f.bias"].half()}


def of_whole_numbers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.long() for name, tensor in tensors.items()}


def with_lora(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "transformer.h.0.lora": torch.ones(2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (untied, "lm_head.weight is not the token embedding, though config.json ties them"),
        (
            without_layer,
            "missing transformer.h.1.ln_1.weight, transformer.h.1.ln_1.bias, "
            "transformer.h.1.attn.c_attn.weight, transformer.h.1.attn.c_attn.bias, ",
        ),
        (transposed, "transformer.h.1.mlp.c_fc.weight is [64, 16], its config asks for [16, 64]"),
        (of_whole_numbers, "its tensors hold I64; clearhead reads F32, F16, BF16"),
        (with_lora, "surplus transformer.h.0.lora"),
        (lambda tensors: {}, "missing transformer.wte.weight, transformer.wpe.weight"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    foreign: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    message: str,
) -> None:
    rewrite(foreign / "model.safetensors", change)
    with pytest.raises(ClearheadError) as caught:
        load_model(foreign)
    assert str(caught.value).startswith(f"{foreign / 'model.safetensors'}: ")
    assert message in str(caught.value)


def test_tensors_of_two_types_become_the_wider(foreign: Path) -> None:
    before = load_model(foreign).norm.bias
    rewrite(foreign / "model.safetensors", of_two_types)
    model = load_model(foreign)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.norm.bias, before.half().float(), atol=0, rtol=0)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 10**9}, "wte.weight is [65, 16], its config asks for [65, 1000000000]"),
        ({"vocab_size": 2**31 - 1}, "its config asks for [2147483647, 16]"),
        ({"n_layer": 10**9}, "missing transformer.h.2.ln_1.weight"),
        ({"n_embd": 10**40}, "config.json: d_model is "),
        ({"n_embd": -16}, "config.json: d_model is -16; it must be a whole number"),
        ({"n_layer": "two"}, "config.json: n_layers is 'two'; it must be a whole number"),
        ({"n_head": 3}, "n_heads=3 does not divide d_model=16; the nearest that do: 2 or 4"),
        ({"model_type": "llama"}, "config.json: model_type is 'llama'; clearhead has 'gpt2' only"),
        (
            {"activation_function": "relu"},
            "activation_function is 'relu'; clearhead has gelu_new, gelu_pytorch_tanh, gelu only",
        ),
        ({"scale_attn_by_inverse_layer_idx": True}, "clearhead has False only"),
        ({"n_inner": 32}, "config.json: n_inner is 32; clearhead has 4·n_embd only"),
        ({"attn_pdrop": 0.5}, "embd_pdrop, attn_pdrop, resid_pdrop differ"),
        (
            {"qkv_bias": False},
            "c_attn.bias is not zero, though its config says that there is no bias",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_told_before_anything_is_built(
    foreign: Path, changes: dict[str, object], message: str
) -> None:
    edit(foreign / "config.json", **changes)
    if "qkv_bias" in changes:
        rewrite(
            foreign / "model.safetensors",
            lambda tensors: {name: torch.ones_like(tensor) for name, tensor in tensors.items()},
        )
    with pytest.raises(ClearheadError) as caught:
        load_model(foreign)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_counted_without_a_model(name: str) -> None:
    for config in (PRESETS[name], GPTConfig(d_model=24, bias=False, qkv_bias=False, n_layers=3)):
        with torch.device("meta"):
            assert n_parameters(config) == GPT(config).n_parameters()


def test_a_safe_pickle_is_read_and_code_in_one_is_not_run(foreign: Path, tmp_path: Path) -> None:
    tensors = load_file(foreign / "model.safetensors")
    (foreign / "model.safetensors").unlink()
    torch.save(tensors, foreign / "pytorch_model.bin")
    with open_huggingface(foreign, with_tokenizer=False) as source:
        assert source.files[1].name == "pytorch_model.bin"
        torch.testing.assert_close(
            source.read("norm.bias"), tensors["transformer.ln_f.bias"], atol=0, rtol=0
        )
    mark = tmp_path / "ran"
    torch.save({**tensors, "x": Payload(mark)}, foreign / "pytorch_model.bin")
    with pytest.raises(ClearheadError, match="carries code"):
        open_huggingface(foreign, with_tokenizer=False)
    assert not mark.exists()


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def read_all(path: Path) -> None:
    with open_huggingface(path.parent, with_tokenizer=False) as source:
        for name, _ in our_weights(source.config):
            source.read(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("model.safetensors", 10_000),
        ("config.json", 3_000),
        ("model.safetensors.index.json", 3_000),
    ],
)
def test_thousands_of_damaged_files(foreign: Path, tmp_path: Path, name: str, n: int) -> None:
    if name.endswith("index.json"):
        (foreign / "model.safetensors").rename(foreign / "model-1.safetensors")
        names = load_file(foreign / "model-1.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
        (foreign / name).write_text(json.dumps(index))
    original = (tmp_path / "original").resolve()
    original.mkdir()
    shutil.copy(foreign / name, original / name)
    refused = fuzz(original / name, read_all, foreign, n)
    assert refused > n // 10
