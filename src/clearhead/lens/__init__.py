"""What the attention output projection does, head by head, each number with its proof."""

from clearhead.lens.ablate import (
    Ablation,
    CausalPairs,
    HeadSet,
    How,
    ablate_heads,
    causal_pairs,
    head_means,
    single_heads,
)
from clearhead.lens.circuits import (
    HEAD_SCORES,
    AttentionScores,
    Composition,
    Copying,
    attention_scores,
    composition,
    copying,
)
from clearhead.lens.edits import (
    edit,
    identity_projection,
    mix_heads,
    replace_head,
    scale_heads,
    swap_heads,
)
from clearhead.lens.example import Example, Trap, trap, worked_example
from clearhead.lens.heads import Heads, head_contributions, split
from clearhead.lens.importance import Importance, head_importance
from clearhead.lens.logits import (
    Attribution,
    HeadAttribution,
    LogitLens,
    attribution,
    logit_lens,
    mean_attribution,
)
from clearhead.lens.mixing import (
    Mixing,
    Overlap,
    example_projection,
    head_overlap,
    mixing_modes,
    pair_signs,
)
from clearhead.lens.pairs import Pairs, head_pairs
from clearhead.lens.plots import Curve, Panel, save_curves, save_panels
from clearhead.lens.result import Proof, Result
from clearhead.lens.sources import Sources, source_tokens
from clearhead.lens.taps import POINTS, Taps, observe, patterns, run
from clearhead.lens.trust import MEASURES, Trust, trust_table
from clearhead.lens.weights import LayerWeights, Weights, layer_weights, weights

__all__ = [
    "HEAD_SCORES",
    "MEASURES",
    "POINTS",
    "Ablation",
    "AttentionScores",
    "Attribution",
    "CausalPairs",
    "Composition",
    "Copying",
    "Curve",
    "Example",
    "HeadAttribution",
    "HeadSet",
    "Heads",
    "How",
    "Importance",
    "LayerWeights",
    "LogitLens",
    "Mixing",
    "Overlap",
    "Pairs",
    "Panel",
    "Proof",
    "Result",
    "Sources",
    "Taps",
    "Trap",
    "Trust",
    "Weights",
    "ablate_heads",
    "attention_scores",
    "attribution",
    "causal_pairs",
    "composition",
    "copying",
    "edit",
    "example_projection",
    "head_contributions",
    "head_importance",
    "head_means",
    "head_overlap",
    "head_pairs",
    "identity_projection",
    "layer_weights",
    "logit_lens",
    "mean_attribution",
    "mix_heads",
    "mixing_modes",
    "observe",
    "pair_signs",
    "patterns",
    "replace_head",
    "run",
    "save_curves",
    "save_panels",
    "scale_heads",
    "single_heads",
    "source_tokens",
    "split",
    "swap_heads",
    "trap",
    "trust_table",
    "weights",
    "worked_example",
]
