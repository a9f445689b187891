"""Fine-tuning by adapters alone."""

import json
from dataclasses import replace

import pytest
import torch

from clearhead import checkpoint
from clearhead.errors import ClearheadError
from clearhead.files import sha256_file
from clearhead.finetune import load_adapter, lora_config, lora_parameters
from clearhead.model import GPTConfig
from clearhead.recipes.chat import question_prompt
from clearhead.recipes.finetune import fine_tune
from clearhead.recipes.finetune_config import ClassifyConfig, InstructConfig, PreferConfig
from clearhead.recipes.generate import generate
from clearhead.recipes.ledger import read_ledger
from clearhead.recipes.lens import lens_model
from clearhead.recipes.load import load
from clearhead.recipes.pretrain import PretrainConfig, pretrain
from clearhead.recipes.run_folder import load_settings
from clearhead.train import OptimizerConfig, Started, Stepped

SHAPE = GPTConfig(vocab_size=257, context_length=96, d_model=16, n_heads=2, n_layers=2, dropout=0.1)
ROWS = [
    {"instruction": f"Say {n}.", "output": f"{n}!", "chosen": f"{n}!", "rejected": f"No {n}."}
    for n in range(40)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The run of a tiny model."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("A text of some length, again and again. " * 200)
    pretrain(
        PretrainConfig(
            data=(str(folder / "text.txt"),),
            out=folder / "run",
            tokenizer="bytes",
            steps=3,
            batch_size=2,
            device="cpu",
            dtype="float32",
            model=SHAPE,
        )
    )
    return folder / "run"


@pytest.fixture
def settings(base, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))

    def build(kind=InstructConfig, **options):
        options = {
            "base": base,
            "data": tmp_path / "rows.json",
            "out": tmp_path / "run",
            "plain_text": str(base.parent / "text.txt"),
            "device": "cpu",
            "dtype": "float32",
            "steps": 6,
            "evaluate_every": 2,
            "optimizer": OptimizerConfig(kind="adamw", learning_rate=1e-2),
            "lora": 4,
            **options,
        }
        return kind(**options)

    return build


@pytest.mark.parametrize("kind", [InstructConfig, PreferConfig])
def test_only_the_adapter_is_learnt_and_saved(settings, base, kind, caplog):
    digest = sha256_file(checkpoint.resolve(base) / "model.safetensors")
    caplog.set_level("INFO", "clearhead")
    result = fine_tune(settings(kind, lora_targets=("qkv", "up")))
    n = 2 * (4 * (16 + 48) + 4 * (16 + 64))
    whole = checkpoint.load_model(checkpoint.resolve(base)).n_parameters()
    assert f"{n:,} of {whole + n:,} weights are learnt" in caplog.text
    assert result.finished
    checkpoint.verify(result.checkpoint)
    model, _ = load(result.checkpoint, device="cpu")
    assert sha256_file(checkpoint.resolve(base) / "model.safetensors") == digest
    before = checkpoint.load_model(checkpoint.resolve(base)).state_dict()
    after = model.state_dict()
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    assert all(one.any() for one in lora_parameters(model).values())
    assert not (result.checkpoint / "model.safetensors").exists()
    first, second = read_ledger(result.checkpoint)
    assert (first.kind, second.config["lora"]) == ("pretrain", 4)
    assert second.after["val_loss"] < second.before["val_loss"]
    assert second.after["val_loss"] == pytest.approx(result.evaluation.loss)
    assert second.text_before["val_loss"] != second.text_after["val_loss"]


def test_the_scale_is_two_unless_alpha_says_otherwise(settings, tmp_path):
    for alpha, expected in ((None, 8.0), (3.0, 3.0)):
        out = tmp_path / str(alpha)
        model, _ = load_adapter(fine_tune(settings(lora_alpha=alpha, steps=1, out=out)).checkpoint)
        assert (lora_config(model).rank, lora_config(model).alpha) == (4, expected)


@pytest.mark.parametrize("kind", [InstructConfig, PreferConfig])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_goes_on_bit_for_bit(settings, tmp_path, kind, optimizer):
    told = {"optimizer": OptimizerConfig(kind=optimizer, learning_rate=1e-2)}
    fine_tune(settings(kind, out=tmp_path / "whole", **told))

    class KilledError(Exception):
        pass

    def die(event):
        if isinstance(event, Stepped) and event.step == 5:
            raise KilledError

    killed = settings(kind, out=tmp_path / "killed", **told)
    with pytest.raises(KilledError):
        fine_tune(killed, observers=[die])
    events = []
    assert fine_tune(killed, resume=True, observers=[events.append]).finished
    assert [event.step for event in events if isinstance(event, Started)] == [4]
    for name in ("adapter_model.safetensors", "clearhead/optimizer.safetensors"):
        one, other = (checkpoint.resolve(tmp_path / run) / name for run in ("killed", "whole"))
        assert one.read_bytes() == other.read_bytes()


