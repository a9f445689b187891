"""The texts that a measure over a data set needs."""

from jaxtyping import Int
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.model import GPT


def check_texts(model: GPT, texts: Int[Tensor, "N T"]) -> None:
    """Hold texts against what a loss needs.

    Raises:
        ClearheadError: There is none, they are shorter than two tokens, or longer than the context;
            or the model is a classifier.
    """
    model.config.check_next_token()
    count, length = texts.shape
    if count < 1 or length < 2:
        raise ClearheadError(
            f"{count} texts of {length} tokens; give at least 1 of at least 2, to have a next token"
        )
    if length > model.config.context_length:
        raise ClearheadError(
            f"texts of {length} tokens do not fit into the context of "
            f"{model.config.context_length}; cut them shorter"
        )
