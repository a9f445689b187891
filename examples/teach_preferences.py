"""Teach a model that answers which of two answers is better.

python examples/teach_preferences.py FOLDER-OF-A-MODEL PAIRS OUT [STEPS]
"""

import sys
from pathlib import Path

import clearhead

base, pairs, out, steps = [Path(one) for one in sys.argv[1:4]] + [int([*sys.argv, "100"][4])]
settings = clearhead.PreferConfig(base=base, data=pairs, out=out, steps=steps)
result = clearhead.fine_tune(settings, resume=True)
before = clearhead.read_ledger(result.checkpoint)[-1].before
print(f"before: {before['val_loss']:.4f} nats a pair")
print(f"after: {result.evaluation}")
