"""What the verbs of the lens share."""

from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from clearhead.cli import show
from clearhead.cli.heat import heat_map
from clearhead.cli.parse import text
from clearhead.lens import Panel, Proof, save_panels
from clearhead.lens.plots import check_picture
from clearhead.model import GPT
from clearhead.recipes.lens import encode_text
from clearhead.recipes.load import load
from clearhead.tokenizer import Tokenizer, show_tokens


def model_and_text(
    directory: Path, words: str, device: str
) -> tuple[GPT, Tokenizer, Int[Tensor, "1 T"], list[str]]:
    """Load a model, and return a text's tokens and how each of them reads."""
    words = text(words, "--text")
    model, tokenizer = load(directory, device=device, merged=True)
    ids = encode_text(tokenizer, words)
    return (
        model,
        tokenizer,
        ids.to(model.device),
        [one.text for one in show_tokens(words, tokenizer)],
    )


def picture(path: Path | None) -> Path | None:
    """Check a picture's path before the work begins."""
    return None if path is None else check_picture(path)


def show_panels(panels: list[Panel], path: Path | None, title: str, proof: Proof | None) -> None:
    """Print heat maps; draw them too, if a path is given."""
    for panel in panels:
        heat_map(panel)
    if path is not None:
        save_panels(path, panels, title, str(proof) if proof else "")
        show.facts({"\npicture": path})


def show_proof(proof: Proof | None) -> None:
    """End an output with the check of its numbers."""
    if proof is not None:
        show.line(show.result(), f"\n{proof}", "green")


def name(layer: int, head: int) -> str:
    """Return what a head is called."""
    return f"{layer}.{head}"
