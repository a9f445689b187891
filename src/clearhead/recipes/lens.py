"""What the lens looks at, from where it lies: models, attention tensors, texts, target tokens."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clearhead import checkpoint
from clearhead.checkpoint.formats.huggingface import TABLE
from clearhead.checkpoint.tensors import TensorFile
from clearhead.errors import ClearheadError
from clearhead.files import atomic_write, sha256_file
from clearhead.lens import (
    HeadSet,
    Weights,
    head_contributions,
    identity_projection,
    layer_weights,
    mix_heads,
    scale_heads,
    swap_heads,
    weights,
)
from clearhead.model import GPT
from clearhead.recipes.load import load
from clearhead.recipes.pretrain import pretrain, recipe
from clearhead.tokenizer import Tokenizer

_USUAL_HEAD = 64
_QKV = re.compile(r"(?:transformer\.)?h\.(\d+)\.attn\.c_attn\.weight")


def attention_weights(path: Path, *, n_heads: int | None = None) -> Weights:
    """Read attention weights, for the measures that need nothing else.

    Args:
        path: A checkpoint, a run, or one safetensors file that holds at least the attention tensors
            under their Hugging Face names.
        n_heads: Heads a layer, which a lone file does not tell; by default as many as are 64 wide,
            as in all of GPT-2's sizes.

    Raises:
        ClearheadError: There are none, some are missing, or the file is damaged.
    """
    if not path.is_file():
        return weights(lens_model(path))
    with TensorFile(path) as file:
        found = sorted(int(match[1]) for name in file.header if (match := _QKV.fullmatch(name)))
        if found != list(range(len(found))) or not found:
            raise ClearheadError(
                f"{path} holds no attention tensors of GPT-2's first layers on, such as "
                "h.0.attn.c_attn.weight"
            )
        names = dict(TABLE.in_block)
        before = "" if "h.0.attn.c_attn.weight" in file.header else "transformer."

        def read(name: str) -> Tensor | None:
            whole = before + name
            return file.read(whole).float() if whole in file.header else None

        def needed(name: str) -> Tensor:
            tensor = read(name)
            if tensor is None:
                raise ClearheadError(f"{path} lacks {before + name}")
            return tensor

        layers = []
        for layer in found:
            here = TABLE.block.format(layer=layer).removeprefix("transformer.")
            norm = needed(here + str(names["norm_1.weight"]))
            layers.append(
                layer_weights(
                    needed(here + str(names["attention.qkv.weight"])),
                    read(here + str(names["attention.qkv.bias"])),
                    needed(here + str(names["attention.out_proj.weight"])),
                    read(here + str(names["attention.out_proj.bias"])),
                    norm,
                    n_heads or max(1, len(norm) // _USUAL_HEAD),
                )
            )
        embedding = read("wte.weight")
    return Weights(tuple(layers), embedding, embedding)


def encode_text(tokenizer: Tokenizer, text: str) -> Int[Tensor, "1 T"]:
    """Return a text as a batch of one.

    Raises:
        ClearheadError: It is empty.
    """
    ids = tokenizer.encode(text)
    if not len(ids):
        raise ClearheadError("the text is empty; give one of at least one token")
    return torch.from_numpy(ids).to(torch.int64)[None]


def target_token(tokenizer: Tokenizer, word: str) -> int:
    """Return the id of a word that is one token.

    Raises:
        ClearheadError: It is several tokens, which are named.
    """
    ids = tokenizer.encode(word).tolist()
    if len(ids) == 1:
        return int(ids[0])
    parts = ", ".join(repr(tokenizer.decode([one])) for one in ids)
    spaced = tokenizer.encode(f" {word}").tolist()
    hint = f"; {' ' + word!r} with a space before it is one" if len(spaced) == 1 else ""
    raise ClearheadError(f"{word!r} is {len(ids)} tokens: {parts}; which one is meant?{hint}")


@dataclass(frozen=True)
class Edited:
    """What a model makes of a text with one edit."""

    edit: str
    """What was changed."""
    loss: float
    """Mean loss on the text's own next tokens, in nats."""
    next_token: str
    """What it would write next."""
    probability: float
    """How likely it thinks that."""


