import json
from dataclasses import replace

import pytest
import torch

from clearhead import checkpoint
from clearhead.data import prepare
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig
from clearhead.recipes.pretrain import PretrainConfig, load_config, pretrain, recipe
from clearhead.tokenizer import build_tokenizer
from clearhead.train import Started, Stepped

TEXT = "the quick brown fox jumps over the lazy dog. " * 60


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "text.txt").write_text("<|endoftext|>".join([TEXT] * 12))
    return PretrainConfig(
        data=(str(tmp_path / "text.txt"),),
        out=tmp_path / "run",
        tokenizer="bpe:300",
        steps=6,
        batch_size=4,
        evaluate_every=2,
        device="cpu",
        dtype="float32",
        model=GPTConfig(
            vocab_size=300, context_length=16, d_model=16, n_heads=2, n_layers=1, dropout=0.0
        ),
    )


def test_a_run_leaves_all_that_it_promises(settings):
    result = pretrain(settings)
    assert result.finished
    run = settings.out
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 6 + 3
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    stored = load_config(run / "config.toml")
    vocab_size = stored.model.vocab_size
    assert stored == replace(settings, model=replace(settings.model, vocab_size=vocab_size))


def test_transformers_loads_what_was_trained_with_equal_ids_and_logits(settings):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = pretrain(settings).checkpoint
    model, tokenizer = checkpoint.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT[:40], return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == tokenizer.encode(TEXT[:40]).tolist()
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(ids[:, :16]).logits, model(ids[:, :16]), rtol=0, atol=1e-4
        )


def test_a_finished_run_resumed_says_the_same_again(settings):
    first = pretrain(settings)
    again = pretrain(settings, resume=True)
    assert again == first


def test_another_run_is_not_overwritten_nor_changed_on_the_way(settings):
    pretrain(settings)
    with pytest.raises(ClearheadError, match=r"holds another run.*--resume"):
        pretrain(settings)
    faster = replace(settings, optimizer=replace(settings.optimizer, learning_rate=0.5))
    with pytest.raises(ClearheadError, match=r"optimizer\.learning_rate was 0\.003, not 0\.5"):
        pretrain(faster, resume=True)
    pretrain(replace(settings, keep_checkpoints=9, micro_batch_size=2), resume=True)


def test_a_folder_of_something_else_is_left_alone(settings):
    settings.out.mkdir()
    (settings.out / "thesis.tex").write_text("precious")
    with pytest.raises(ClearheadError, match="no run of clearhead"):
        pretrain(settings)


def test_a_failed_start_does_not_stand_in_the_way(settings):
    with pytest.raises(ClearheadError, match="bpe:9 is too small"):
        pretrain(replace(settings, tokenizer="bpe:9"))
    assert pretrain(settings).finished


def test_a_vocabulary_that_the_text_does_not_fill_can_be_resumed(settings):
    settings = replace(settings, tokenizer="bpe:4096")
    pretrain(settings)
    (result,) = [pretrain(settings, resume=True)]
    assert result.finished


def test_a_prepared_folder_brings_its_tokenizer(settings, tmp_path):
    prepare(settings.data, tmp_path / "prepared", build_tokenizer("bytes"), processes=1)
    prepared = replace(settings, data=(str(tmp_path / "prepared"),))
    with pytest.raises(ClearheadError, match="prepared with the tokenizer bytes, not with bpe:300"):
        pretrain(prepared)
    events = []
    pretrain(replace(prepared, tokenizer="auto"), observers=[events.append])
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.tokenizer == "bytes"


def test_held_out_text_of_its_own(settings, tmp_path):
    (tmp_path / "val.txt").write_text(TEXT)
    events = []
    settings = replace(settings, val_data=(str(tmp_path / "val.txt"),))
    pretrain(settings, observers=[events.append])
    (started,) = [event for event in events if isinstance(event, Started)]
    assert 0 < started.held_out_tokens < started.train_tokens / 8


def test_the_length_must_be_said(settings):
    with pytest.raises(ClearheadError, match="steps or minutes"):
        pretrain(replace(settings, steps=None))


def test_a_toml_file_lies_over_the_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("steps = 7\n[model]\nn_layers = 3\n")
    config = load_config(path)
    assert (config.steps, config.minutes) == (7, None)
    assert config.model == replace(recipe("nano").model, n_layers=3)
    path.write_text("[model]\nn_layer = 3\n")
    with pytest.raises(ClearheadError, match=r"mine\.toml.*model\.n_layer.*n_layers"):
        load_config(path)


@pytest.mark.parametrize("name", ["nano", "gpt2-124m", "gpt2-1558m"])
def test_every_recipe_is_whole(name):
    config = recipe(name)
    assert (config.steps is None) != (config.minutes is None)
    assert config.out.name == name


def test_minutes_plan_a_length_that_a_later_life_keeps(settings):
    settings = replace(settings, steps=None, minutes=0.02)
    first = pretrain(settings)
    seen = []
    again = pretrain(settings, resume=True, observers=[seen.append])
    assert again.step == first.step
    assert not [event for event in seen if isinstance(event, Stepped)]
