"""Learning to tell texts apart: data, batches, loss, runs."""

import copy
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead import checkpoint
from clearhead.data import IGNORED
from clearhead.errors import ClearheadError
from clearhead.finetune import (
    Classification,
    LabelledText,
    Parts,
    label_logits,
    label_model,
    split_texts,
)
from clearhead.recipes.classify import (
    ClassifyOptions,
    build_classification,
    classify,
    read_labelled,
    read_texts,
    save_texts,
)
from clearhead.tokenizer import build_tokenizer


def texts_of(*pairs):
    return [
        LabelledText(text, label, np.frombuffer(text.encode(), np.uint8).astype(np.int64))
        for text, label in pairs
    ]


def test_the_head_is_fresh_and_all_else_is_the_models_own(language_model):
    before = copy.deepcopy(language_model.state_dict())
    tokens = torch.randint(257, (2, 9))
    hidden = language_model.eval().hidden(tokens)
    model = label_model(language_model, ["ham", "spam"], seed=5)
    assert model.config == replace(language_model.config, labels=("ham", "spam"), tied_head=False)
    assert torch.equal(model.hidden(tokens), hidden)
    assert model.head.weight.shape == (2, 16)
    assert model.token_embedding.weight is language_model.token_embedding.weight
    assert not any(one.is_meta for one in [*model.parameters(), *model.buffers()])
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name != "head.weight")
    again = label_model(language_model, ["ham", "spam"], seed=5)
    assert torch.equal(again.head.weight, model.head.weight)
    assert 0.01 < model.head.weight.std() < 0.03


def test_the_target_stands_after_the_last_token(build):
    model, objective = build()
    assert model.config.labels == ("ham", "spam")
    end = 256
    for step in range(objective.steps_per_epoch):
        rows = objective.at(step)
        for ids, targets in zip(rows.inputs, rows.targets, strict=True):
            (at,) = (targets != IGNORED).nonzero()[0].tolist()
            assert end not in ids[: at + 1]
            assert (ids[at + 1 :] == end).all()
            text = bytes(ids[: at + 1].tolist()).decode()
            spam = any(word in text for word in ("WIN", "CASH", "PRIZE", "CALL"))
            assert model.config.labels[targets[at]] == ("spam" if spam else "ham")


def test_an_epoch_has_every_text_once_in_batches_of_like_length(build):
    _, objective = build(batch_size=4, val_fraction=0.05, test_fraction=0.05)
    for epoch in range(2):
        steps = range(objective.steps_per_epoch * epoch, objective.steps_per_epoch * (epoch + 1))
        batches = [objective.at(step) for step in steps]
        seen = Counter(
            tuple(ids[: int(t.ne(IGNORED).nonzero()) + 1].tolist())
            for rows in batches
            for ids, t in zip(rows.inputs, rows.targets, strict=True)
        )
        assert seen == Counter(tuple(one.ids[:24].tolist()) for one in objective.parts.train)
        assert {len(rows) for rows in batches} <= {3, 4}
    assert 0 < objective.padding < 0.1
    assert objective.train_tokens == sum(min(24, len(one.ids)) for one in objective.parts.train)


def test_batches_are_a_pure_function_of_seed_and_step(build):
    _, one = build()
    _, other = build()
    _, third = build(seed=1)
    steps = [0, 1, 40, 5, 17, 40, 0]
    for step in steps:
        assert torch.equal(one.at(step).inputs, other.at(step).inputs)
    for step in reversed(steps):
        assert torch.equal(one.at(step).targets, other.at(step).targets)
    assert any(not torch.equal(one.at(step).inputs, third.at(step).inputs) for step in steps)
    n = one.steps_per_epoch
    assert any(not torch.equal(one.at(s).inputs, one.at(s + n).inputs) for s in range(n))


