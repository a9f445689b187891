"""Make a classifier of a trained model, and measure it on texts that it never saw.

python examples/teach_labels.py FOLDER-OF-A-MODEL TABLE OUT [STEPS]
"""

import json
import sys
from pathlib import Path

import clearhead

base, table, out, steps = [Path(one) for one in sys.argv[1:4]] + [int([*sys.argv, "300"][4])]
settings = clearhead.ClassifyConfig(base=base, data=table, out=out, steps=steps)
clearhead.fine_tune(settings, resume=True)

model, tokenizer = clearhead.load(out, which="best")
rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
metrics = clearhead.evaluate_classifier(model, tokenizer, texts, labels)
low, high = metrics.interval
print(f"{metrics.accuracy:.1%} of {len(rows)} right, 95 % interval {low:.1%} to {high:.1%}")
