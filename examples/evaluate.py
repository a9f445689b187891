"""Measure a model on a benchmark, and compare two.

python examples/evaluate.py FOLDER-OF-A-MODEL TASK QUESTIONS [OTHER-MODEL]
"""

import sys
from pathlib import Path

import clearhead

model, task, questions = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
found = clearhead.evaluate_model(model, task, questions)
for metric, figure in found.figures.items():
    print(f"{task} {metric}: {figure} of {found.n}")

for other in sys.argv[4:]:
    difference, _, _ = clearhead.compare_models(model, Path(other), task, questions)
    print(f"{other} differs by {difference.difference}, p = {difference.p_value:.3f}")
