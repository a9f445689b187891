"""Import, export and verify: what is kept, what is proved, and what leaves nothing behind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead import checkpoint
from clearhead.checkpoint.certificate import read_certificate
from clearhead.checkpoint.checksums import seal
from clearhead.checkpoint.formats.source import parts
from clearhead.errors import ClearheadError
from clearhead.recipes import convert
from clearhead.recipes.convert import (
    CERTIFICATE,
    export_checkpoint,
    import_checkpoint,
    verify_checkpoint,
)
from clearhead.tokenizer import build_tokenizer, save_tokenizer

SHAPE = {"n_positions": 32, "n_embd": 24, "n_head": 3, "n_layer": 2}


@pytest.fixture
def foreign(tmp_path):
    """A folder that transformers made, with a tokenizer."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, bos_token_id=256, eos_token_id=256, **SHAPE))
    folder = tmp_path / "foreign"
    model.save_pretrained(folder)
    save_tokenizer(build_tokenizer("bytes"), folder)
    return folder


@pytest.fixture
def foreign_32(tmp_path):
    """The same with a width that quantised blocks divide."""
    torch.manual_seed(0)
    shape = {**SHAPE, "n_embd": 32, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, bos_token_id=256, eos_token_id=256, **shape))
    model.save_pretrained(tmp_path / "foreign")
    save_tokenizer(build_tokenizer("bytes"), tmp_path / "foreign")
    return tmp_path / "foreign"


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def logits_of(folder):
    tokens = torch.arange(60).reshape(2, 30)
    with torch.no_grad():
        return GPT2LMHeadModel.from_pretrained(folder).eval()(tokens).logits


def test_a_folder_of_transformers_comes_in_unchanged(foreign, tmp_path):
    made = import_checkpoint(foreign, tmp_path / "ours")
    told = made.certificate
    assert (told.source, told.source_format, told.stored) == ("foreign", "huggingface", "f32")
    assert told.exact
    assert told.weights.max_abs_difference == 0
    assert told.weights.parameters == sum(
        parameter.numel() for parameter in GPT2LMHeadModel.from_pretrained(foreign).parameters()
    )
    assert told.agreement.independent
    assert told.agreement.max_abs_logit_difference < 1e-5
    assert told.agreement.top1_agreement == 1
    assert told.agreement.sequences == 7
    assert read_certificate(made.path / CERTIFICATE) == told
    checkpoint.verify(made.path)
    torch.testing.assert_close(logits_of(made.path), logits_of(foreign), atol=0, rtol=0)
    model, tokenizer = checkpoint.load(made.path)
    assert tokenizer.name == "bytes"
    with torch.no_grad():
        ours = model(torch.arange(60).reshape(2, 30))
    torch.testing.assert_close(ours, logits_of(foreign), atol=1e-5, rtol=1e-5)


def bare(tensors):
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_masks(tensors):
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    return {**tensors, "transformer.h.0.attn.bias": mask}


def with_a_head(tensors):
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()}


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (bare, "names without the prefix 'transformer.'"),
        (with_masks, None),
        (with_a_head, "the head stored apart, equal to the token embedding"),
    ],
)
def test_other_ways_of_writing_the_same(foreign, tmp_path, change, note):
    before = import_checkpoint(foreign, tmp_path / "before").certificate.weights.sha256
    rewrite(foreign, change)
    told = import_checkpoint(foreign, tmp_path / "ours").certificate
    assert told.weights.sha256 == before
    assert told.notes == ([note] if note else [])


def test_an_untied_head_stays_untied(foreign, tmp_path):
    config = json.loads((foreign / "config.json").read_text()) | {"tie_word_embeddings": False}
    (foreign / "config.json").write_text(json.dumps(config))
    rewrite(foreign, lambda old: {**old, "lm_head.weight": torch.randn(257, 24)})
    made = import_checkpoint(foreign, tmp_path / "ours")
    assert not checkpoint.load_model(made.path).config.tied_head
    assert made.certificate.agreement.max_abs_logit_difference < 1e-5