def test_weights_make_labels_count_alike(build):
    _, objective = build(balance="weights")
    counted = Counter()
    for step in range(objective.steps_per_epoch):
        rows = objective.at(step)
        assert rows.total() == pytest.approx(float(rows.weights.sum()))
        learnt = rows.targets != IGNORED
        assert not rows.weights[~learnt].any()
        for label, weight in zip(rows.targets[learnt], rows.weights[learnt], strict=True):
            counted[int(label)] += float(weight)
    assert counted[0] == pytest.approx(counted[1], rel=1e-5)
    assert sum(counted.values()) == pytest.approx(len(objective.parts.train), rel=1e-5)


def test_sampling_draws_labels_alike_and_texts_evenly(build):
    _, objective = build(balance="sample")
    labels, texts = Counter(), Counter()
    for step in range(objective.steps_per_epoch):
        rows = objective.at(step)
        labels.update(rows.targets[rows.targets != IGNORED].tolist())
        texts.update(bytes(i for i in row.tolist() if i < 256) for row in rows.inputs)
    assert labels[0] == labels[1]
    spam = [n for text, n in texts.items() if b"WIN" in text or b"CASH" in text]
    assert max(spam) - min(spam) <= 2
    assert objective.at(0).weights is None


def test_the_loss_is_the_cross_entropy_of_the_label(build):
    model, objective = build()
    model.eval()
    rows = objective.at(0)
    learnt = rows.targets != IGNORED
    logits = model(rows.inputs)[learnt]
    expected = torch.nn.functional.cross_entropy(logits, rows.targets[learnt], reduction="sum")
    torch.testing.assert_close(objective.loss(model, rows), expected)


def test_padding_changes_no_logit(build):
    model, objective = build()
    model.eval()
    ids = [one.ids[:24] for one in objective.parts.train[:6]]
    together = label_logits(model, ids, 256)
    alone = torch.cat([model(torch.from_numpy(one)[None])[:, -1] for one in ids])
    torch.testing.assert_close(together, alone)


def test_long_texts_keep_their_beginning_and_are_counted(build):
    _, objective = build(max_length=5)
    used = [*objective.parts.train, *objective.parts.validation]
    assert objective.n_cut == sum(len(one.ids) > 5 for one in used) > 0
    beginnings = {bytes(one.ids[:5].tolist()) for one in objective.parts.train}
    rows = objective.at(0)
    assert rows.inputs.shape[1] == 5
    assert {bytes(row.tolist()) for row in rows.inputs} <= beginnings
    assert f"{objective.n_cut} are cut to 5" in str(objective)


def test_evaluation_counts_texts(build):
    model, objective = build()
    model.train()
    found = objective.evaluate(model, torch.float32)
    assert model.training
    model.eval()
    held_out = objective.parts.validation
    assert found.n == len(held_out) == 12
    assert found.unit == "nats a text"
    logits = torch.cat([label_logits(model, [one.ids[:24]], 256) for one in held_out])
    wanted = torch.tensor([["ham", "spam"].index(one.label) for one in held_out])
    loss = torch.nn.functional.cross_entropy(logits, wanted).detach()
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    assert found.accuracy == pytest.approx(float((logits.argmax(-1) == wanted).float().mean()))
    passes = objective.held_out_tokens / (objective.train_tokens / objective.steps_per_epoch)
    assert objective.evaluation_cost == pytest.approx(passes)


def test_the_split_is_stratified_and_disjoint(build):
    _, objective = build()
    parts = objective.parts
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 120
    assert parts.n_repeated == 10
    keys = [{one.text for one in part} for part in (parts.train, parts.validation, parts.test)]
    assert not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[2]
    for part, n in ((parts.validation, 12), (parts.test, 24)):
        assert len(part) == n
        assert abs(sum(one.label == "spam" for one in part) - n / 6) <= 1


