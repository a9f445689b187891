"""nanoGPT, minGPT, the book's and llm.c's files: read right, written right, damage told."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz import fuzz
from torch.nn import functional as F

from clearhead.checkpoint.formats import book, llmc, nanogpt
from clearhead.checkpoint.formats.known import open_source
from clearhead.checkpoint.formats.pickled import read_pickled
from clearhead.checkpoint.formats.source import ModelSource, build
from clearhead.checkpoint.formats.table import our_weights
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig

SHAPE = {"vocab_size": 97, "context_length": 20, "d_model": 24, "n_heads": 3, "n_layers": 2}
FILES = {"nanogpt": "ckpt.pt", "book": "model.pth", "llmc": "model.bin"}


def model_of(**options):
    torch.manual_seed(1)
    model = GPT(GPTConfig(**{**SHAPE, "dropout": 0.0, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def written(model, name, folder, dtype="f32"):
    module = {"nanogpt": nanogpt, "book": book, "llmc": llmc}[name]
    folder.mkdir(exist_ok=True)
    getattr(module, f"write_{name}")(ModelSource(model), folder, dtype)
    return folder / FILES[name]


def opened(path, vocab_size=97):
    return open_source(path, vocab_size=vocab_size, n_heads=3)


def reference_logits(weights, tokens, n_heads, head, exact_gelu=False):
    """A GPT-2 written down once more, from named tensors; `weights(kind, layer)`."""
    x = weights("wte")[tokens] + weights("wpe")[: tokens.shape[1]]
    size, length = x.shape[-1], tokens.shape[1]

    def norm(x, kind, layer=None):
        return F.layer_norm(x, (size,), weights(f"{kind}w", layer), weights(f"{kind}b", layer))

    for layer in range(2):
        y = norm(x, "ln1", layer)
        q, k, v = (
            F.linear(y, weights(f"{one}w", layer), weights(f"{one}b", layer))
            .unflatten(-1, (n_heads, -1))
            .transpose(1, 2)
            for one in "qkv"
        )
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(
            torch.ones(length, length).triu(1).bool(), -torch.inf
        )
        z = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(z, weights("projw", layer), weights("projb", layer))
        y = F.linear(norm(x, "ln2", layer), weights("upw", layer), weights("upb", layer))
        approximate = torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3))
        y = 0.5 * y * (1 + (torch.erf(y / 2**0.5) if exact_gelu else approximate))
        x = x + F.linear(y, weights("downw", layer), weights("downb", layer))
    return norm(x, "lnf") @ head.T


def names_of_the_book(tensors):
    inside = {"ln1w": "norm1.scale", "ln1b": "norm1.shift", "ln2w": "norm2.scale"}
    inside |= {"ln2b": "norm2.shift", "projw": "att.out_proj.weight", "projb": "att.out_proj.bias"}
    inside |= {
        f"{one}{end[0]}": f"ff.layers.{n}.{end}"
        for one, n in (("up", 0), ("down", 2))
        for end in ("weight", "bias")
    }
    inside |= {
        f"{one[0].lower()}{end[0]}": f"att.W_{one}.{end}"
        for one in ("query", "key", "value")
        for end in ("weight", "bias")
    }
    outside = {"wte": "tok_emb.weight", "wpe": "pos_emb.weight"}
    outside |= {"lnfw": "final_norm.scale", "lnfb": "final_norm.shift"}

    def weights(kind, layer=None):
        name = outside[kind] if layer is None else f"trf_blocks.{layer}.{inside[kind]}"
        return tensors.get(name)

    return weights


def names_of_nanogpt(tensors):
    inside = {"ln1": "ln_1", "ln2": "ln_2", "proj": "attn.c_proj", "up": "mlp.c_fc"}
    inside |= {"down": "mlp.c_proj"} | dict.fromkeys("qkv", "attn.c_attn")
    outside = {"wte": "wte.weight", "wpe": "wpe.weight", "lnfw": "ln_f.weight", "lnfb": "ln_f.bias"}

    def weights(kind, layer=None):
        if layer is None:
            return tensors.get(f"transformer.{outside[kind]}")
        end = {"w": "weight", "b": "bias"}[kind[-1]]
        tensor = tensors.get(f"transformer.h.{layer}.{inside[kind[:-1]]}.{end}")
        if kind[:-1] in "qkv" and tensor is not None:
            return tensor.chunk(3)["qkv".index(kind[0])]
        return tensor

    return weights


def names_of_llmc(path):
    """Read the file as llm.c does: every kind of tensor for all layers, in its order."""
    header = np.fromfile(path, "<i4", 256)
    length, _, layers, _, c, padded = (int(n) for n in header[2:8])
    shapes = {"wte": (padded, c), "wpe": (length, c), "ln1w": (layers, c), "ln1b": (layers, c)}
    shapes |= {"qkvw": (layers, 3 * c, c), "qkvb": (layers, 3 * c), "projw": (layers, c, c)}
    shapes |= {"projb": (layers, c), "ln2w": (layers, c), "ln2b": (layers, c)}
    shapes |= {"upw": (layers, 4 * c, c), "upb": (layers, 4 * c), "downw": (layers, c, 4 * c)}
    shapes |= {"downb": (layers, c), "lnfw": (c,), "lnfb": (c,)}
    values, tensors = torch.from_numpy(np.fromfile(path, "<f4", offset=1024)), {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        tensors[name], values = values[:count].reshape(shape), values[count:]
    assert len(values) == 0

    def weights(kind, layer=None):
        if layer is None:
            return tensors[kind]
        if kind[0] in "qkv":
            return tensors[f"qkv{kind[-1]}"][layer].chunk(3)["qkv".index(kind[0])]
        return tensors[kind][layer]

    return weights


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nanogpt", {"exact_gelu": True}),
        ("nanogpt", {"bias": False, "qkv_bias": False, "exact_gelu": True}),
        ("book", {}),
        ("book", {"qkv_bias": False, "tied_head": False}),
        ("book", {"bias": False, "qkv_bias": False}),
        ("llmc", {}),
        ("llmc", {"qkv_bias": False}),
    ],
)
def test_the_written_file_computes_what_the_model_does(tmp_path, name, options):
    model = model_of(**options)
    path = written(model, name, tmp_path)
    if name == "llmc":
        weights = names_of_llmc(path)
        head = weights("wte")[:97]
    else:
        tensors = read_pickled(path)
        tensors = tensors.get("model", tensors)
        weights = {"nanogpt": names_of_nanogpt, "book": names_of_the_book}[name](tensors)
        head = tensors["lm_head.weight" if name == "nanogpt" else "out_head.weight"]
    tokens = torch.randint(97, (3, 20))
    expected = reference_logits(weights, tokens, 3, head, name == "nanogpt")
    torch.testing.assert_close(model(tokens), expected, atol=1e-4, rtol=1e-4)
    with opened(path) as source:
        assert source.config.tied_head == model.config.tied_head
        torch.testing.assert_close(build(source)(tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "dtype"), [("nanogpt", "bf16"), ("book", "f16"), ("llmc", "bf16")]
)
def test_smaller_types_round_each_weight_once(tmp_path, name, dtype):
    model = model_of()
    wanted = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    with opened(written(model, name, tmp_path, dtype)) as source:
        assert source.dtype == wanted
        state = model.state_dict()
        for ours, _ in our_weights(source.config):
            assert torch.equal(source.read(ours), state[ours].to(wanted)), ours


def wrapped(tensors, key):
    return {key: tensors, "optimizer_state_dict": {"state": {0: {"step": 3}}}, "epoch": 2}


def test_wrappers_prefixes_masks_and_padding(tmp_path):
    model = model_of(vocab_size=50304, d_model=24)
    path = written(model, "nanogpt", tmp_path)
    saved = read_pickled(path)
    compiled = {f"_orig_mod.{name}": one for name, one in saved["model"].items()}
    compiled["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 20, 20)
    torch.save({**saved, "model": compiled}, path)
    with open_source(tmp_path) as source:  # nanoGPT's own arguments tell the heads
        assert (source.format, source.config.n_heads) == ("nanogpt", 3)
        assert source.config.vocab_size == 50257
        assert source.notes == ["vocabulary of 50,304 cut to the tokenizer's 50,257"]
        assert torch.equal(source.read("token_embedding.weight"), model.head.weight[:50257])
    torch.save(saved["model"], path)  # as minGPT leaves it
    with opened(path, None) as source:
        assert source.config.n_heads == 3
        assert not source.config.exact_gelu
    with pytest.raises(ClearheadError, match="does not tell its number of heads, and 24 is no"):
        open_source(path)
    book_path = written(model_of(), "book", tmp_path / "book")
    tensors = {**read_pickled(book_path), "trf_blocks.0.att.mask": torch.ones(20, 20)}
    torch.save(wrapped(tensors, "model_state_dict"), book_path)
    with opened(book_path) as source:
        assert (source.format, source.config.n_layers) == ("book", 2)


def test_llmc_pads_and_cuts_the_vocabulary(tmp_path):
    path = tmp_path / "model.bin"
    notes = llmc.write_llmc(ModelSource(model_of()), tmp_path, "f32")
    assert notes == ["vocabulary of 97 padded with zeros to 128, as llm.c has it"]
    assert list(np.fromfile(path, "<i4", 8)) == [20240326, 3, 20, 97, 2, 3, 24, 128]
    with open_source(path) as source:
        assert source.config.vocab_size == 97
        assert source.notes == ["vocabulary of 128 cut to the tokenizer's 97"]


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    for name, options, message in (
        ("nanogpt", {"qkv_bias": False}, "biases everywhere or nowhere"),
        ("nanogpt", {"tied_head": False}, "nanoGPT ties the head"),
        ("llmc", {"tied_head": False}, r"llm\.c ties the head"),
    ):
        with pytest.raises(ClearheadError, match=message):
            written(model_of(**options), name, tmp_path)


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path, legacy):
    mark, path = tmp_path / "ran", tmp_path / "ckpt.pt"
    value = {"model": {"transformer.wte.weight": torch.ones(2, 2)}, "x": Payload(mark)}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    for read in (nanogpt.open_nanogpt, book.open_book):
        with pytest.raises(ClearheadError, match=r"carries code \(.*mkdir\); it was not run"):
            read(path)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ClearheadError, match=r"carries code|damaged"):
        read_pickled(tmp_path / "bare.pt")
    assert not mark.exists()


def test_missing_surplus_and_wrong_tensors_are_named(tmp_path):
    path = written(model_of(), "nanogpt", tmp_path)
    saved = read_pickled(path)
    good = saved["model"]
    changed = {name: one for name, one in good.items() if "h.1.ln_2" not in name}
    torch.save({**saved, "model": {**changed, "strange": torch.ones(1)}}, path)
    with pytest.raises(ClearheadError) as caught:
        nanogpt.open_nanogpt(path)
    for told in (
        "missing transformer.h.1.ln_2.weight, transformer.h.1.ln_2.bias",
        "surplus strange",
    ):
        assert told in str(caught.value)
    wrong = {**good, "transformer.h.0.mlp.c_fc.weight": torch.ones(24, 96)}
    torch.save({**saved, "model": wrong}, path)
    with pytest.raises(ClearheadError, match=r"c_fc\.weight is \[24, 96\], .* \[96, 24\]"):
        nanogpt.open_nanogpt(path)
    whole = {**good, "transformer.ln_f.bias": torch.ones(24, dtype=torch.int64)}
    torch.save({**saved, "model": whole}, path)
    with pytest.raises(ClearheadError, match=r"'transformer.ln_f.bias' holds I64"):
        nanogpt.open_nanogpt(path)


def test_tensors_that_claim_more_than_the_file_has(tmp_path):
    path = tmp_path / "ckpt.pt"
    torch.save({"tok_emb.weight": torch.ones(1).expand(10**6, 10**6)}, path)
    with pytest.raises(ClearheadError, match=r"'tok_emb.weight' is damaged, or no dense tensor"):
        book.open_book(path)


def read_all(name):
    module = {"nanogpt": nanogpt, "book": book, "llmc": llmc}[name]
    heads = {} if name == "llmc" else {"n_heads": 2}

    def read(path):
        module.recognise(path)
        with getattr(module, f"open_{name}")(path, None, **heads) as source:
            for ours, _ in our_weights(source.config):
                source.read(ours).sum()

    return read


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_damaged_files(tmp_path, name):
    tiny = model_of(vocab_size=5, context_length=3, d_model=4, n_heads=2, n_layers=1)
    path = written(tiny, name, tmp_path / "whole")
    (tmp_path / "damaged").mkdir()
    assert fuzz(path, read_all(name), tmp_path / "damaged") > 1000


def test_nanogpts_own_model_agrees(tmp_path, monkeypatch):
    checkout = os.environ.get("CLEARHEAD_NANOGPT")
    if not checkout:
        pytest.skip("CLEARHEAD_NANOGPT does not name a checkout of nanoGPT")
    monkeypatch.setattr(sys, "path", [checkout, *sys.path])
    import model as theirs

    ours = model_of(exact_gelu=True)
    saved = read_pickled(written(ours, "nanogpt", Path(tmp_path)))
    model = theirs.GPT(theirs.GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict(saved["model"])
    tokens = torch.randint(97, (2, 20))
    with torch.no_grad():
        expected = model(tokens, targets=tokens)[0]
        torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=1e-4)
