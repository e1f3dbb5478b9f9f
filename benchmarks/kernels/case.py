"""What is measured: one operation at one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one size.

    ``size`` names the dimensions as the operation's legend does, without the number of tokens.
    """

    op: str
    shape: str
    size: dict[str, int]
    length: int
    dtype: str = "float32"
    device: str = "cpu"

    def with_length(self, length: int) -> Case:
        return Case(self.op, self.shape, self.size, length, self.dtype, self.device)

    def as_json(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "shape": self.shape,
            "size": self.size,
            "length": self.length,
            "dtype": self.dtype,
            "device": self.device,
        }
