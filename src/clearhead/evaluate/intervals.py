"""How sure a figure is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_DRAWS = 2000


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval."""

    value: float
    """The number itself."""
    low: float
    """The interval begins here…"""
    high: float
    """…and ends here."""

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Difference:
    """How two models differ on the same questions."""

    difference: Figure
    """The second less the first."""
    p_value: float
    """How often chance alone would make a difference as large: pairs swapped at random."""
    n: int
    """How many questions."""


def bootstrap(
    values: Float[np.ndarray, "n *columns"],
    statistic: Callable[[Float[np.ndarray, "*m columns"]], Float[np.ndarray, " m"]] | None = None,
    *,
    seed: int = 0,
) -> Figure:
    """Return a statistic of the mean over units, with its interval by bootstrap (Efron 1979).

    Args:
        values: A row for each unit that was drawn: a question, a window of text.
        statistic: Makes figures of several means over units; the first mean itself by default.
        seed: Decides the draws.
    """
    table = values.reshape(len(values), -1).astype(np.float64)
    random = np.random.Generator(np.random.Philox(seed))
    means = np.stack(
        [table[random.integers(len(table), size=len(table))].mean(0) for _ in range(_DRAWS)]
    )
    whole = table.mean(0)[None]
    if statistic is None:
        drawn, value = means[:, 0], whole[0, 0]
    else:
        drawn, value = statistic(means), statistic(whole)[0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(float(value), float(low), float(high))


def compare(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], *, seed: int = 0
) -> Difference:
    """Compare two models question by question, by a paired permutation test (Fisher 1935).

    Args:
        first: What the first model scores on each question.
        second: The same of the second.
        seed: Decides the draws.
    """
    differences = second.astype(np.float64) - first.astype(np.float64)
    random = np.random.Generator(np.random.Philox(seed))
    observed = abs(differences.mean())
    moved = differences[differences != 0]
    extreme = 0
    for _ in range(_DRAWS):
        signs = random.integers(0, 2, size=len(moved)) * 2 - 1
        extreme += abs((signs * moved).sum()) / len(differences) >= observed - 1e-12
    return Difference(
        bootstrap(differences, seed=seed), (extreme + 1) / (_DRAWS + 1), len(differences)
    )
