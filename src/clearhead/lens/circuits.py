"""What heads do for each other and with tokens: composition, copying, attention to repetitions.

In the terms of Elhage et al. 2021: OV = W_V W_O is what a head moves, QK = W_Q W_Kᵀ where to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.lens.heads import exact, worst
from clearhead.lens.result import Proof, Result, array, prove
from clearhead.lens.taps import Taps, patterns, run
from clearhead.lens.weights import LayerWeights, Weights, weights
from clearhead.model import GPT

KINDS = ("Q", "K", "V")
"""What of the reader a writer feeds: its queries, its keys or its values."""
HEAD_SCORES = ("induction", "previous", "duplicate")
"""What `attention_scores` measures."""
_ROWS = 128  # of attention patterns that are made at once
_CHUNK = 8192  # tokens of the vocabulary that are widened at once


@dataclass(frozen=True, eq=False, kw_only=True)
class Composition(Result):
    """How much of what a head writes a later head reads."""

    score: Float[Tensor, "3 L H L H"] = array(
        "kind",
        "writer_layer",
        "writer_head",
        "reader_layer",
        "reader_head",
        unit="fraction of the product of norms",
    )
    """‖OV₁ X‖ / (‖OV₁‖ ‖X‖), where X is the reader's QK for kind 0, its transpose for 1, OV for 2.

    0 where the writer does not come before the reader: nothing can flow.
    """
    baseline: float
    """The root mean square of the score of a writer whose output space is rotated at random."""

    def pairs(self) -> list[dict[str, Any]]:
        """Return each pair of a writer and a later reader, those first that are most above chance.

        Returns:
            Records of kind ("Q", "K" or "V"), writer and reader ("layer.head"), score, baseline.
        """
        n_heads = self.score.shape[2]
        pairs = [
            {
                "kind": kind,
                "writer": f"{writer // n_heads}.{writer % n_heads}",
                "reader": f"{reader // n_heads}.{reader % n_heads}",
                "score": score,
                "baseline": self.baseline,
            }
            for kind, table in zip(KINDS, self.score.flatten(3).flatten(1, 2).tolist(), strict=True)
            for writer, row in enumerate(table)
            for reader, score in enumerate(row)
            if writer // n_heads < reader // n_heads
        ]
        return sorted(pairs, key=lambda pair: pair["baseline"] - pair["score"])

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers, with the baseline."""
        return {**super().to_json(), "baseline": self.baseline}


@torch.no_grad()
def composition(given: GPT | Weights, *, fold_writer: bool = False) -> Composition:
    """Measure how much of what each head writes each later head reads (Elhage et al. 2021).

    The LayerNorm that the reader reads through is folded into its W_Q, W_K and W_V: each row is
    multiplied by γ, then the mean over the rows is taken off. The writer's OV₁ = W_V W_O is raw.

    A random rotation of the writer's output space makes the mean square of the score 1/D exactly,
    whatever the weights, so the baseline is 1/√D. With `fold_writer` every head writes into the
    D − 1 dimensions without a mean, and only those are rotated: 1/√(D − 1).

    Args:
        given: A model, or its attention weights.
        fold_writer: Take OV as TransformerLens does, of the writer as of the reader: its own
            LayerNorm folded into W_V, and the mean over the residual stream taken off W_O.

    Raises:
        ClearheadError: The fast way does not give what the definition gives.
    """
    layers = [_fold(layer, fold_writer) for layer in weights(given).layers]
    n_layers, (n_heads, d_model, _) = len(layers), layers[0].query.shape
    score = layers[0].query.new_zeros(len(KINDS), n_layers, n_heads, n_layers, n_heads)
    writers = [_writer(layer) for layer in layers]
    for reader in range(1, n_layers):
        read = _reader(layers[reader])
        for writer in range(reader):
            score[:, writer, :, reader] = _scores(writers[writer], read)
    return Composition(
        proof=_prove_strongest(layers, score) if n_layers > 1 else None,
        score=score.cpu(),
        baseline=max(1, d_model - fold_writer) ** -0.5,
    )


@dataclass(frozen=True)
class _Folded:
    """A layer's matrices as composition wants them."""

    query: Float[Tensor, "H D K"]
    key: Float[Tensor, "H D K"]
    value: Float[Tensor, "H D K"]
    written: Float[Tensor, "H D K"]  # W_V of a writer
    out: Float[Tensor, "H K D"]


def _fold(layer: LayerWeights, fold_writer: bool) -> _Folded:
    def fold(matrix: Tensor) -> Tensor:
        scaled = layer.norm.to(exact(matrix))[:, None] * matrix.to(exact(matrix))
        return scaled - scaled.mean(1, keepdim=True)

    value, out = fold(layer.value), layer.out.to(exact(layer.out))
    written = value if fold_writer else layer.value.to(value)
    if fold_writer:
        out = out - out.mean(2, keepdim=True)
    return _Folded(fold(layer.query), fold(layer.key), value, written, out)


