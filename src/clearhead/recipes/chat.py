"""Talk with a model that was taught to answer."""

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Literal

from clearhead.engine import SEEDS, Engine, FinishReason, SamplingConfig, fresh_seed
from clearhead.errors import ClearheadError
from clearhead.files import atomic_write
from clearhead.model import GPT
from clearhead.recipes.writing import Writing, room
from clearhead.tokenizer import END_OF_TEXT, Message, Tokenizer, render_chat


@dataclass(frozen=True)
class Answer:
    """What a model answered, and how it went."""

    question: str
    """What was asked."""
    text: str
    """The answer, without the stop string or end-of-text token that ended it."""
    token_ids: tuple[int, ...]
    """Every new token, those of the stop string and the end-of-text token included."""
    finish_reason: FinishReason | Literal["cancelled"]
    """"stop", "length" (max_new_tokens reached), "context" (no room for another token), or
    "cancelled"."""
    stop: str | None
    """The stop string that ended the text; None if something else did."""
    prompt_token_ids: tuple[int, ...]
    """What the model was given: system message, exchanges and question, by its template."""
    n_shared: int
    """How many of these tokens were known from the turn before and not computed again."""
    n_left_out: int
    """How many of the oldest exchanges were left out to make room."""
    seed: int
    """With this seed in the sampling config, the same prompt gives this text again."""
    seconds_to_first: float | None
    """From the question to the first token; None if there is none."""
    seconds: float
    """From the question to the last token."""

    @property
    def n_tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.token_ids)

    @property
    def tokens_per_second(self) -> float | None:
        """How fast tokens followed the first one; None if none did."""
        if self.seconds_to_first is None or self.n_tokens < 2:
            return None
        return (self.n_tokens - 1) / (self.seconds - self.seconds_to_first)


