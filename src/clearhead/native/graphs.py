"""Decoding steps on a CUDA device, captured once and replayed: torch launches them as one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.model import GPT, KVCache

FEWEST = 64
"""The fewest positions that a captured step attends to; then twice as many, and so on."""


class CapturedSteps:
    """Reads one token of each of some texts, by a graph of all slots of a cache.

    Launching some 150 small operations takes a CPU longer than computing them takes a GPU; a graph
    is launched at once, but nothing in it may change, neither shapes nor addresses. So a step
    computes every slot of the cache, those too that have no text, whose results nobody reads, and
    attends to as many positions as the next power of two; there is a graph for each of those.
    """

    def __init__(self, model: GPT) -> None:
        """Capture steps of a model in evaluation mode whose weights no longer change."""
        self._model = model
        self._keys: Tensor | None = None
        self._steps: dict[int, _Step] = {}

    def read(self, ids: Int[Tensor, "B 1"], cache: KVCache) -> Float[Tensor, "B V"]:
        """Read a token of each row into a cache; return what follows.

        Raises:
            ClearheadError: The cache has no room for them.
        """
        slots = slice(None) if cache.slots is None else cache.slots
        longest = int(cache.lengths[slots].max())
        if longest == cache.capacity:
            cache.positions(1)  # tells that it is full
        if cache.keys is not self._keys:
            self._keys, self._steps = cache.keys, {}
        used = min(max(FEWEST, 1 << longest.bit_length()), cache.capacity)
        if used not in self._steps:
            self._steps[used] = _Step(self._model, cache, used)
        return self._steps[used].run(ids, slots)


class _Step:
    """A step that attends to a fixed number of positions."""

    def __init__(self, model: GPT, cache: KVCache, used: int) -> None:
        self._model, self._cache = model, _AllSlots(cache, used)
        self._ids = torch.zeros(len(cache.lengths), 1, dtype=torch.int64, device=model.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if model.device.type == "cuda":
            with torch.cuda.device(model.device):
                self._capture()

    def run(self, ids: Int[Tensor, "B 1"], slots: Tensor | slice) -> Float[Tensor, "B V"]:
        self._cache.active.zero_()
        self._cache.active[slots] = True
        self._ids[slots] = ids.to(self._ids.device)
        if self._graph is None:
            self._logits = self._computed()
        else:
            with torch.cuda.device(self._ids.device):
                self._graph.replay()
        self._cache.lengths += self._cache.active
        return self._logits[slots].clone()

    def _computed(self) -> Float[Tensor, "S V"]:
        return self._model.head(self._model.hidden(self._ids, self._cache)[:, -1])

    def _capture(self) -> None:
        """Capture the step, with no slot active: it changes nothing."""
        self._cache.active.zero_()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries are initialised before, not meanwhile
                self._computed()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._computed()


class _AllSlots(KVCache):
    """The cache as a captured step sees it: all slots, of which only the active ones change."""

    def __init__(self, cache: KVCache, used: int) -> None:
        self.keys, self.values, self.lengths = cache.keys, cache.values, cache.lengths
        self.capacity, self.slots = cache.capacity, None
        self.active = torch.zeros_like(cache.lengths, dtype=torch.bool)
        self._used = used

    def positions(self, n_tokens: int) -> Int[Tensor, "S 1"]:
        """Return the next position of each slot; of a full one, its last."""
        assert n_tokens == 1
        return self.lengths.clamp(max=self.capacity - 1)[:, None]

    def write(
        self,
        layer: int,
        positions: Int[Tensor, "S 1"],
        key: Float[Tensor, "S H 1 K"],
        value: Float[Tensor, "S H 1 K"],
    ) -> tuple[Float[Tensor, "S H C K"], Float[Tensor, "S H C K"]]:
        """Put the active slots' keys and values in their places."""
        slots = torch.arange(len(positions), device=positions.device)[:, None]
        active = self.active[:, None, None, None]
        both = self.keys[layer], self.values[layer]
        for held, new in zip(both, (key, value), strict=True):
            old = held[slots, :, positions]  # [S, 1, H, K]
            held[slots, :, positions] = new.transpose(1, 2).to(held.dtype).where(active, old)
        return both[0][:, :, : self._used], both[1][:, :, : self._used]

    def advance(self, lengths: Int[Tensor, " S"] | int) -> None:
        """Do nothing: a step counts its tokens when it has been run."""