def test_a_run_goes_on_with_the_base_that_it_began_with(settings, tmp_path, base):
    def interrupt(event):
        if isinstance(event, Stepped) and event.step == 3:
            raise InterruptedError

    told = settings()
    with pytest.raises(InterruptedError):
        fine_tune(told, observers=[interrupt])
    began = checkpoint.resolve(base)
    later = replace(load_settings(PretrainConfig, base), out=tmp_path / "later", steps=5)
    newer = base / "checkpoints" / "step-00000005"
    pretrain(later).checkpoint.rename(newer)
    result = fine_tune(told, resume=True)
    newer.rename(tmp_path / "gone")
    assert checkpoint.describe(result.checkpoint).adapter.base == began.resolve()
    load(result.checkpoint)


def test_frozen_blocks_get_no_change(settings):
    model, _ = load(fine_tune(settings(freeze_to=1)).checkpoint, device="cpu")
    written = {name: bool(one.any()) for name, one in lora_parameters(model).items()}
    assert not written["blocks.0.attention.qkv.b"]
    assert written["blocks.1.attention.qkv.b"]


def test_what_it_learnt_is_asked_and_looked_into(settings):
    fine_tune(settings())
    model, tokenizer = load(settings().out, device="cpu")
    prompt = question_prompt(tokenizer, "Say 3.")
    assert generate(model, tokenizer, prompt)[0].prompt_token_ids == tuple(prompt.encode())
    tokens = torch.arange(20)[None]
    live = model(tokens)
    torch.testing.assert_close(lens_model(settings().out)(tokens), live, atol=1e-5, rtol=1e-5)
    merged, _ = load(settings().out, device="cpu", merged=True)
    assert torch.equal(lens_model(settings().out)(tokens), merged(tokens))
    assert lora_config(merged) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": 0}, "rank is 0; it must be 1 or more"),
        ({"lora": None, "lora_alpha": 1.0}, "lora_alpha is given without lora"),
        ({"lora_alpha": -1.0}, "alpha is -1.0"),
        ({"lora_targets": ("c_attn",)}, "targets name 'c_attn'"),
    ],
)
def test_options_out_of_range(settings, options, message):
    with pytest.raises(ClearheadError, match=message):
        settings(**options)


def test_a_rank_beyond_the_model(settings):
    with pytest.raises(ClearheadError, match="rank is 17; the layers are 16 wide"):
        fine_tune(settings(lora=17))


def test_an_adapter_is_no_base(settings, tmp_path):
    fine_tune(settings(steps=1))
    with pytest.raises(ClearheadError, match="is an adapter; make a whole model of it"):
        fine_tune(settings(base=settings().out, out=tmp_path / "second"))


LABELLED = [{"text": f"Number {n}.", "label": "even" if n % 2 == 0 else "odd"} for n in range(40)]


@pytest.fixture
def classify(settings, tmp_path):
    (tmp_path / "labelled.json").write_text(json.dumps(LABELLED))

    def build(**options):
        return settings(ClassifyConfig, data=tmp_path / "labelled.json", **options)

    return build


def test_a_classifiers_adapter_holds_its_head(classify, base):
    result = fine_tune(classify())
    model, _ = load(result.checkpoint, device="cpu")
    fresh = checkpoint.load_model(classify().out / "base")
    assert model.config.labels == fresh.config.labels == ("even", "odd")
    assert not torch.equal(model.head.weight, fresh.head.weight)
    plain = checkpoint.load_model(checkpoint.resolve(base)).state_dict()
    for name, one in model.state_dict().items():
        assert name == "head.weight" or ".adapters." in name or torch.equal(one, plain[name]), name
    assert read_ledger(result.checkpoint)[-1].after["unit"] == "nats a text"


@pytest.mark.filterwarnings("ignore")
def test_peft_computes_the_same_from_a_classifiers_adapter(classify):
    import peft
    from transformers import AutoModelForSequenceClassification

    result = fine_tune(classify())
    theirs = AutoModelForSequenceClassification.from_pretrained(classify().out / "base").eval()
    loaded = peft.PeftModel.from_pretrained(theirs, result.checkpoint).eval()
    model, _ = load(result.checkpoint, device="cpu")
    tokens = torch.arange(20, 40)[None]
    expected = model(tokens)[:, -1]
    torch.testing.assert_close(loaded(tokens).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_stopped_classifiers_adapter_goes_on_bit_for_bit(classify, tmp_path):
    class KilledError(Exception):
        pass

    def die(event):
        if isinstance(event, Stepped) and event.step == 5:
            raise KilledError

    fine_tune(classify(out=tmp_path / "whole"))
    with pytest.raises(KilledError):
        fine_tune(classify(out=tmp_path / "killed"), observers=[die])
    fine_tune(classify(out=tmp_path / "killed"), resume=True)
    found = [
        (checkpoint.resolve(tmp_path / one) / "adapter_model.safetensors").read_bytes()
        for one in ("whole", "killed")
    ]
    assert found[0] == found[1]
