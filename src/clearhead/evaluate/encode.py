"""Continuations in tokens."""

from clearhead.evaluate.choices import Continuation
from clearhead.tokenizer import Tokenizer


def encode_pair(tokenizer: Tokenizer, context: str, text: str) -> Continuation:
    """Return a continuation in tokens, cut from its context as lm-eval cuts it.

    Blanks at the context's end go to the continuation; both are encoded as one text. An empty
    context is the end-of-text token.
    """
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, text = context[:-blanks], context[-blanks:] + text
    given = tokenizer.encode_ordinary(context).tolist() if context else []
    whole = tokenizer.encode_ordinary(context + text).tolist()
    if len(whole) <= len(given):
        given = whole[:-1]  # a token of both: it counts to the continuation
    return Continuation(tuple(given) or (tokenizer.end_of_text,), tuple(whole[len(given) :]))
