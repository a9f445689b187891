"""What a model is worth: likelihoods, benchmarks, and how sure the figures are."""

from clearhead.evaluate.choices import Continuation, Score, score_continuations
from clearhead.evaluate.encode import encode_pair
from clearhead.evaluate.intervals import Difference, Figure, bootstrap, compare
from clearhead.evaluate.perplexity import Perplexity, perplexity
from clearhead.evaluate.tasks import TASKS, Question, Task, find_task, values

__all__ = [
    "TASKS",
    "Continuation",
    "Difference",
    "Figure",
    "Perplexity",
    "Question",
    "Score",
    "Task",
    "bootstrap",
    "compare",
    "encode_pair",
    "find_task",
    "perplexity",
    "score_continuations",
    "values",
]
