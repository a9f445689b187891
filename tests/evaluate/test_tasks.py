"""Questions as lm-eval asks them, from the files as they are published, and their scores."""

import os
from pathlib import Path

import numpy as np
import pytest

from clearhead.errors import ClearheadError
from clearhead.evaluate import TASKS, Score, find_task, values
from clearhead.finetune import read_examples

ASKED = [
    (
        "hellaswag",
        {
            "activity_label": "Roof [header] work",
            "ctx_a": "A man sits [title] on a roof.",
            "ctx_b": "he",
            "endings": ["is [x] gone.", "starts [title] up"],
            "label": "1",
        },
        "Roof work: A man sits. on a roof. He",
        [" is gone.", " starts. up"],
        1,
    ),
    (
        "arc_easy",
        {"query": "Question: Why?", "choices": ["a", "b", "c"], "gold": 2},
        "Question: Why?\nAnswer:",
        [" a", " b", " c"],
        2,
    ),
    (
        "arc_challenge",
        {
            "question": "Why?",
            "choices": {"text": ["a", "b"], "label": ["1", "2"]},
            "answerKey": "2",
        },
        "Question: Why?\nAnswer:",
        [" a", " b"],
        1,
    ),
    (
        "piqa",
        {"query": "Question: How?\n", "choices": ["a", "b"], "gold": 0},
        "Question: How?\nAnswer:",
        [" a", " b"],
        0,
    ),
    (
        "piqa",
        {"goal": "How?", "sol1": "a", "sol2": "b", "label": 1},
        "Question: How?\nAnswer:",
        [" a", " b"],
        1,
    ),
    ("lambada", {"context": "Near the", "continuation": "sea"}, "Near the", [" sea"], 0),
    ("lambada", {"text": "Near the sea"}, "Near the", [" sea"], 0),
    ("blimp", {"sentence_good": "It is.", "sentence_bad": "It are."}, "", ["It is.", "It are."], 0),
]


@pytest.mark.parametrize(("task", "row", "context", "choices", "answer"), ASKED)
def test_a_row_becomes_the_question_that_lm_eval_asks(task, row, context, choices, answer):
    question = TASKS[task].question(row)
    assert question.pairs == tuple((context, choice) for choice in choices)
    assert question.answer == answer
    assert question.lengths == tuple(len(choice.lstrip()) for choice in choices)


@pytest.mark.parametrize(
    "row",
    [
        {"sentence": "Ann met Eve so _ waved .", "option1": "Ann", "option2": "Eve", "answer": "2"},
        {
            "context_options": ["Ann met Eve so Ann", "Ann met Eve so Eve"],
            "continuation": "waved .",
            "gold": 1,
        },
    ],
)
def test_winogrande_scores_the_rest_after_each_option(row):
    question = TASKS["winogrande"].question(row)
    contexts = ("Ann met Eve so Ann", "Ann met Eve so Eve")
    assert question.pairs == tuple((context, " waved .") for context in contexts)
    assert question.answer == 1


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("hellaswag", {"ctx_a": "a"}, "no text under 'ctx_b', but 'ctx_a'"),
        ("arc_easy", {"query": "a", "choices": ["b"], "gold": 1}, "'gold' is 1; there are 1"),
        ("arc_easy", {"query": "a", "choices": "b", "gold": 1}, "no list of texts"),
        ("arc_easy", {"query": "a", "choices": ["b"]}, "no number under 'gold'"),
        (
            "arc_easy",
            {"question": "a", "choices": {"text": ["b"], "label": ["A"]}, "answerKey": "Z"},
            "answerKey is 'Z'",
        ),
        ("lambada", {"text": "word"}, "one word"),
        ("winogrande", {"sentence": "a", "option1": "b", "option2": "c", "answer": "1"}, "no '_'"),
        ("piqa", {"goal": "a", "sol1": "b", "sol2": "c", "label": 7}, "'label' is 7"),
    ],
)
def test_a_bad_row_says_what_is_wrong(task, row, message):
    with pytest.raises(ClearheadError, match=message):
        TASKS[task].question(row)


def scores(*log_probabilities, greedy=False):
    return tuple(Score(value, 2, greedy) for value in log_probabilities)


def test_metrics():
    question = TASKS["arc_easy"].question(
        {"query": "q", "choices": ["a", "a much longer one"], "gold": 1}
    )
    assert values("accuracy", question, scores(-3.0, -4.0)) == 0
    assert values("accuracy_norm", question, scores(-3.0, -4.0)) == 1
    word = TASKS["lambada"].question({"text": "Near the sea"})
    assert values("accuracy", word, scores(-3.0, greedy=True)) == 1
    assert values("accuracy", word, scores(-3.0)) == 0
    assert np.array_equal(values("perplexity", word, scores(-3.0)), [3.0])


def test_an_unknown_task():
    with pytest.raises(ClearheadError, match="no task 'helaswag'; did you mean 'hellaswag'"):
        find_task("helaswag")


@pytest.mark.skipif("CLEARHEAD_DATA" not in os.environ, reason="CLEARHEAD_DATA names no folder")
@pytest.mark.parametrize(
    ("task", "file", "n"),
    [
        ("hellaswag", "hellaswag_val.jsonl", 10042),
        ("lambada", "lambada_openai.jsonl", 5153),
        ("arc_easy", "arc_easy.jsonl", 2376),
        ("piqa", "piqa.jsonl", 1838),
        ("winogrande", "winogrande.jsonl", 1267),
    ],
)
def test_the_published_files_are_read_whole(task, file, n):
    path = Path(os.environ["CLEARHEAD_DATA"]) / "eval" / file
    assert len(read_examples(path, TASKS[task].question).rows) == n