def test_many_files_come_in_as_one(foreign, tmp_path):
    before = import_checkpoint(foreign, tmp_path / "before").certificate.weights.sha256
    model = GPT2LMHeadModel.from_pretrained(foreign)
    (foreign / "model.safetensors").unlink()
    model.save_pretrained(foreign, max_shard_size="20KB")
    assert len(list(foreign.glob("*.safetensors"))) > 2
    told = import_checkpoint(foreign, tmp_path / "ours").certificate
    assert told.weights.sha256 == before
    assert len(told.source_files) > 3


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b", "..", "a\\b", ""])
def test_an_index_that_points_outside_is_refused(foreign, tmp_path, name):
    (foreign / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": name}}
    (foreign / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ClearheadError, match="outside the folder"):
        import_checkpoint(foreign, tmp_path / "ours")


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", "bfloat16"), ("f16", "float16")])
def test_stored_smaller_within_what_rounding_explains(foreign, tmp_path, dtype, torch_dtype):
    told = import_checkpoint(foreign, tmp_path / "ours", dtype=dtype).certificate
    assert (told.stored, told.exact) == (dtype, False)
    assert 0 < told.weights.max_relative_difference < 2**-8
    model = checkpoint.load_model(tmp_path / "ours")
    assert model.norm.weight.dtype == getattr(torch, torch_dtype)
    again = import_checkpoint(tmp_path / "ours", tmp_path / "again").certificate
    assert (again.stored, again.exact, again.weights.max_abs_difference) == (dtype, True, 0)


def test_weights_that_are_not_numbers_are_counted(foreign, tmp_path):
    def spoil(tensors):
        tensors["transformer.h.1.ln_2.bias"][:3] = torch.tensor([float("nan"), float("inf"), 0.0])
        return tensors

    rewrite(foreign, spoil)
    told = import_checkpoint(foreign, tmp_path / "ours").certificate
    assert told.weights.not_finite == 2
    assert told.notes == ["2 weights are infinite or not a number"]
    assert json.loads((tmp_path / "ours" / CERTIFICATE).read_text())["weights"]["not_finite"] == 2


def test_a_result_that_differs_leaves_nothing(foreign, tmp_path, monkeypatch):
    def wrong(source, weight, dtype=None):
        tensor = parts(source, weight, dtype)[0]
        return (tensor.flip(0) if weight.ours == "blocks.1.mlp.up.bias" else tensor,)

    rewrite(foreign, lambda old: {**old, "transformer.h.1.mlp.c_fc.bias": torch.randn(96)})
    monkeypatch.setattr("clearhead.checkpoint.formats.huggingface.parts", wrong)
    with pytest.raises(ClearheadError, match=r"transformer\.h\.1\.mlp\.c_fc\.bias by .* nothing"):
        import_checkpoint(foreign, tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign"]


def test_a_model_that_computes_otherwise_is_refused(foreign, tmp_path, monkeypatch):
    def other(config):
        model = GPT2LMHeadModel(config)
        model.transformer.h[1].mlp.act = torch.nn.ReLU()
        return model

    rewrite(foreign, lambda old: {name: 8 * one for name, one in old.items()})
    monkeypatch.setattr("transformers.GPT2LMHeadModel", other)
    with pytest.raises(ClearheadError, match="the result differs from foreign: the logits by"):
        import_checkpoint(foreign, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_full_disk_leaves_nothing(foreign, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "seal", full)
    with pytest.raises(ClearheadError, match="the disk is full; make room; nothing was kept"):
        import_checkpoint(foreign, tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign"]


def test_mistakes_of_import(foreign, tmp_path):
    for arguments, options, message in (
        ((tmp_path / "none", tmp_path / "ours"), {}, "none does not exist"),
        ((foreign, foreign), {}, "exists already"),
        ((foreign, tmp_path / "ours"), {"dtype": "f23"}, "did you mean 'f32'"),
        ((foreign, tmp_path / "ours"), {"tokenizer": "gpt2"}, "has 257 tokens, the tokenizer's"),
    ):
        with pytest.raises(ClearheadError, match=message):
            import_checkpoint(*arguments, **options)
    (foreign / "tokenizer.json").unlink()
    with pytest.raises(ClearheadError, match=r"brings no tokenizer, .* 257 .*--tokenizer"):
        import_checkpoint(foreign, tmp_path / "ours")
    strange = tmp_path / "strange.txt"
    strange.write_text("weights")
    with pytest.raises(ClearheadError, match="of no known format; known are"):
        import_checkpoint(strange, tmp_path / "ours")


def test_verify_alone_and_against_another(foreign, tmp_path):
    ours = import_checkpoint(foreign, tmp_path / "ours").path
    assert verify_checkpoint(ours).agreement.independent
    told = verify_checkpoint(ours, foreign)
    assert (told.source, told.weights.max_abs_difference) == ("foreign", 0)
    rewrite(foreign, lambda old: {name: one * 1.01 for name, one in old.items()})
    with pytest.raises(ClearheadError, match="differs from foreign: the weights of"):
        verify_checkpoint(ours, foreign)


def test_verify_finds_weights_that_are_not_those_of_the_certificate(foreign, tmp_path):
    ours = import_checkpoint(foreign, tmp_path / "ours").path
    shutil.rmtree(tmp_path / "ours" / "clearhead", ignore_errors=False)
    rewrite(ours, lambda old: {name: one * 1.01 for name, one in old.items()})
    other = import_checkpoint(foreign, tmp_path / "other").path
    (ours / "clearhead").mkdir()
    shutil.copy(other / CERTIFICATE, ours / CERTIFICATE)
    seal(ours)
    with pytest.raises(ClearheadError, match="its weights are not those of its certificate"):
        verify_checkpoint(ours)


@pytest.mark.parametrize(
    "content", ["{}", '{"weights": 3}', '{"weights": {"a": 1}, "agreement": {}}']
)
def test_a_damaged_certificate_is_told(tmp_path, content):
    (tmp_path / "certificate.json").write_text(content)
    with pytest.raises(ClearheadError, match="is no certificate"):
        read_certificate(tmp_path / "certificate.json")


@pytest.mark.parametrize(
    ("to", "dtype", "file"),
    [
        ("gguf", "f32", "model.gguf"),
        ("gguf", "q8_0", "model.gguf"),
        ("llmc", "bf16", "model.bin"),
        ("book", "f32", "model.pth"),
        ("onnx", "f32", "model.onnx"),
    ],
)
def test_out_and_in_again(foreign_32, tmp_path, to, dtype, file):
    ours = import_checkpoint(foreign_32, tmp_path / "ours").path
    made = export_checkpoint(ours, tmp_path / "out", to, dtype=dtype)
    told = made.certificate
    assert (told.source_format, told.result_format, told.stored) == ("huggingface", to, dtype)
    assert (made.path / file).is_file()
    assert read_certificate(made.path / CERTIFICATE) == told
    checkpoint.verify(made.path)
    if to == "onnx":
        assert (told.weights, told.agreement.independent) == (None, True)
        again = verify_checkpoint(made.path, ours)
        assert again.agreement.max_abs_logit_difference == told.agreement.max_abs_logit_difference
        with pytest.raises(ClearheadError, match=r"is a graph, .* with --against DIR"):
            verify_checkpoint(made.path)
        return
    assert verify_checkpoint(made.path, ours).stored == dtype
    back = import_checkpoint(made.path, tmp_path / "back", n_heads=4, tokenizer="bytes")
    assert back.certificate.weights.sha256 == told.weights.sha256
    assert back.certificate.agreement.independent


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q4_0"])
def test_llama_cpp_computes_what_is_exported_to_it(foreign_32, tmp_path, dtype):
    pytest.importorskip("xllamacpp")
    ours = import_checkpoint(foreign_32, tmp_path / "ours").path
    made = export_checkpoint(ours, tmp_path / "out", "gguf", dtype=dtype)
    for told in (made.certificate, verify_checkpoint(made.path), verify_checkpoint(ours)):
        assert told.agreement.independent
    found = made.certificate.agreement
    assert found.theirs.startswith("llama.cpp")
    assert (found.sequences, found.tokens) == (6, 6)  # one position of each that is long enough
    assert 0 < found.max_abs_logit_difference < (0.01 if dtype == "f32" else 0.2)


def test_llama_cpp_finds_a_model_that_is_another(foreign_32, tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    ours = import_checkpoint(foreign_32, tmp_path / "ours").path
    made = export_checkpoint(ours, tmp_path / "out", "gguf").path
    rewrite(foreign_32, lambda old: {name: one * 1.5 for name, one in old.items()})
    shutil.rmtree(ours)
    other = import_checkpoint(foreign_32, ours).path
    monkeypatch.setattr(convert, "compare_weights", lambda source, result: None)
    with pytest.raises(ClearheadError, match=r"the logits by .* that f32 explains"):
        verify_checkpoint(made, other)


def test_nanogpts_other_gelu_is_told_and_kept(foreign_32, tmp_path):
    ours = import_checkpoint(foreign_32, tmp_path / "ours").path
    made = export_checkpoint(ours, tmp_path / "out", "nanogpt")
    assert not made.certificate.same_activation
    assert any("tanh approximation" in note for note in made.certificate.notes)
    back = import_checkpoint(made.path, tmp_path / "back", tokenizer="bytes")
    assert back.certificate.same_activation
    assert checkpoint.load_model(back.path).config.exact_gelu
    assert back.certificate.agreement.max_abs_logit_difference < 1e-5


def test_an_export_of_a_damaged_checkpoint_is_refused(foreign_32, tmp_path):
    ours = import_checkpoint(foreign_32, tmp_path / "ours").path
    content = bytearray((ours / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (ours / "model.safetensors").write_bytes(content)
    with pytest.raises(ClearheadError, match=r"model\.safetensors is damaged: its checksum"):
        export_checkpoint(ours, tmp_path / "out", "llmc")
    assert not (tmp_path / "out").exists()
