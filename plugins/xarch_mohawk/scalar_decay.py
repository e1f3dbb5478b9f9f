"""Mixers on the SSD recurrence: one decay per head and token, one matrix per head (Mamba-2, arXiv 2405.21060).

Legend: B batch, L tokens, D width, H heads, P value width, N state size, I inner width = H P.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from xarch.kernels import graph_form, linear_attention, ssd, ssd_step
from xarch_decoder.factored import SSDFactors
from xarch_decoder.model.mixer import SequenceInfo, StateSpec
from xarch_mohawk.mixer import RecurrentMixer


@dataclass(frozen=True)
class Factors:
    """Factors of the mixing matrix."""

    B_BLHN: Tensor
    C_BLHN: Tensor
    log_a_BLH: Tensor


@dataclass(frozen=True)
class Operands(Factors):
    """Inputs of the recurrence; ``gate`` multiplies its output."""

    x_BLHP: Tensor
    gate_BLI: Tensor


class ScalarDecayMixer(RecurrentMixer[Operands]):
    """y = M x with M[t, s] = (C_t · B_s) exp(S_t - S_s) + D [t = s], S the sum of log a; then gated.

    The parts are called x, B and C; subclasses add those that make the gate and the decay.
    """

    sources: ClassVar = {"x": "v", "B": "k", "C": "q"}
    convolved = ("x", "B", "C")
    state_size: int
    D: nn.Parameter
    """Skip weights [H]."""

    def factors(self, x_BLD: Tensor, sequence: SequenceInfo) -> Factors:
        """Return the factors of the mixing matrix over whole sequences."""
        return self.operands(x_BLD, sequence)

    def gated(self, y_BLI: Tensor, gate_BLI: Tensor) -> Tensor:
        """Return what ``out_proj`` reads."""
        return y_BLI * gate_BLI

    def scalar_operands(self, x_BLD: Tensor, sequence: SequenceInfo) -> tuple[Tensor, Tensor, Tensor]:
        """Return x [B, L, H, P], B and C [B, L, H, N] over whole sequences, without gain."""
        parts = self.operands(x_BLD, sequence, plain=True)
        return parts.x_BLHP, parts.B_BLHN, parts.C_BLHN

    def inner(self, x_BLD: Tensor, sequence: SequenceInfo, wanted: Collection[str]) -> dict[str, Any]:
        mixes = "heads" in wanted or "mixer_out" in wanted
        parts: Factors = self.operands(x_BLD, sequence) if mixes else self.factors(x_BLD, sequence)
        values: dict[str, Any] = {}
        if "matrix" in wanted:
            segments_BL = sequence.segment_ids_BL
            values["matrix"] = SSDFactors(parts.C_BLHN, parts.B_BLHN, parts.log_a_BLH, self.D, segments_BL)
        if isinstance(parts, Operands):
            values |= self.read(parts, sequence, wanted)
        return values

    def inner_layouts(self) -> dict[str, str]:
        return {"matrix": "ssd-factors", **super().inner_layouts()}

    def inner_shapes(self) -> dict[str, dict[str, int]]:
        return {"matrix": {"H": self.heads}, **super().inner_shapes()}

    def recurrent_state(self) -> StateSpec:
        return StateSpec("ssm_state", (self.heads, self.state_size, self.value_width))

    def recur(self, parts: Operands, segments_BL: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        operands = (parts.x_BLHP, parts.log_a_BLH, parts.B_BLHN, parts.C_BLHN)
        if state is None:
            y_BLHP = ssd(*operands, self.D, segment_ids_BL=segments_BL)
        elif graph_form("recurrence") == "runtime":
            y_BLHP, state = linear_attention(parts.C_BLHN, parts.B_BLHN, parts.x_BLHP, parts.log_a_BLH, state)
            y_BLHP = y_BLHP + self.D[:, None] * parts.x_BLHP
        elif parts.x_BLHP.shape[1] == 1:
            x, log_a, B, C = (t[:, 0] for t in operands)
            y_BHP, state_BHPN = ssd_step(x, log_a, B, C, self.D, state.mT)
            y_BLHP, state = y_BHP[:, None], state_BHPN.mT
        else:
            y_BLHP, state_BHPN = ssd(*operands, self.D, initial_state_BHPN=state.mT, return_final_state=True)
            state = state_BHPN.mT
        assert isinstance(y_BLHP, Tensor)
        return self.gated(y_BLHP.flatten(2), parts.gate_BLI), state
