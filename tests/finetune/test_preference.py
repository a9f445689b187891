import math

import pytest
import torch
import torch.nn.functional as F

from clearhead.data import IGNORED
from clearhead.errors import ClearheadError
from clearhead.finetune import (
    PreferenceLoss,
    Preferences,
    answer_log_probabilities,
    encode_pair,
    pair_of,
)
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import CHAT_TEMPLATE, build_tokenizer
from clearhead.train import apply_gradient, compute_gradient

SHAPE = GPTConfig(vocab_size=257, context_length=96, d_model=16, n_heads=2, n_layers=2, dropout=0)
ROWS = [
    {"prompt": f"Question {n}?", "chosen": "yes" + "!" * n, "rejected": "no" * (n + 1)}
    for n in range(6)
]


def preferences(loss, rows=ROWS, batch_size=4):
    tokenizer = build_tokenizer("bytes")
    pairs = [encode_pair(tokenizer, CHAT_TEMPLATE, pair_of(row)) for row in rows]
    return Preferences(
        pairs, pairs[:3], tokenizer, loss=loss, batch_size=batch_size, context_length=96, seed=0
    )


def naive(model, rows):
    """Return every answer's log-probability and length, from the logits of all positions."""
    found = []
    for inputs, targets in zip(rows.inputs.flatten(0, 1), rows.targets.flatten(0, 1), strict=True):
        logits = F.log_softmax(model(inputs[None])[0], dim=-1)
        said = [logits[at, token] for at, token in enumerate(targets) if token != IGNORED]
        found.append((torch.stack(said).sum(), len(said)))
    return found


@pytest.mark.parametrize("kind", ["dpo", "ipo", "simpo"])
def test_the_loss_is_the_papers(kind):
    torch.manual_seed(0)
    start, model = GPT(SHAPE), GPT(SHAPE)
    ours = preferences(PreferenceLoss(kind=kind, beta=0.3, margin=0.2))
    ours.refer_to(start, torch.float32)
    rows = ours.at(0)
    now, before = naive(model, rows), naive(start, rows)
    expected = []
    for at in range(0, len(now), 2):
        (better, n_better), (worse, n_worse) = now[at : at + 2]
        moved = (better - before[at][0]) - (worse - before[at + 1][0])
        if kind == "dpo":
            expected.append(-torch.log(torch.sigmoid(0.3 * moved)))
        elif kind == "ipo":
            expected.append((moved - 1 / 0.6) ** 2)
        else:
            ahead = better / n_better - worse / n_worse
            expected.append(-torch.log(torch.sigmoid(0.3 * ahead - 0.2)))
    found = ours.loss(model, rows)
    torch.testing.assert_close(found, torch.stack(expected).sum(), atol=1e-4, rtol=1e-4)


def test_before_the_first_step_dpo_is_undecided():
    torch.manual_seed(0)
    model = GPT(SHAPE)
    ours = preferences(PreferenceLoss())
    ours.refer_to(model, torch.float32)
    measured = ours.evaluate(model, torch.float32)
    assert measured.loss == pytest.approx(math.log(2), abs=1e-5)
    assert measured.unit == "nats a pair"


@pytest.mark.parametrize("kind", ["dpo", "ipo", "simpo"])
def test_learning_puts_the_better_answers_ahead(kind):
    torch.manual_seed(0)
    model = GPT(SHAPE)
    ours = preferences(PreferenceLoss(kind=kind, beta=1.0))
    ours.refer_to(model, torch.float32)
    before = ours.evaluate(model, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(20):
        options = {"micro_batch_size": 2, "dtype": torch.float32, "max_grad_norm": 1.0}
        compute_gradient(model, ours.at(step), loss=ours.loss, **options)
        apply_gradient([optimizer])
    after = ours.evaluate(model, torch.float32)
    assert after.loss < before.loss
    assert after.accuracy == 1


def test_micro_batches_have_the_same_gradient():
    torch.manual_seed(0)
    model, ours = GPT(SHAPE), preferences(PreferenceLoss())
    ours.refer_to(GPT(SHAPE), torch.float32)
    found = []
    for size in (1, 3, 4):
        options = {"micro_batch_size": size, "dtype": torch.float32, "max_grad_norm": 0}
        gradient = compute_gradient(model, ours.at(0), loss=ours.loss, **options)
        found.append([gradient.loss, *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-5, rtol=1e-4)


def test_log_probabilities_of_padded_rows_are_those_of_each_alone():
    torch.manual_seed(0)
    model = GPT(SHAPE).double()
    rows = preferences(PreferenceLoss(kind="simpo")).at(0)
    together = answer_log_probabilities(
        model, rows.inputs.flatten(0, 1), rows.targets.flatten(0, 1)
    )
    expected = torch.stack([total for total, _ in naive(model, rows)])
    torch.testing.assert_close(together.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "no 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": " b"}, "are the same"),
        ({"instruction": "a", "chosen": "b", "rejected": ""}, "'rejected' is empty"),
        ({"chosen": "b", "rejected": "c"}, "no 'instruction'"),
        ({"prompt": "a<|endoftext|>", "chosen": "b", "rejected": "c"}, "ends a text"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row, message):
    with pytest.raises(ClearheadError, match=message):
        pair_of(row)


def test_long_pairs_are_left_out_and_counted():
    long = {"prompt": "a", "chosen": "b" * 200, "rejected": "c"}
    assert preferences(PreferenceLoss(), [*ROWS, long]).n_left_out == 1
    with pytest.raises(ClearheadError, match="no pair fits"):
        preferences(PreferenceLoss(), [long])


@pytest.mark.parametrize(
    "options", [{"kind": "ppo"}, {"beta": 0.0}, {"beta": float("nan")}, {"margin": -1.0}]
)
def test_options_out_of_range(options):
    with pytest.raises(ClearheadError, match=f"loss.{next(iter(options))} is"):
        PreferenceLoss(**options)