@settings(max_examples=200, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(
            st.sampled_from(["a", "A", "b ", "b", "c", "d", "e", "f", "g"]),
            st.sampled_from(["x", "y", "z"]),
        ),
        max_size=40,
    ),
    fractions=st.tuples(st.floats(0.05, 0.5), st.floats(0, 0.45)),
    seed=st.integers(0, 5),
)
def test_nothing_is_lost_and_no_text_is_on_two_sides(pairs, fractions, seed):
    texts = texts_of(*pairs)
    try:
        parts = split_texts(texts, val_fraction=fractions[0], test_fraction=fractions[1], seed=seed)
    except ClearheadError:
        return
    sides = [parts.train, parts.validation, parts.test]
    assert Counter(id(one) for side in sides for one in side) == Counter(map(id, texts))
    keys = [{one.text.strip().lower() for one in side} for side in sides]
    assert not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[2]
    assert {one.label for side in sides[1:] for one in side} <= set(parts.labels)


MISTAKES = [
    ([("a", "x"), ("b", "x"), ("c", "x")], "all 3 texts are labelled x"),
    ([("a", "x"), ("b", "y"), ("c", "z")], "3 texts have 3 different labels (x, y, z)"),
    ([(str(n), "xy"[n % 2]) for n in range(6)], "leave none to validate with"),
]


