"""Distance between the mixing matrices of two sequence mixers, never materialised."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xarch import Batch, Objective, Tap
from xarch.kernels import matrix_distance


class Frobenius(Objective):
    """‖M − P‖_F per head, not squared, averaged over heads (MOHAWK, arXiv 2408.10189, stage 1).

    M is the student's state-space mixing matrix, P the teacher's attention matrix, both [L, L] per head and both
    kept as factors: memory is linear in the number of tokens. Logs ρ = ‖M − P‖/‖P‖, which is comparable across lengths.
    A sample mask [B] is respected. Token masks are unsupported: they would select rows of matrices never materialised.
    """

    accepts = frozenset({("ssd-factors", "attention-factors")})
    units = "Frobenius norm/head"

    _rho: Tensor | None = None

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return layout == "B"

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        result = matrix_distance(
            teacher.q_BLHE,
            teacher.k_BLKE,
            student.C_BLGN,
            student.B_BLGN,
            student.log_a_BLH,
            student.D_H,
            scale=teacher.scale,
            window=teacher.window,
            softcap=teacher.softcap,
            segment_ids_BL=teacher.segment_ids_BL,
        )
        self._rho = result.distance_BH.detach().sum() / result.teacher_norm_BH.detach().sum().clamp_min(1e-12)
        distance_B = result.distance_BH.mean(1)
        return distance_B if mask is None else distance_B * mask

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        return super().weight(batch) if mask is None else mask.float()

    def monitor(self) -> dict[str, float]:
        return {} if self._rho is None else {"rho": float(self._rho)}
