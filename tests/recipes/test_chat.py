"""Conversations: what each turn reads, gives, shares, leaves out and keeps."""

import json
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clearhead import checkpoint
from clearhead.engine import SEEDS, SamplingConfig
from clearhead.engine.slots import CHUNK
from clearhead.errors import ClearheadError
from clearhead.finetune import messages_of, read_examples
from clearhead.model import GPT, GPTConfig
from clearhead.recipes.chat import Answer, Conversation
from clearhead.recipes.generate import generate
from clearhead.tokenizer import CHAT_TEMPLATE, Tokenizer, build_tokenizer, render_chat

GREEDY = SamplingConfig(temperature=0, max_new_tokens=40)
DRAWN = SamplingConfig(temperature=0.9, top_p=0.95, max_new_tokens=40, seed=SEEDS - 2)
QUESTIONS = ("What is a noun? " * 5, "And a verb?", "Give me one of each.")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = build_tokenizer("bytes")
    found.chat_template = CHAT_TEMPLATE
    return found


def random_model(context_length: int) -> GPT:
    torch.manual_seed(11)
    model = GPT(GPTConfig(257, context_length=context_length, d_model=32, n_heads=4, n_layers=2))
    with torch.no_grad():
        for parameter in model.parameters():  # far from GPT-2's start, so that tokens differ
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(640)


def alone(
    model: GPT, tokenizer: Tokenizer, conversation: Conversation, answer: Answer
) -> tuple[int, ...]:
    """Return the tokens of a fresh call on the conversation before its last answer."""
    assert tokenizer.chat_template is not None
    prompt = render_chat(
        tokenizer.chat_template, conversation.messages[:-1], add_generation_prompt=True
    )
    sampling = replace(conversation.sampling, seed=answer.seed)
    (completion,) = generate(model, tokenizer, prompt, sampling=sampling)
    assert completion.prompt_token_ids == answer.prompt_token_ids
    assert completion.text == answer.text
    assert completion.finish_reason == answer.finish_reason
    return completion.token_ids


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
@pytest.mark.parametrize("system", ["", "Answer in one word."])
def test_each_turn_is_what_a_fresh_call_on_all_of_it_gives(model, tokenizer, sampling, system):
    conversation = Conversation(model, tokenizer, system=system, sampling=sampling)
    seeds = []
    for question in QUESTIONS:
        shown: list[str] = []
        answer = conversation.ask(question, on_text=shown.append)
        assert answer.token_ids == alone(model, tokenizer, conversation, answer)
        assert "".join(shown) == answer.text
        assert "" not in shown
        assert (answer.question, answer.n_left_out) == (question, 0)
        seeds.append(answer.seed)
    if sampling.seed is not None:
        assert seeds == [SEEDS - 2, SEEDS - 1, 0]
    assert [message["role"] for message in conversation.messages] == (
        ["system"] * bool(system) + ["user", "assistant"] * 3
    )