@pytest.mark.parametrize(("pairs", "message"), MISTAKES)
def test_what_cannot_be_divided_is_told(pairs, message):
    with pytest.raises(ClearheadError) as caught:
        split_texts(texts_of(*pairs), val_fraction=0.1, test_fraction=0.1, seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_that_no_text_to_learn_from_has_is_named():
    texts = texts_of(*[(f"text {n}", "xy"[n % 2]) for n in range(20)], ("q", "x"), ("Q", "z"))
    told = set()
    for seed in range(20):
        try:
            split_texts(texts, val_fraction=0.4, test_fraction=0.2, seed=seed)
        except ClearheadError as error:
            told.add(str(error))
    (message,) = told
    assert message.startswith("labels unseen in training: z; the model tells x, y apart; ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": "both"}, "balance is 'both'"),
        ({"val_fraction": 0.0}, "val_fraction is 0.0"),
        ({"test_fraction": 0.9}, "test_fraction is 0.9; with val_fraction 0.1"),
        ({"max_length": 0}, "max_length is 0"),
        ({"text": "label"}, "text and label are both 'label'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ClearheadError, match=message):
        ClassifyOptions(**options)


def test_mistakes_of_a_table_are_told_in_one_line(tmp_path, tokenizer, build, language_model):
    path = tmp_path / "a.jsonl"

    def refused(*rows, **options):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(ClearheadError) as caught:
            read_labelled(path, tokenizer, ClassifyOptions(**options))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    good = {"text": "a", "label": "x"}
    assert "line 2: it has no 'label'" in refused(good, {"text": "b"})
    assert "line 1: 'label' is empty" in refused({"text": "b", "label": " "})
    assert "line 1: 'label' is float, not text" in refused({"text": "b", "label": 0.5})
    assert "line 1: it has no 'body'" in refused(good, text="body")
    assert "line 1: the text holds <|endoftext|>" in refused(good | {"text": "b<|endoftext|>"})
    with pytest.raises(ClearheadError, match="max_length is 99, and the model's context 24"):
        build(max_length=99)
    with pytest.raises(ClearheadError, match="batch_size 0"):
        Classification(Parts((), (), (), 0), ("x", "y"), 0, batch_size=0, max_length=1)


def test_numbers_and_truth_values_are_labels(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": true}\n')
    found = read_labelled(path, tokenizer, ClassifyOptions())
    assert [one.label for one in found.rows] == ["1", "true"]


def test_a_character_that_the_tokenizer_lacks_is_a_bad_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "é", "label": "y"}\n')
    tokenizer = build_tokenizer("char", lambda: iter(["abc"]))
    with pytest.raises(ClearheadError, match=r"a\.jsonl, line 2: "):
        read_labelled(path, tokenizer, ClassifyOptions())
    found = read_labelled(path, tokenizer, ClassifyOptions(skip_bad=True))
    assert (len(found.rows), found.n_skipped) == (1, 1)
    assert found.skipped[0].startswith("line 2: ")


def test_saved_texts_are_read_again(tmp_path, build, tokenizer):
    parts = build()[1].parts
    save_texts(tmp_path / "test.jsonl", parts.test)
    found = read_texts(tmp_path / "test.jsonl", tokenizer)
    assert found.rows == [(one.text, one.label) for one in parts.test]


def test_a_classifier_learns_on_with_its_own_head(build, table, tokenizer):
    model, _ = build()
    again, _ = build(model)
    assert again is model
    other = texts_of(*[(f"text {n}", ["ham", "eggs"][n % 2]) for n in range(40)])
    options = ClassifyOptions()
    with pytest.raises(ClearheadError, match="unseen in training: eggs; the model tells ham, spam"):
        build_classification(model, tokenizer, other, options, batch_size=8, seed=0)


def test_a_run_learns_and_its_checkpoint_is_a_classifier(train, tmp_path, tokenizer):
    trainer = train(tmp_path / "run", steps=40, evaluate_every=20)
    before = trainer.objective.evaluate(trainer.model, torch.float32)
    result = trainer.train()
    assert result.evaluation.loss < before.loss
    assert result.evaluation.accuracy > 0.95
    model, _ = checkpoint.load(result.checkpoint)
    assert model.config.labels == ("ham", "spam")
    parts = trainer.objective.parts
    found = classify(model, tokenizer, [one.text for one in parts.validation])
    trainer.model.eval()
    logits = label_logits(trainer.model, [one.ids[:24] for one in parts.validation], 256)
    np.testing.assert_allclose(
        found.log_probabilities, logits.double().log_softmax(-1).detach(), rtol=0, atol=1e-6
    )


def test_killed_and_resumed_it_is_the_same_run_bit_for_bit(train, tmp_path):
    def record(run):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        timings = {"seconds", "tokens_per_second"}
        return [{k: v for k, v in json.loads(x).items() if k not in timings} for x in lines]

    whole = train(tmp_path / "whole").train()
    saves = []

    def save_and_die(folder, *arguments, **options):
        checkpoint.save(folder, *arguments, **options)
        saves.append(folder)
        if len(saves) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", save=save_and_die).train()
    resumed = train(tmp_path / "killed", resume_from=saves[-1]).train()
    assert resumed.evaluation == whole.evaluation
    assert record(tmp_path / "killed") == record(tmp_path / "whole")
    one, other = (checkpoint.load_model(result.checkpoint) for result in (whole, resumed))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


@pytest.mark.skipif("CLEARHEAD_DATA" not in os.environ, reason="CLEARHEAD_DATA names no folder")
def test_real_messages_are_divided(tokenizer):
    path = Path(os.environ["CLEARHEAD_DATA"]) / "finetune/sms.tsv"
    found = read_labelled(path, tokenizer, ClassifyOptions(text="2", label="1"))
    assert Counter(one.label for one in found.rows) == {"ham": 4827, "spam": 747}
    parts = split_texts(found.rows, val_fraction=0.1, test_fraction=0.2, seed=0)
    assert len(parts.test) == pytest.approx(1115, abs=3)
    assert sum(one.label == "spam" for one in parts.test) == pytest.approx(149, abs=2)
    assert parts.n_repeated > 400


@pytest.mark.filterwarnings("default")  # transformers' own
def test_transformers_gives_the_same_logits(train, tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    result = train(tmp_path / "run", steps=4).train()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(result.checkpoint)
    assert type(theirs).__name__ == "GPT2ForSequenceClassification"
    assert theirs.config.id2label == {0: "ham", 1: "spam"}
    reader = transformers.AutoTokenizer.from_pretrained(result.checkpoint)
    reader.pad_token = reader.eos_token
    texts = ["WIN CASH 7", "ok", "home soon lunch ok"]
    batch = reader(texts, return_tensors="pt", padding=True, truncation=True, max_length=24)
    assert (batch["input_ids"] == 256).any()
    with torch.no_grad():
        expected = theirs.eval()(**batch).logits.double().log_softmax(-1)
    model, _ = checkpoint.load(result.checkpoint)
    found = classify(model, tokenizer, texts)
    np.testing.assert_allclose(found.log_probabilities, expected, rtol=0, atol=1e-5)
