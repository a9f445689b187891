import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.data import IGNORED
from clearhead.errors import ClearheadError
from clearhead.finetune import Answers, encode_conversation, messages_of
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import CHAT_TEMPLATE, build_tokenizer, render_chat, save_tokenizer
from clearhead.train import compute_gradient

SHAPE = GPTConfig(vocab_size=257, context_length=160, d_model=16, n_heads=2, n_layers=2, dropout=0)
TALKS = [
    [("user", "Say hello."), ("assistant", "Hello.")],
    [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4")],
    [("user", "A?"), ("assistant", "B"), ("user", "And?"), ("assistant", " C é ")],
]


def talk(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def examples(count, seed=0):
    random, tokenizer = np.random.default_rng(seed), build_tokenizer("bytes")
    return [
        encode_conversation(
            tokenizer,
            CHAT_TEMPLATE,
            talk(
                ("user", "q" * int(random.integers(1, 40))),
                ("assistant", "a" * int(random.integers(1, 60))),
            ),
        )
        for _ in range(count)
    ]


def answers(packed, count=12, batch_size=3, seed=0):
    found = examples(count)
    return Answers(
        found,
        found[:4],
        build_tokenizer("bytes"),
        batch_size=batch_size,
        context_length=SHAPE.context_length,
        packed=packed,
        seed=seed,
    )


@pytest.mark.parametrize("turns", TALKS)
@pytest.mark.parametrize("kind", ["gpt2", "bytes"])
def test_answers_and_their_ends_are_learnt_and_nothing_else(turns, kind):
    tokenizer = build_tokenizer(kind)
    example = encode_conversation(tokenizer, CHAT_TEMPLATE, talk(*turns))
    parts = np.split(np.arange(len(example.ids)), np.flatnonzero(np.diff(example.learnt)) + 1)
    learnt = [tokenizer.decode(example.ids[part]) for part in parts if example.learnt[part[0]]]
    said = [content.strip() for role, content in turns if role == "assistant"]
    assert learnt == [f"{content}<|endoftext|>" for content in said]
    assert tokenizer.decode(example.ids) == render_chat(CHAT_TEMPLATE, talk(*turns))


@pytest.mark.parametrize("turns", TALKS)
def test_what_is_generated_from_is_what_was_learnt_from(turns):
    tokenizer = build_tokenizer("gpt2")
    example = encode_conversation(tokenizer, CHAT_TEMPLATE, talk(*turns))
    asked = render_chat(CHAT_TEMPLATE, talk(*turns[:-1]), add_generation_prompt=True)
    prompt = tokenizer.encode(asked)
    assert np.array_equal(example.ids[: len(prompt)], prompt)
    assert example.learnt[len(prompt) :].all()
    assert not example.learnt[len(prompt) - 1]


@pytest.mark.parametrize("turns", TALKS)
def test_transformers_applies_the_template_alike(tmp_path, turns):
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer("gpt2")
    tokenizer.chat_template = CHAT_TEMPLATE
    save_tokenizer(tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    messages = talk(*turns)
    example = encode_conversation(tokenizer, CHAT_TEMPLATE, messages)
    found = theirs.apply_chat_template(messages, return_dict=False)
    assert found == example.ids.tolist()
    prompt = theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt == render_chat(CHAT_TEMPLATE, messages[:-1], add_generation_prompt=True)


def test_both_kinds_of_row_are_conversations():
    row = {"instruction": "Add. ", "input": "1 2", "output": "3"}
    assert messages_of(row) == talk(("user", "Add.\n\n1 2"), ("assistant", "3"))
    row = {"messages": talk(("user", "Add."), ("assistant", "3")), "id": 7}
    assert messages_of(row) == row["messages"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a", "input": ""}, "no 'output'"),
        ({"instruction": "", "output": "b"}, "'instruction' is empty"),
        ({"instruction": "a", "output": 3}, "'output' is int"),
        ({"instruction": "a", "output": "b<|endoftext|>c"}, "ends a text"),
        ({"messages": []}, "no list of messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "no role of system, user, assistant"),
        ({"messages": talk(("user", "a"))}, "nothing to learn"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row, message):
    with pytest.raises(ClearheadError, match=message):
        messages_of(row)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages | length }}", "does not continue"),
        ("{% for %}", "refuses the messages"),
        ("{{ raise_exception('no') }}", "refuses the messages: no"),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages.*unsafe"),
        ("{{ range(10 ** 9) | list }}", "refuses the messages"),
    ],
)
def test_a_template_that_cannot_be_used(template, message):
    with pytest.raises(ClearheadError, match=message):
        encode_conversation(build_tokenizer("bytes"), template, talk(*TALKS[0]))


@pytest.mark.parametrize("packed", [False, True])
def test_an_epoch_has_every_example_once_and_batches_are_pure(packed):
    ours, again = answers(packed), answers(packed)
    seen = 0
    for step in range(ours.steps_per_epoch):
        rows = ours.at(step)
        assert torch.equal(rows.inputs, again.at(step).inputs)
        seen += int((rows.targets != IGNORED).sum())
    assert seen == sum(example.learnt[1:].sum() for example in examples(12))
    orders = [ours.at(step).inputs.sum().item() for step in range(4 * ours.steps_per_epoch)]
    assert len({tuple(orders[at :: ours.steps_per_epoch]) for at in range(2)}) == 2
    assert 0 <= ours.padding < 1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 50))
def test_packed_and_unpacked_have_the_same_loss_and_gradient(seed):
    torch.manual_seed(seed)
    found = []
    for packed in (False, True):
        torch.manual_seed(seed)
        model = GPT(SHAPE)
        whole = answers(packed, batch_size=99)
        options = {"dtype": torch.float32, "max_grad_norm": 0, "micro_batch_size": 99}
        gradient = compute_gradient(model, whole.at(0), loss=whole.loss, **options)
        found.append((gradient.loss, [p.grad for p in model.parameters()]))
        evaluation = whole.evaluate(model, torch.float32)
        found[-1] += (evaluation.loss, evaluation.n)
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-4)
    assert found[0][2] == pytest.approx(found[1][2], abs=1e-5)
    assert found[0][3] == found[1][3]


def test_long_conversations_are_cut_and_those_without_an_answer_left_out():
    tokenizer = build_tokenizer("bytes")
    long_answer = talk(("user", "q"), ("assistant", "a" * 500))
    long_question = talk(("user", "q" * 500), ("assistant", "a"))
    encoded = [
        encode_conversation(tokenizer, CHAT_TEMPLATE, one) for one in (long_answer, long_question)
    ]
    options = {"batch_size": 2, "context_length": 160, "packed": True, "seed": 0}
    found = Answers(encoded, examples(1), tokenizer, **options)
    assert (found.n_cut, found.n_left_out) == (2, 1)
    assert found.at(0).inputs.shape == (1, 160)
    with pytest.raises(ClearheadError, match="no answer fits the context of 160"):
        Answers(encoded[1:], examples(1), tokenizer, **options)
