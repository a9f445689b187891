"""The example that one can read, and the trap."""

import torch
from random_model import random_model, random_tokens

from clearhead.lens.example import trap, worked_example
from clearhead.lens.heads import head_contributions, split
from clearhead.lens.taps import run
from clearhead.lens.weights import weights


def test_the_example_says_what_it_is_made_to_say():
    found = worked_example()
    z = found.z
    assert z.tolist()[3][0] == 4.0
    mixed = [z[1] - z[3], 2 * z[0], z.mean(0), torch.zeros(8)]
    torch.testing.assert_close(found.output, torch.cat(mixed))
    torch.testing.assert_close(found.contributions.sum(0), found.output)
    flipped = [z[1] + z[3], 2 * z[0], (z[0] + z[1] + z[2] - z[3]) / 4, torch.zeros(8)]
    torch.testing.assert_close(found.flipped, torch.cat(flipped))
    assert torch.equal(found.unmixed, z.flatten())
    assert found.proof.residual < 1e-6


def test_the_trap_adds_up_and_is_another_quantity():
    model = random_model(d_model=96, n_heads=12)
    tokens = random_tokens(model, batch=1)
    found = trap(model, tokens, 1, position=4)
    true = head_contributions(model, tokens)
    torch.testing.assert_close(found.strength, true.strength[1, 0, 4])
    seen = run(model, tokens, "z", "attention")
    added = split(seen["z", 1], weights(model).layers[1].out)[0, 4]  # [H, D]
    output = (seen["attention", 1] - weights(model).layers[1].out_bias)[0, 4].view(12, 8)
    torch.testing.assert_close(found.slice_strength, output.norm(dim=-1))
    inner = torch.stack([added[h, 8 * h : 8 * h + 8] @ output[h] for h in range(12)])
    torch.testing.assert_close(found.cosine, inner / found.strength / found.slice_strength)
    assert found.cosine.mean().abs() < 0.5