def _writer(layer: _Folded) -> Float[Tensor, "H K D"]:
    """Return R W_O for W_V = Q R, of norm 1: Q changes no norm of a product, and R is only K²."""
    return _unit(_triangle(layer.written) @ layer.out)


def _reader(layer: _Folded) -> Float[Tensor, "3 H D K"]:
    """Return what stands for QK, its transpose and OV: the last factor cut down in the same way."""
    query = layer.query @ _triangle(layer.key).mT
    key = layer.key @ _triangle(layer.query).mT
    value = layer.value @ _triangle(layer.out.mT).mT
    return _unit(torch.stack([query, key, value]))


def _triangle(matrix: Float[Tensor, "H D K"]) -> Float[Tensor, "H K K"]:
    return torch.linalg.qr(matrix, mode="r").R


def _unit(matrix: Float[Tensor, "*n rows columns"]) -> Float[Tensor, "*n rows columns"]:
    """Divide by the norm; nothing stays nothing."""
    norm = matrix.square().sum((-2, -1), keepdim=True).sqrt()  # sharper than .norm() in fp32
    return torch.where(norm > 0, matrix / norm, 0.0)


def _scores(
    writer: Float[Tensor, "H K D"], reader: Float[Tensor, "3 H D K"]
) -> Float[Tensor, "3 H H"]:
    """Return the score of each kind, writer and reader."""
    left = writer.flatten(0, 1)  # [H·K, D]
    right = reader.permute(2, 0, 1, 3).flatten(1)  # [D, 3·H·K]
    n_heads, head_dim, _ = writer.shape
    product = (left @ right).view(n_heads, head_dim, len(reader), n_heads, head_dim)
    return product.square().sum((1, 4)).sqrt().transpose(0, 1)  # [3, H, H]


def _prove_strongest(layers: Sequence[_Folded], score: Float[Tensor, "3 L H L H"]) -> Proof:
    """Compare the strongest pair of each kind with the literal definition, D × D in fp64."""
    literal = []
    for kind in range(len(KINDS)):
        at = torch.unravel_index(score[kind].argmax(), score[kind].shape)
        from_layer, from_head, to_layer, to_head = (int(one) for one in at)
        writer, reader = layers[from_layer], layers[to_layer]
        first = writer.written[from_head].double() @ writer.out[from_head].double()  # [D, D]
        query, key = reader.query[to_head].double(), reader.key[to_head].double()
        value, out = reader.value[to_head].double(), reader.out[to_head].double()
        second = (query @ key.T, key @ query.T, value @ out)[kind]
        literal.append((_unit(first) @ _unit(second)).norm())
    strongest = score.flatten(1).amax(1)
    return prove("K × K products − whole matrices", strongest, torch.stack(literal).to(score))


@dataclass(frozen=True, eq=False, kw_only=True)
class Copying(Result):
    """Whether a head makes the tokens that it attends to likelier, or less likely."""

    copying: Float[Tensor, "L H"] = array("layer", "head", unit="fraction of the eigenvalues")
    """sum Re λ / sum |λ|: 1 copies, −1 does the opposite; 0 also if the head does nothing."""


@torch.no_grad()
def copying(given: GPT | Weights) -> Copying:
    """Measure how much each head copies tokens (Elhage et al. 2021).

    The eigenvalues of the full circuit W_E W_V W_O W_U [V, V], other than 0, are those of the K × K
    matrix W_O W_U W_E W_V. All of them raw: no LayerNorm is folded in.

    Args:
        given: A model, or its attention weights with the embeddings.

    Raises:
        ClearheadError: The embeddings are missing, or the eigenvalues do not add up to the trace.
    """
    found = weights(given)
    if found.embedding is None or found.unembedding is None:
        missing = [
            name
            for name, tensor in (
                ("the token embedding (W_E)", found.embedding),
                ("the unembedding (W_U)", found.unembedding),
            )
            if tensor is None
        ]
        raise ClearheadError(
            f"copying needs {' and '.join(missing)}, which these weights lack; give a whole model"
        )
    vocabulary = _through_vocabulary(found.unembedding, found.embedding)
    rows, proofs = [], []
    for layer in found.layers:
        circuit = layer.out.to(vocabulary) @ vocabulary @ layer.value.to(vocabulary)  # [H, K, K]
        eigenvalues = torch.linalg.eigvals(circuit)  # [H, K]
        total, trace = eigenvalues.sum(-1).real, circuit.diagonal(0, 1, 2).sum(-1)
        scale = float(circuit.norm(dim=(1, 2)).max())
        proofs.append(prove("sum of eigenvalues − trace", total, trace, scale=scale))
        size = eigenvalues.abs().sum(-1)
        rows.append(torch.where(size > 0, total / size, 0.0))
    return Copying(proof=worst(proofs), copying=torch.stack(rows).cpu())


