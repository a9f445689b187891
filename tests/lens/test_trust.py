"""The trust table holds the four measures as they are, ranks them, and marks where they part."""

import pytest
import torch
from random_model import random_model, random_tokens

from clearhead.lens.ablate import ablate_heads
from clearhead.lens.heads import head_contributions
from clearhead.lens.importance import head_importance
from clearhead.lens.logits import mean_attribution
from clearhead.lens.trust import MEASURES, trust_table


def test_the_measures_stand_beside_each_other():
    model = random_model()
    texts = random_tokens(model, batch=3)
    found = trust_table(model, texts)
    ablated = ablate_heads(model, texts).by_head(3, 3)
    share = torch.stack([head_contributions(model, text[None]).mean_share for text in texts])
    for name, expected in (
        ("share", share.mean(0)),
        ("attribution", mean_attribution(model, texts).heads),
        ("importance", head_importance(model, texts).importance),
        ("ablation", ablated["delta"]),
        ("low", ablated["low"]),
        ("high", ablated["high"]),
    ):
        torch.testing.assert_close(getattr(found, name), expected)


def test_ranks_and_readings():
    model = random_model(n_heads=4)
    found = trust_table(model, random_tokens(model, batch=3))
    for measure, ranks in zip(MEASURES, found.ranks, strict=True):
        size = getattr(found, measure).abs().flatten()
        assert ranks.flatten()[size.argmax()] == 1
        assert ranks.flatten()[size.argmin()] == 0
        assert torch.equal(ranks.flatten().argsort(), size.argsort())
    spread = found.ranks.amax(0) - found.ranks.amin(0)
    for layer in range(3):
        for head in range(4):
            assert bool(found.reading(layer, head)) == bool(spread[layer, head] > 0.5)


@pytest.mark.parametrize(
    ("ranks", "reading"),
    [
        ((0.9, 0.9, 0.9, 0.9), ""),
        ((0.5, 0.9, 0.5, 0.1), "others may take over (backup)"),
        ((0.5, 0.1, 0.5, 0.9), "acts through later parts"),
        ((0.9, 0.4, 0.3, 0.35), "loud, little heard"),
        ((0.1, 0.6, 0.7, 0.65), "measures disagree"),
    ],
)
def test_what_a_disagreement_may_mean(ranks, reading):
    model = random_model(n_layers=1, n_heads=1)
    found = trust_table(model, random_tokens(model))
    column = torch.tensor(ranks).double()
    object.__setattr__(found, "ranks", column[:, None, None])
    object.__setattr__(found, "disagree", (column.max() - column.min() > 0.5)[None, None])
    assert found.reading(0, 0) == reading


def test_it_becomes_a_table():
    model = random_model()
    table = trust_table(model, random_tokens(model)).to_pandas()
    assert {*MEASURES, "low", "high"} < set(table.columns)
