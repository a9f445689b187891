"""Which tokens may be drawn: each filter takes one text's logits and tells which of them stay.

They are NumPy's, in double precision: on a CPU it sorts a vocabulary many times faster than torch.
"""

import math

import numpy as np
import torch
from jaxtyping import Float64, Int64


def keep_top_k(logits: Float64[np.ndarray, " V"], top_k: int) -> Int64[np.ndarray, " kept"]:
    """Keep the k most likely tokens, and the equals of the k-th.

    Source: Fan et al. 2018, "Hierarchical Neural Story Generation".
    """
    place = max(len(logits) - top_k, 0)
    return np.flatnonzero(logits >= np.partition(logits, place)[place])


def keep_top_p(logits: Float64[np.ndarray, " V"], top_p: float) -> Int64[np.ndarray, " kept"]:
    """Keep the fewest most likely tokens whose probabilities reach `top_p`; of equals, the first.

    Source: Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration".
    """
    ascending = np.sort(logits)
    n_below = int(np.searchsorted(running_sum(softmax(ascending)), 1 - top_p, side="right"))
    removed = min(n_below, len(logits) - 1)
    last = ascending[removed]
    kept = np.flatnonzero(logits >= last)
    equals = np.flatnonzero(logits[kept] == last)
    surplus = len(kept) - (len(logits) - removed)
    return np.delete(kept, equals[len(equals) - surplus :])


def keep_min_p(logits: Float64[np.ndarray, " V"], min_p: float) -> Int64[np.ndarray, " kept"]:
    """Keep the tokens that are at least `min_p` (above 0) times as likely as the most likely one.

    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling".
    """
    return np.flatnonzero(logits >= logits.max() + math.log(min_p))


def keep_typical(logits: Float64[np.ndarray, " V"], typical_p: float) -> Int64[np.ndarray, " kept"]:
    """Keep the fewest tokens of nearly the expected surprise whose probabilities reach `typical_p`.

    A token's surprise is -log p, and the expected one the distribution's entropy; tokens as far
    from it as the last that is kept stay too.

    Source: Meister et al. 2022, "Locally Typical Sampling".
    """
    probabilities = softmax(logits)
    surprise = -torch.from_numpy(logits).log_softmax(-1).numpy()
    entropy = (probabilities * np.where(probabilities > 0, surprise, 0)).sum()
    distance = np.abs(surprise - entropy)
    nearest_first = np.argsort(distance)
    n_below = int(np.searchsorted(running_sum(probabilities[nearest_first]), typical_p))
    last = distance[nearest_first[min(n_below, len(logits) - 1)]]
    return np.flatnonzero(distance <= last)


def softmax(logits: Float64[np.ndarray, " V"]) -> Float64[np.ndarray, " V"]:
    """Return the probabilities that logits stand for."""
    return torch.from_numpy(logits).softmax(-1).numpy()


def running_sum(values: Float64[np.ndarray, " V"]) -> Float64[np.ndarray, " V"]:
    """Return the sums of the first 1, 2, … values: torch's are faster than NumPy's."""
    return torch.from_numpy(values).cumsum(-1).numpy()
