"""Text to token ids and back: gpt2, bpe, char, bytes."""

from typing import TYPE_CHECKING

from clearhead.tokenizer.base import END_OF_TEXT, Tokenizer
from clearhead.tokenizer.chat import CHAT_TEMPLATE, Message, render_chat
from clearhead.tokenizer.folder import build_tokenizer, load_tokenizer, save_tokenizer
from clearhead.tokenizer.show import TokenView, show_tokens

if TYPE_CHECKING:
    from clearhead.tokenizer.text import text_to_token_ids, token_ids_to_text

__all__ = [
    "CHAT_TEMPLATE",
    "END_OF_TEXT",
    "Message",
    "TokenView",
    "Tokenizer",
    "build_tokenizer",
    "load_tokenizer",
    "render_chat",
    "save_tokenizer",
    "show_tokens",
    "text_to_token_ids",
    "token_ids_to_text",
]


def __getattr__(name: str) -> object:
    # These two return tensors; processes that only tokenise do without torch.
    if name in {"text_to_token_ids", "token_ids_to_text"}:
        from clearhead.tokenizer import text

        return getattr(text, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
