"""From text to a model to text, with the functions that the command calls.

python examples/train_and_generate.py TEXT OUT [STEPS]
"""

import sys
from dataclasses import replace
from pathlib import Path

import clearhead
from clearhead.train import Evaluated, Event

text, out, steps = sys.argv[1], Path(sys.argv[2]), int([*sys.argv, "300"][3])


def watch(event: Event) -> None:
    """Print each evaluation."""
    if isinstance(event, Evaluated):
        print(f"step {event.step}: {event.evaluation.bits_per_byte:.3f} bits a byte")


settings = replace(
    clearhead.recipe("nano"), data=(text,), tokenizer="bytes", out=out, steps=steps, minutes=None
)
result = clearhead.pretrain(settings, resume=True, observers=[watch])

model, tokenizer = clearhead.load(result.checkpoint)
sampling = clearhead.SamplingConfig(temperature=0.8, max_new_tokens=100, seed=1)
(completion,) = clearhead.generate(model, tokenizer, "The ", sampling=sampling)
print("The " + completion.text)
