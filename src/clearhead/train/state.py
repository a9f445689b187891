"""Everything beside the weights that a run needs in order to go on bit for bit."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands, between two steps."""

    step: int = 0
    """Updates made so far; the next batch is that of this step."""
    steps: int | None = None
    """Updates that the run will make; None until a run of given minutes has measured its speed."""
    evaluated_step: int = 0
    """Updates made before the last evaluation."""
    best_step: int | None = None
    """The evaluated step with the lowest validation loss so far."""
    best_loss: float | None = None
    """The validation loss at `best_step`, in nats a token."""
    stale: int = 0
    """Evaluations since then."""
    seconds: float = 0.0
    """Time spent in training so far."""


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of every random generator, as tensors and as a JSON document."""
    tensors = {"torch": torch.get_rng_state()}
    for index, state in enumerate(_cuda_states()):
        tensors[f"cuda/{index}"] = state
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    version, words, gauss = random.getstate()
    document = {
        "numpy": [kind, int(position), int(has_gauss), float(cached)],
        "python": [version, list(words), gauss],
    }
    return tensors, document


def restore_random_state(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Set every random generator to the state that `random_state` returned."""
    torch.set_rng_state(tensors["torch"])
    if _cuda_states():
        torch.cuda.set_rng_state_all([tensors[k] for k in sorted(tensors) if k[:5] == "cuda/"])
    kind, position, has_gauss, cached = document["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    version, words, gauss = document["python"]
    random.setstate((version, tuple(words), gauss))


def _cuda_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
