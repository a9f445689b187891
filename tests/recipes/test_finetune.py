import json
from dataclasses import replace

import pytest
import torch

from clearhead import checkpoint
from clearhead.errors import ClearheadError
from clearhead.finetune import PreferenceLoss
from clearhead.model import GPT, GPTConfig
from clearhead.recipes.chat import question_prompt
from clearhead.recipes.finetune import fine_tune
from clearhead.recipes.finetune_config import (
    ClassifyConfig,
    FinetuneConfig,
    InstructConfig,
    PreferConfig,
)
from clearhead.recipes.generate import generate
from clearhead.recipes.ledger import read_ledger
from clearhead.recipes.load import load
from clearhead.recipes.pretrain import PretrainConfig, pretrain
from clearhead.tokenizer import CHAT_TEMPLATE
from clearhead.train import OptimizerConfig, Started, Stepped

SHAPE = GPTConfig(vocab_size=257, context_length=96, d_model=16, n_heads=2, n_layers=2, dropout=0.1)
ROWS = [
    {
        "instruction": f"Say {n}.",
        "output": f"{n}!",
        "chosen": f"{n}!",
        "rejected": f"No {n}.",
        "text": f"Number {n}.",
        "label": "even" if n % 2 == 0 else "odd",
    }
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
            **options,
        }
        return kind(**options)

    return build


def weights(path):
    return (checkpoint.resolve(path) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", [InstructConfig, PreferConfig])
def test_a_run_leaves_what_it_learnt_and_where_it_came_from(settings, base, kind):
    result = fine_tune(settings(kind))
    assert result.finished
    first, second = read_ledger(result.checkpoint)
    assert (first.kind, first.started_from, first.steps) == ("pretrain", None, 3)
    assert second.kind == {"InstructConfig": "instruct", "PreferConfig": "prefer"}[kind.__name__]
    assert second.started_from["path"] == str(checkpoint.resolve(base).resolve())
    assert second.data[0]["rows"] == 40
    assert second.steps == 6
    assert second.after["val_loss"] < second.before["val_loss"]
    assert second.after["val_loss"] == pytest.approx(result.evaluation.loss)
    assert second.text_before["n"] == second.text_after["n"] > 0
    assert second.text_before["val_loss"] != second.text_after["val_loss"]
    checkpoint.verify(result.checkpoint)
    assert (settings().out / "loss.png").exists()


def test_the_template_goes_with_the_model(settings):
    fine_tune(settings())
    model, tokenizer = load(settings().out)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    prompt = question_prompt(tokenizer, "Say 3.")
    assert prompt == "### Instruction:\nSay 3.\n\n### Response:\n"
    assert generate(model, tokenizer, prompt)[0].prompt_token_ids == tuple(prompt.encode())


def test_a_classifier_keeps_texts_for_a_test(settings):
    result = fine_tune(settings(ClassifyConfig))
    model, _ = load(result.checkpoint)
    assert model.config.labels == ("even", "odd")
    stage = read_ledger(result.checkpoint)[-1]
    assert (stage.kind, stage.text_before, stage.text_after) == ("classify", None, None)
    assert stage.after["unit"] == "nats a text"
    assert 0 <= stage.after["accuracy"] <= 1
    assert len((settings().out / "test.jsonl").read_text().splitlines()) == 8
    other = settings(ClassifyConfig, out=settings().out.with_name("other"))
    with pytest.raises(ClearheadError, match="leave val_data out"):
        fine_tune(replace(other, val_data=other.data))


@pytest.mark.parametrize("kind", [InstructConfig, PreferConfig, ClassifyConfig])
def test_a_stopped_run_goes_on_bit_for_bit(settings, tmp_path, kind):
    fine_tune(settings(kind, out=tmp_path / "whole"))

    class KilledError(Exception):
        pass

    def die(event):
        if isinstance(event, Stepped) and event.step == 5:
            raise KilledError

    told = settings(kind, out=tmp_path / "killed")
    with pytest.raises(KilledError):
        fine_tune(told, observers=[die])
    events = []
    assert fine_tune(told, resume=True, observers=[events.append]).finished
    assert [event.step for event in events if isinstance(event, Started)] == [4]
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    stages = [read_ledger(checkpoint.resolve(tmp_path / name))[-1] for name in ("killed", "whole")]
    assert replace(stages[0], config={}) == replace(stages[1], config={})


def test_other_data_is_refused_on_resume(settings, tmp_path):
    told = settings()
    fine_tune(told)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[:30]))
    with pytest.raises(ClearheadError, match="trained on other examples"):
        fine_tune(told, resume=True)


def test_frozen_blocks_stay_as_they_are(settings, base):
    result = fine_tune(settings(freeze_to=1))
    before = dict(checkpoint.load_model(checkpoint.resolve(base)).named_parameters())
    for name, parameter in checkpoint.load_model(result.checkpoint).named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (not name.startswith(("blocks.0", "token_", "position_"))), name
    with pytest.raises(ClearheadError, match="freeze_to is 3; the model has 2 blocks"):
        fine_tune(settings(freeze_to=3, out=settings().out.with_name("other")))


def test_epochs_become_steps(settings):
    told = settings(steps=None, epochs=2.0, batch_size=3, packed=False)
    assert fine_tune(told).step == 2 * 12  # 36 of the 40 rows are learnt from, three at a time


def test_bad_rows_stop_it_or_are_counted(settings, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([*ROWS, {"instruction": "x"}]))
    with pytest.raises(ClearheadError, match=r"row 41: it has no 'output'.*--skip-bad"):
        fine_tune(settings())
    result = fine_tune(settings(skip_bad=True, out=tmp_path / "skipped"))
    assert read_ledger(result.checkpoint)[-1].data[0]["skipped"] == 1


def test_held_out_examples_of_their_own(settings, tmp_path):
    (tmp_path / "val.json").write_text(json.dumps(ROWS[:5]))
    result = fine_tune(settings(val_data=tmp_path / "val.json"))
    assert [one["rows"] for one in read_ledger(result.checkpoint)[-1].data] == [40, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1.0}, "give epochs, steps or minutes"),
        ({"steps": None, "epochs": 0.0}, "epochs is 0.0"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"freeze_to": -1}, "freeze_to is -1"),
    ],
)
def test_options_out_of_range(settings, options, message):
    with pytest.raises(ClearheadError, match=message):
        settings(**options)


def test_what_is_not_said(settings, tmp_path):
    from pathlib import Path

    with pytest.raises(ClearheadError, match="which model to start from is not said"):
        fine_tune(settings(base=Path()))
    with pytest.raises(ClearheadError, match="what to learn from is not said"):
        fine_tune(settings(data=Path()))
    with pytest.raises(ClearheadError, match="says of no kind"):
        fine_tune(settings(FinetuneConfig))


def test_a_classifier_cannot_answer(settings, tmp_path, base):
    _, tokenizer = load(base)
    torch.manual_seed(0)
    model = GPT(replace(SHAPE, labels=("ham", "spam"), tied_head=False))
    checkpoint.save(tmp_path / "labels", model, tokenizer)
    with pytest.raises(ClearheadError, match="tells ham, spam apart and writes no text"):
        fine_tune(settings(base=tmp_path / "labels"))


def test_the_loss_is_the_one_asked_for(settings):
    result = fine_tune(settings(PreferConfig, loss=PreferenceLoss(kind="ipo", beta=0.5)))
    before = read_ledger(result.checkpoint)[-1].before
    assert before["val_loss"] == pytest.approx(1.0, abs=1e-4)  # (0 − 1/(2β))²
    assert before["unit"] == "nats a pair"