def test_answers_are_those_of_transformers(model, tokenizer, tmp_path):
    checkpoint.save(tmp_path / "model", model, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    conversation = Conversation(model, tokenizer, system="Be short.", sampling=GREEDY)
    for question in QUESTIONS:
        before = [*conversation.messages, {"role": "user", "content": question}]
        answer = conversation.ask(question)
        ids = their_tokenizer.apply_chat_template(
            before, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        found = theirs.generate(
            **ids, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.end_of_text
        )[0, ids["input_ids"].shape[1] :]
        assert answer.token_ids == tuple(found.tolist())


def test_a_turn_reads_only_what_is_new(model, tokenizer):
    conversation = Conversation(model, tokenizer, sampling=GREEDY)
    before, seen = conversation.ask(QUESTIONS[0]), set()
    assert before.n_shared == 0
    for question in (*QUESTIONS, *QUESTIONS[1:]):
        n_read = conversation.engine.n_read
        answer = conversation.ask(question)
        alike = takewhile(
            lambda pair: pair[0] == pair[1],
            zip(answer.prompt_token_ids, before.prompt_token_ids, strict=False),
        )
        assert answer.n_shared == len(list(alike)) // CHUNK * CHUNK
        # The last new token is chosen, and never read.
        read = len(answer.prompt_token_ids) - answer.n_shared + answer.n_tokens - 1
        assert conversation.engine.n_read - n_read == read
        seen.add(answer.n_shared)
        before = answer
    assert {0, 2 * CHUNK, 3 * CHUNK} <= seen
    again = conversation.retry()
    assert again.n_shared == len(again.prompt_token_ids)


@pytest.mark.parametrize(("max_new_tokens", "room"), [(40, 217), (100_000, 128)])
def test_the_oldest_exchanges_are_left_out_as_few_as_make_room(tokenizer, max_new_tokens, room):
    sampling = replace(GREEDY, max_new_tokens=max_new_tokens)
    conversation = Conversation(
        random_model(256), tokenizer, system="Be kind.", sampling=sampling, stop=["e"]
    )

    def prompt(exchanges, question):
        said = [{"role": "system", "content": "Be kind."}]
        for asked, answered in exchanges:
            said += [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answered},
            ]
        said.append({"role": "user", "content": question})
        return tuple(tokenizer.encode(render_chat(CHAT_TEMPLATE, said, add_generation_prompt=True)))

    left_out = []
    for number in range(9):
        question, before = f"Question {number}" + "?" * (number % 4 * 9), conversation.exchanges[:]
        answer = conversation.ask(question)
        fitting = [n for n in range(number + 1) if len(prompt(before[n:], question)) <= room]
        assert answer.n_left_out == fitting[0]
        assert answer.prompt_token_ids == prompt(before[fitting[0] :], question)
        assert conversation.exchanges == [*before, (question, answer.text)]
        left_out.append(answer.n_left_out)
    assert left_out[0] == 0
    assert len(set(left_out)) > 3
    if max_new_tokens == 40:
        assert answer.finish_reason != "context"


def test_what_is_too_long_is_refused_and_nothing_changes(tokenizer):
    conversation = Conversation(random_model(256), tokenizer, sampling=GREEDY)
    conversation.ask("One?")
    before = conversation.messages
    room = 217 - len(render_chat(CHAT_TEMPLATE, [], add_generation_prompt=True))
    head = len("### Instruction:\n\n\n")
    with pytest.raises(ClearheadError, match="too long: it takes 218 tokens, and there are 217"):
        conversation.ask("x" * (room - head + 1))
    conversation.system = "Be kind."
    with pytest.raises(ClearheadError, match="with the system message it takes 227 tokens"):
        conversation.ask("x" * (room - head))
    with pytest.raises(ClearheadError, match="the system message takes 300 tokens, and there are"):
        conversation.system = "y" * (300 - 2 - 217 + room - head)
    assert conversation.system == "Be kind."
    conversation.system = ""
    assert conversation.messages == before
    assert conversation.ask("x" * (room - head)).n_left_out == 1


@pytest.mark.parametrize("question", ["", " \n", "one<|endoftext|>two", "half \ud83d"])
def test_a_question_that_is_none(model, tokenizer, question):
    conversation = Conversation(model, tokenizer, sampling=GREEDY)
    with pytest.raises(ClearheadError, match=r"empty or holds <.endoftext.>|surrogate"):
        conversation.ask(question)
    assert conversation.messages == []
    assert conversation.ask("?").n_tokens


def test_what_cannot_talk_is_refused(model, tokenizer):
    with pytest.raises(ClearheadError, match=r"no chat template: .*clearhead finetune instruct"):
        Conversation(model, build_tokenizer("bytes"))
    for stop in ("END", [""]):
        with pytest.raises(ClearheadError, match="it must be a list of strings, none empty"):
            Conversation(model, tokenizer, stop=stop)
    with pytest.raises(ClearheadError, match=r"the system message holds <.endoftext.>"):
        Conversation(model, tokenizer, system="<|endoftext|>")
    with pytest.raises(ClearheadError, match="token id 999"):
        Conversation(model, tokenizer, sampling=SamplingConfig(stop_token_ids=(999,)))


def test_a_template_may_refuse_the_system_message(model):
    tokenizer = build_tokenizer("bytes")
    refusal = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    tokenizer.chat_template = refusal + CHAT_TEMPLATE
    with pytest.raises(ClearheadError, match="refuses the messages: no system"):
        Conversation(model, tokenizer, system="Be kind.")
    conversation = Conversation(model, tokenizer, sampling=GREEDY)
    with pytest.raises(ClearheadError, match="refuses the messages: no system"):
        conversation.system = "Be kind."
    assert conversation.ask("?").n_tokens


def test_a_cancelled_answer_is_what_was_written_and_frees_its_slot(model, tokenizer):
    whole = Conversation(model, tokenizer, sampling=DRAWN).ask(QUESTIONS[0])
    conversation, shown = Conversation(model, tokenizer, sampling=DRAWN), []
    answer = conversation.ask(
        QUESTIONS[0], on_text=shown.append, cancelled=lambda: len("".join(shown)) > 4
    )
    assert answer.finish_reason == "cancelled"
    assert 0 < answer.n_tokens < whole.n_tokens
    assert answer.token_ids == whole.token_ids[: answer.n_tokens]
    assert conversation.exchanges == [(QUESTIONS[0], "".join(shown))]
    following = conversation.ask(QUESTIONS[1])  # the engine has one slot: it is free
    assert following.token_ids == alone(model, tokenizer, conversation, following)


def test_an_answer_that_breaks_leaves_the_conversation_as_it_was(model, tokenizer):
    conversation = Conversation(model, tokenizer, sampling=GREEDY)
    conversation.ask(QUESTIONS[0])
    before = conversation.messages

    def fail(_: str) -> None:
        raise KeyboardInterrupt

    for ask in (lambda: conversation.ask("More?", on_text=fail), None):
        with pytest.raises(KeyboardInterrupt) as kept:  # its traceback holds the stream alive
            ask() if ask else conversation.retry(on_text=fail)
        assert conversation.messages == before
        answer = conversation.ask(QUESTIONS[1])
        assert answer.token_ids == alone(model, tokenizer, conversation, answer)
        conversation.undo()
        assert kept.tb is not None


def test_undo_and_retry_and_reset(model, tokenizer):
    conversation = Conversation(model, tokenizer, system="Be kind.", sampling=DRAWN)
    for change in (conversation.undo, conversation.retry):
        with pytest.raises(ClearheadError, match="nothing was asked yet"):
            change()
    first, second = conversation.ask(QUESTIONS[0]), conversation.ask(QUESTIONS[1])
    again = conversation.retry()
    assert again.seed == (second.seed + 1) % SEEDS
    assert again.token_ids != second.token_ids
    assert again.token_ids == alone(model, tokenizer, conversation, again)
    assert conversation.exchanges == [(QUESTIONS[0], first.text), (QUESTIONS[1], again.text)]
    assert conversation.undo() == QUESTIONS[1]
    assert conversation.exchanges == [(QUESTIONS[0], first.text)]
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be kind."}]


def test_without_a_seed_answers_differ_and_can_be_had_again(model, tokenizer):
    sampling = replace(DRAWN, seed=None)
    one, other = (Conversation(model, tokenizer, sampling=sampling) for _ in range(2))
    answer = one.ask(QUESTIONS[0])
    assert answer.seed != other.ask(QUESTIONS[0]).seed
    same = Conversation(model, tokenizer, sampling=replace(sampling, seed=answer.seed))
    assert same.ask(QUESTIONS[0]).text == answer.text


def test_a_stop_text_ends_an_answer(model, tokenizer):
    whole = Conversation(model, tokenizer, sampling=DRAWN).ask(QUESTIONS[0]).text
    stop = whole[5:7]
    conversation, shown = Conversation(model, tokenizer, sampling=DRAWN, stop=[stop]), []
    answer = conversation.ask(QUESTIONS[0], on_text=shown.append)
    assert answer.text == "".join(shown) == whole[: whole.index(stop)]
    assert (answer.finish_reason, answer.stop) == ("stop", stop)
    assert conversation.ask(QUESTIONS[1]).n_tokens


def test_figures(model, tokenizer):
    conversation = Conversation(model, tokenizer, sampling=GREEDY)
    answer = conversation.ask(QUESTIONS[0])
    assert answer.seconds_to_first is not None
    assert 0 < answer.seconds_to_first < answer.seconds
    rest = answer.seconds - answer.seconds_to_first
    assert answer.tokens_per_second == pytest.approx((answer.n_tokens - 1) / rest)
    conversation.sampling = replace(GREEDY, max_new_tokens=1)
    one = conversation.ask(QUESTIONS[1])
    assert (one.n_tokens, one.tokens_per_second) == (1, None)
    assert one.seconds == one.seconds_to_first


def test_saved_messages_are_a_row_to_learn_from(model, tokenizer, tmp_path):
    conversation = Conversation(model, tokenizer, system="Be kind.", sampling=GREEDY)
    conversation.ask("Größe?")
    path = tmp_path / "talk.jsonl"
    conversation.save(path)
    assert json.loads(path.read_text()) == {"messages": conversation.messages}
    assert read_examples(path, messages_of).rows == [conversation.messages]
    assert "Größe" in path.read_text()
    conversation.ask("Again?")
    conversation.save(path)  # its own file is written anew
    assert len(json.loads(path.read_text())["messages"]) == 5
    other = Conversation(model, tokenizer, sampling=GREEDY)
    with pytest.raises(ClearheadError, match="is there already; give another name"):
        other.save(path)
    with pytest.raises(ClearheadError, match="cannot be written: No such file"):
        other.save(tmp_path / "none" / "talk.json")
    assert [one.name for one in Path(tmp_path).iterdir()] == ["talk.jsonl"]
