"""What every measure returns: arrays that know their axes and units, and their proof."""

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clearhead.errors import ClearheadError

if TYPE_CHECKING:
    import pandas

NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
"""What a proof calls the type that was computed in."""
_TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 2.0**-6,
    torch.float16: 2.0**-9,
}


@dataclass(frozen=True)
class Proof:
    """A sum that must add up, and by how much it does not."""

    claim: str
    """What was compared, "sum of parts − whole" for example."""
    residual: float
    """Largest absolute difference."""
    tolerance: float
    """The largest that rounding explains."""
    dtype: str
    """The type that the model computed in."""

    def __str__(self) -> str:
        return f"{self.claim}: {self.residual:.1e} ({self.dtype})"

    @property
    def holds(self) -> bool:
        """Whether the residual is within its tolerance; not a number is not."""
        return self.residual <= self.tolerance


def prove(
    claim: str, parts: Tensor, whole: Tensor, *, scale: float | None = None, times: float = 1.0
) -> Proof:
    """Compare the sum of parts with the whole that the model computed.

    Args:
        claim: What is compared.
        parts: What the parts add up to.
        whole: What they should; its type sets the tolerance.
        scale: The size of the numbers that were added, to which rounding is relative; the whole's
            largest by default, at least 1.
        times: How often a sum of that size was rounded, where it was more than once.

    Raises:
        ClearheadError: They differ by more than rounding explains, or are not numbers.
    """
    if scale is None:
        scale = float(whole.detach().abs().max()) if whole.numel() else 0.0
    difference = (parts.detach() - whole.detach()).abs()
    residual = float(difference.max()) if difference.numel() else 0.0
    limit = _TOLERANCES[whole.dtype] * max(1.0, scale) * times
    proof = Proof(claim, residual, limit, NAMES[whole.dtype])
    if not proof.holds:
        raise ClearheadError(
            f"the proof failed: {proof}, more than the {limit:.1e} that rounding explains; "
            "nothing is shown"
        )
    return proof


def array(*axes: str, unit: str) -> Any:
    """Return the field of a result that holds an array.

    Args:
        axes: What each of its axes counts.
        unit: What its numbers are.
    """
    return field(metadata={"axes": axes, "unit": unit})


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """Arrays with named axes and units, and the proof of the numbers in them."""

    proof: Proof | None
    """The check that was made on these very numbers; none where a definition needs none."""

    @classmethod
    def arrays(cls) -> Iterator[Field[Any]]:
        """Yield the fields that hold arrays."""
        return (one for one in fields(cls) if "axes" in one.metadata)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers: each array with its axes and unit, and the proof."""
        document: dict[str, Any] = {
            one.name: {
                "axes": list(one.metadata["axes"]),
                "unit": one.metadata["unit"],
                "values": getattr(self, one.name).tolist(),
            }
            for one in self.arrays()
        }
        proof = self.proof
        if proof:
            document["proof"] = {
                "claim": proof.claim,
                "residual": proof.residual,
                "tolerance": proof.tolerance,
                "dtype": proof.dtype,
            }
        return document

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a row for each element of the longest axes, a column for each array.

        An array that lacks some of these axes is repeated along them; one with other axes is left
        out.

        Raises:
            ClearheadError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ClearheadError("a table needs pandas; pip install pandas") from error
        arrays = list(self.arrays())
        longest = max(arrays, key=lambda one: len(one.metadata["axes"]))
        axes = longest.metadata["axes"]
        shape = getattr(self, longest.name).shape
        index = pandas.MultiIndex.from_product([range(size) for size in shape], names=axes)
        columns = {}
        for one in arrays:
            own = one.metadata["axes"]
            if set(own) <= set(axes):
                values = getattr(self, one.name)
                order = sorted(range(len(own)), key=lambda at: axes.index(own[at]))
                values = values.permute(*order)
                for at, name in enumerate(axes):
                    if name not in own:
                        values = values.unsqueeze(at)
                columns[one.name] = values.expand(shape).reshape(-1).double().numpy()
        return pandas.DataFrame(columns, index=index)