def _through_vocabulary(
    unembedding: Float[Tensor, "V D"], embedding: Float[Tensor, "V D"]
) -> Float[Tensor, "D D"]:
    """Return W_U W_E: from the residual stream to a token and back, summed over the tokens."""
    total = embedding.new_zeros(2 * embedding.shape[1:], dtype=exact(embedding))
    for start in range(0, len(embedding), _CHUNK):
        some = slice(start, start + _CHUNK)
        total.addmm_(unembedding[some].T.to(total), embedding[some].to(total))
    return total


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionScores(Result):
    """Where heads look in a random text that is repeated."""

    induction: Float[Tensor, "L H"] = array("layer", "head", unit="attention")
    """To the token after the same one's first occurrence, N − 1 back; in the second copy."""
    previous: Float[Tensor, "L H"] = array("layer", "head", unit="attention")
    """To the token before; at all tokens but the first."""
    duplicate: Float[Tensor, "L H"] = array("layer", "head", unit="attention")
    """To the same token's first occurrence, N back; in the second copy."""
    n_random: int
    """How many tokens N the repeated text had."""

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers, with the length of the repeated text."""
        return {**super().to_json(), "n_random": self.n_random}


@torch.no_grad()
def attention_scores(
    model: GPT, *, n_random: int = 100, n_texts: int = 4, seed: int = 0, bos: int | None = None
) -> AttentionScores:
    """Measure which heads look for what came before (Olsson et al. 2022).

    The text is [BOS, r, r]: r are N different tokens drawn at random, other than BOS. With 0 for
    BOS's place, the rows N + 1 to 2N are the second copy. Induction and duplicate are the mean
    attention over those N rows, from row i to i − (N − 1) and to i − N; previous is the mean over
    the rows 1 to 2N, from i to i − 1. All are averaged over the texts.

    Args:
        model: The model.
        n_random: Tokens N in r; fewer if the context or the vocabulary does not hold as many.
        n_texts: How many such texts.
        seed: For drawing them.
        bos: The token that stands before; the last of the vocabulary by default, which is GPT-2's
            end-of-text token.

    Raises:
        ClearheadError: Fewer than 3 tokens can be drawn, no text is asked for, there is no such
            token, or the attention does not add up to what the heads made of it.
    """
    vocabulary, context = model.config.vocab_size, model.config.context_length
    bos = vocabulary - 1 if bos is None else bos
    if not 0 <= bos < vocabulary:
        raise ClearheadError(f"there is no token {bos}; the vocabulary has {vocabulary}, from 0")
    length = min(n_random, (context - 1) // 2, vocabulary - 1)
    if length < 3 or n_texts < 1:
        raise ClearheadError(
            f"{n_texts} texts of {length} random tokens; give at least 1 of at least 3, which must "
            f"fit twice into the context of {context} and into the vocabulary of {vocabulary}"
        )
    generator = torch.Generator().manual_seed(seed)
    proofs: list[Proof] = []
    texts = []
    for _ in range(n_texts):
        drawn = torch.randperm(vocabulary - 1, generator=generator)[:length]
        drawn = drawn + (drawn >= bos)  # every token but BOS
        text = torch.cat([torch.tensor([bos]), drawn, drawn])
        seen = run(model, text[None], "q", "k", "v", "z")
        layers = [_diagonals(seen, layer, length) for layer in range(model.config.n_layers)]
        texts.append(torch.stack([scores for scores, _ in layers]))  # [L, 3, H]
        proofs.extend(proof for _, proof in layers)
    induction, previous, duplicate = torch.stack(texts).mean(0).cpu().unbind(1)  # [L, H] each
    return AttentionScores(
        proof=worst(proofs),
        induction=induction,
        previous=previous,
        duplicate=duplicate,
        n_random=length,
    )


def _diagonals(seen: Taps, layer: int, length: int) -> tuple[Float[Tensor, "3 H"], Proof]:
    """Return a layer's scores on one text, and that this attention makes the heads' output."""
    query, key = seen["q", layer], seen["k", layer]
    value, z = seen["v", layer][0], seen["z", layer][0]  # [T, H, K]
    diagonals = ((length - 1, length + 1), (1, 1), (length, length + 1))  # how far, from which row
    total = value.new_zeros(len(diagonals), value.shape[1], dtype=exact(value))  # [3, H]
    proofs = []
    for start in range(0, len(value), _ROWS):
        stop = min(start + _ROWS, len(value))
        alpha = patterns(query, key, rows=range(start, stop))[0]  # [H, r, T]
        rebuilt = torch.einsum("hrt,thk->rhk", alpha, value)
        proofs.append(prove("attention × values − the heads' output", rebuilt, z[start:stop]))
        for which, (back, first) in enumerate(diagonals):
            rows = torch.arange(start, stop)[max(0, first - start) :]
            total[which] += alpha[:, rows - start, rows - back].sum(-1)
    counts = total.new_tensor([len(value) - first for _, first in diagonals])
    return total / counts[:, None], worst(proofs)