@torch.no_grad()
def try_edits(
    model: GPT, tokenizer: Tokenizer, token_ids: Int[Tensor, "1 T"], layer: int
) -> list[Edited]:
    """Flip, silence, swap and mix heads of one layer, and let W_O be the identity.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        token_ids: A text of at least two tokens.
        layer: The layer to edit.

    Returns:
        The model as it is first, then each edit.
    """
    model.config.check_next_token()
    share = head_contributions(model, token_ids, layers=[layer]).mean_share[0]
    loud = int(share.argmax())
    edits: list[tuple[str, AbstractContextManager[GPT]]] = [
        ("none", nullcontext(model)),
        (f"h{loud} flipped", scale_heads(model, layer, {loud: -1.0})),
        (f"h{loud} silenced", scale_heads(model, layer, {loud: 0.0})),
    ]
    if len(share) > 1:
        other = int(share.argmin())
        edits.append((f"h{loud} and h{other} swapped", swap_heads(model, layer, loud, other)))
    if len(share) > 3:
        mixed = mix_heads(model, layer, {loud: {1: 1.0, 3: -1.0}})
        edits.append((f"h1 − h3 in the place of h{loud}", mixed))
    edits.append(("W_O the identity", identity_projection(model, layer)))
    found = []
    for name, edit in edits:
        with edit:
            logits = model(token_ids)[0].float()  # [T, V]
        loss = F.cross_entropy(logits[:-1], token_ids[0, 1:])
        probability, best = logits[-1].softmax(-1).max(-1)
        written = tokenizer.decode([int(best)])
        found.append(Edited(name, float(loss), written, float(probability)))
    return found


def quick_model(folder: Path, *, minutes: float = 0.2) -> Path:
    """Train a small model on the text that Python carries, to look at; returns its run's folder."""
    run = folder / "model"
    pretrain(replace(recipe("nano"), out=run, minutes=minutes))
    return run


def lens_model(path: Path) -> GPT:
    """Load a model without its tokenizer, for measures of weights and of random tokens."""
    folder = checkpoint.resolve(path)
    if checkpoint.is_adapter(folder):
        return load(folder, device="cpu", merged=True)[0]
    return checkpoint.load_model(folder)


class AblationLog:
    """What each text gave, in a file of JSON lines, so that an interrupted ablation goes on.

    The first line says of what; a last line that a crash cut short is computed again.

    Args:
        path: The file; made if it is not there.
        about: What the rows belong to; another file's differs.

    Raises:
        ClearheadError: The file is of something else, or cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: list[Float[Tensor, "segments columns"]] = []
        """Those that the file holds."""
        try:
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            if lines and json.loads(lines[0]) != json.loads(json.dumps(about)):
                raise ClearheadError(
                    f"{path} holds another ablation (of another model, other texts or heads); "
                    "delete it, or name another file"
                )
            self.rows = [torch.tensor(json.loads(line), dtype=torch.float64) for line in lines[1:]]
            with atomic_write(path) as file:  # without what a crash cut short
                file.write(b"".join(line + b"\n" for line in lines or [json.dumps(about).encode()]))
        except (ValueError, TypeError) as error:
            raise ClearheadError(f"{path} is damaged: {error}; delete it") from error
        except OSError as error:
            raise ClearheadError(f"cannot write {path}: {error.strerror}") from error

    def append(self, row: Float[Tensor, "segments columns"]) -> None:
        """Add a text's row, durably."""
        with self.path.open("ab") as file:
            file.write(json.dumps(row.tolist()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def describe_ablation(
    directory: Path, texts: Int[Tensor, "N T"], sets: Sequence[HeadSet], how: str, seed: int
) -> dict[str, Any]:
    """Return what an `AblationLog` is about: the weights' and texts' hashes, and what is asked."""
    folder = checkpoint.resolve(directory)
    return {
        "weights": {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))},
        "texts": hashlib.sha256(texts.cpu().numpy().tobytes()).hexdigest(),
        "sets": sets,
        "how": how,
        "seed": seed,
    }


def parse_heads(words: Sequence[str]) -> list[HeadSet]:
    """Read sets of heads as people write them: "9.9" is one head, "9.9+10.0" two together.

    Raises:
        ClearheadError: A word is neither.
    """
    sets = []
    for word in words:
        parts = [re.fullmatch(r"(\d{1,6})\.(\d{1,6})", part) for part in word.split("+")]
        found = tuple((int(part[1]), int(part[2])) for part in parts if part)
        if len(found) != len(parts):
            raise ClearheadError(
                f"{word!r} names no heads; write layer.head, such as 9.9, or 9.9+10.0 for two "
                "together"
            )
        sets.append(found)
    return sets
