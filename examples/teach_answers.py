"""Teach a trained model to answer, ask it, and see what that cost.

python examples/teach_answers.py FOLDER-OF-A-MODEL ROWS OUT [STEPS]
"""

import sys
from pathlib import Path

import clearhead
from clearhead.recipes.chat import question_prompt

base, rows, out, steps = [Path(one) for one in sys.argv[1:4]] + [int([*sys.argv, "300"][4])]
settings = clearhead.InstructConfig(base=base, data=rows, out=out, steps=steps)
result = clearhead.fine_tune(settings, resume=True)
print(f"on answers held out: {result.evaluation}")

for stage in clearhead.read_ledger(result.checkpoint):
    print(stage.kind, "learnt from", ", ".join(one["name"] for one in stage.data))
    if stage.text_before and stage.text_after:
        before, after = stage.text_before["val_loss"], stage.text_after["val_loss"]
        print(f"loss on plain text: {before:.3f} before, {after:.3f} after")

model, tokenizer = clearhead.load(result.checkpoint)
(answer,) = clearhead.generate(model, tokenizer, question_prompt(tokenizer, "What is the capital?"))
print(answer.text)
