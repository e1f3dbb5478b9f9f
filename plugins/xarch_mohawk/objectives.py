"""Distance between the mixing matrices of two sequence mixers, never materialised."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xarch import Batch, Objective
from xarch.kernels import matrix_distance
from xarch_decoder.factored import AttentionFactors, SSDFactors


class Frobenius(Objective):
    """‖M − P‖_F per head, not squared, averaged over heads (MOHAWK, arXiv 2408.10189, stage 1).

    M is the student's state-space mixing matrix, P the teacher's attention matrix, both [L, L] per head and both
    kept as factors: memory is linear in the number of tokens. Logs ρ = ‖M − P‖/‖P‖, which is comparable across lengths.
    """

    accepts = frozenset({("ssd-factors", "attention-factors")})
    units = "Frobenius norm/head"

    _rho: Tensor | None = None

    def forward(self, student: SSDFactors, teacher: AttentionFactors, batch: Batch, **aux: Any) -> Tensor:
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
        return result.distance_BH.mean(1)

    def monitor(self) -> dict[str, float]:
        return {} if self._rho is None else {"rho": float(self._rho)}