class Conversation:
    """Questions to a model and its answers, each with all that was said before in view.

    An answer is what `generate` gives for the whole conversation as the model's chat template
    writes it, token for token. The tokens that the turn before has read are not read again, in
    whole pieces of 128.

    When the conversation outgrows the context, the oldest exchanges (a question with its answer)
    are left out, as few as make room for `max_new_tokens` more, or for half a context where that is
    less; the system message stays. `exchanges` keeps all of them.

    Attributes:
        exchanges: The questions and their answers so far, oldest first.
        sampling: How tokens are chosen. With a seed s, the n-th answer has the seed s + n - 1.
        engine: What computes; its `backend` and `why` tell how.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        system: str = "",
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 - it is frozen
        stop: Sequence[str] = (),
    ) -> None:
        """Begin a conversation.

        Args:
            model: A model that was taught to answer; its weights no longer change.
            tokenizer: The one that the model was trained with, with its chat template.
            system: What the model is told before all questions; "" for nothing.
            sampling: How tokens are chosen, and how many.
            stop: Strings that end an answer, besides the end-of-text token.

        Raises:
            ClearheadError: The model has no chat template, the system message is too long or
                refused by it, or a stop string is empty.
        """
        if isinstance(stop, str) or "" in stop:
            raise ClearheadError(f"stop is {stop!r}; it must be a list of strings, none empty")
        sampling.check_vocabulary(model.config.vocab_size)
        self.exchanges: list[tuple[str, str]] = []
        self.sampling = sampling
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._context_length = model.config.context_length
        self._first_seed, self._n_asked = fresh_seed(), 0
        self._saved: set[Path] = set()
        self.system = system
        self.engine = Engine(model, slots=1)

    @property
    def system(self) -> str:
        """What the model is told before all questions; "" for nothing.

        Setting it raises a ClearheadError, and changes nothing, if the template refuses it or it
        leaves no room for a question.
        """
        return self._system

    @system.setter
    def system(self, content: str) -> None:
        if END_OF_TEXT in content:
            raise ClearheadError(f"the system message holds {END_OF_TEXT}; write another")
        n_tokens, most = len(self._encode(content, [], "")), self._room()
        if n_tokens >= most:
            raise ClearheadError(
                f"the system message takes {n_tokens} tokens, and there are {most} for it and a "
                f"question in a context of {self._context_length}; shorten it, or lower "
                "max_new_tokens"
            )
        self._system = content

    @property
    def messages(self) -> list[Message]:
        """All that was said, as messages with a role (system, user, assistant) and content."""
        return _messages(self.system, self.exchanges)

    def ask(
        self,
        question: str,
        *,
        on_text: Callable[[str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer:
        """Ask, and keep question and answer.

        Args:
            question: What to ask.
            on_text: Called with each piece of the answer as soon as it is certain.
            cancelled: Asked after each token whether to end the answer here; what was written so
                far is the answer then.

        Returns:
            The answer.

        Raises:
            ClearheadError: The question is empty, too long or refused by the template; the
                conversation stays as it was, as it does after any other exception.
        """
        start = perf_counter()
        prompt, n_left_out = self._fitted(checked_question(question))
        seed = self._next_seed()
        stop_ids = (*self.sampling.stop_token_ids, self._tokenizer.end_of_text)
        text = self.engine.submit(
            prompt, replace(self.sampling, stop_token_ids=stop_ids), seed=seed
        )
        writing, times = Writing(self._tokenizer, self._stop, on_text), list[float]()
        try:
            for token in self.engine.stream(text):
                times.append(perf_counter() - start)
                ended = token.token_id not in stop_ids and writing.read(token.token_id)
                if ended or (cancelled and cancelled()):
                    break
        finally:
            if not text.ended:
                self.engine.cancel(text)
        writing.close(perf_counter() - start)
        answer = Answer(
            question=question,
            text=writing.text,
            token_ids=tuple(text.history.new_ids),
            finish_reason="stop" if writing.stop else text.finish_reason or "cancelled",
            stop=writing.stop,
            prompt_token_ids=tuple(prompt),
            n_shared=text.n_shared,
            n_left_out=n_left_out,
            seed=seed,
            seconds_to_first=times[0] if times else None,
            seconds=times[-1] if times else writing.seconds,
        )
        self.exchanges.append((question, answer.text))
        self._n_asked += 1
        return answer

    def undo(self) -> str:
        """Take the last question and its answer back; return the question.

        Raises:
            ClearheadError: There is none.
        """
        if not self.exchanges:
            raise ClearheadError("nothing was asked yet; ask first")
        return self.exchanges.pop()[0]

    def retry(
        self,
        *,
        on_text: Callable[[str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer:
        """Ask the last question again, in place of its answer; the arguments are those of `ask`.

        The seed is the next one; at temperature 0 the answer is the same.

        Raises:
            ClearheadError: There is none.
        """
        before = list(self.exchanges)
        question = self.undo()
        try:
            return self.ask(question, on_text=on_text, cancelled=cancelled)
        except BaseException:
            self.exchanges = before
            raise

    def reset(self) -> None:
        """Forget all that was said but the system message."""
        self.exchanges = []

    def save(self, path: str | Path) -> None:
        """Write the messages as one line of JSON, `{"messages": …}`: a row that fine-tuning reads.

        Raises:
            ClearheadError: The file cannot be written, or is there and was not written by this
                conversation.
        """
        path = Path(path)
        if path.exists() and path.resolve() not in self._saved:
            raise ClearheadError(f"{path} is there already; give another name")
        try:
            with atomic_write(path) as file:
                file.write(
                    f"{json.dumps({'messages': self.messages}, ensure_ascii=False)}\n".encode()
                )
        except OSError as error:
            raise ClearheadError(f"{path} cannot be written: {error.strerror}") from error
        self._saved.add(path.resolve())

    def _next_seed(self) -> int:
        first = self._first_seed if self.sampling.seed is None else self.sampling.seed
        return (first + self._n_asked) % SEEDS

    def _room(self) -> int:
        return room(self._context_length, self.sampling.max_new_tokens)

    def _fitted(self, question: str) -> tuple[list[int], int]:
        """Return the prompt, and how many exchanges it leaves out: as few as make it fit."""
        most = self._room()

        def prompt(n_left_out: int) -> list[int]:
            return self._encode(self.system, self.exchanges[n_left_out:], question)

        n_left_out = bisect_left(
            range(len(self.exchanges)), True, key=lambda n: len(prompt(n)) <= most
        )
        ids = prompt(n_left_out)
        if len(ids) > most:
            what = "with the system message it takes" if self.system else "it takes"
            raise ClearheadError(
                f"the question is too long: {what} {len(ids)} tokens, and there are {most} for it "
                f"in a context of {self._context_length}; shorten it, or lower max_new_tokens"
            )
        return ids, n_left_out

    def _encode(
        self, system: str, exchanges: Sequence[tuple[str, str]], question: str
    ) -> list[int]:
        messages = [*_messages(system, exchanges), _message("user", question)]
        return self._tokenizer.encode(chat_prompt(self._tokenizer, messages)).tolist()


def chat_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """Return the text after which a model that was taught to answer writes its next answer.

    Raises:
        ClearheadError: It was not taught, or its template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise ClearheadError(
            "this model has no chat template: it was not taught to answer; continue a text with "
            "clearhead generate --prompt, or teach it with clearhead finetune instruct"
        )
    return render_chat(tokenizer.chat_template, messages, add_generation_prompt=True)


def question_prompt(tokenizer: Tokenizer, question: str) -> str:
    """Return the text after which a model that was taught to answer answers one question.

    Raises:
        ClearheadError: As `chat_prompt`; or the question is empty or holds the end-of-text token.
    """
    return chat_prompt(tokenizer, [_message("user", checked_question(question))])


def checked_question(content: str) -> str:
    """Return a question, if it is one.

    Raises:
        ClearheadError: It is empty, or holds the end-of-text token.
    """
    if not content.strip() or END_OF_TEXT in content:
        raise ClearheadError(f"the question is empty or holds {END_OF_TEXT}; write another")
    return content


def _messages(system: str, exchanges: Sequence[tuple[str, str]]) -> list[Message]:
    said = [_message("system", system)] if system.strip() else []
    for question, answer in exchanges:
        said += [_message("user", question), _message("assistant", answer)]
    return said


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
